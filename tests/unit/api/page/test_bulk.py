import re
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.access import CANCELLED_CHANGE
from novasvc.api.page.bulk import MAX_SERVICES
from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.record import ServiceChanges, ServiceRecord
from tests.support.page_rig import READERS, TOKENS, Connection, PageRig


class BulkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = PageRig(self)
        self.uuids = [self.rig.add(f"h{number}") for number in range(1, 6)]
        self.rig.see()

    def row(self, number: int) -> ServiceRecord:
        return self.successResultOf(self.rig.registry.get(self.uuids[number - 1]))

    def confirm(self, path: str, **fields: str) -> Any:
        """Ask for the confirmation, and send its form."""
        text = self.rig.ask(path).text.partition("<main")[2]
        (address,) = re.findall(r'<form method="post" action="([^"]+)"', text)
        (mark,) = re.findall(r'name="mark" value="([^"]+)"', text)
        (numbers,) = re.findall(r'name="ids" value="([^"]+)"', text)
        return self.rig.ask(address.replace("&amp;", "&"), {"mark": mark, "ids": numbers, **fields})

    def test_selected(self) -> None:
        """The selected services are disabled after one confirmation, with one reason, and the result says so."""
        answer = self.confirm("/bulk/disable?id=1&id=3&id=3", reason="new switch")
        self.assertEqual(answer.status, 200)
        self.assertIn("Disable: done for 2 of 2", answer.text)
        found = [(self.row(number).disabled, self.row(number).disabled_reason) for number in range(1, 6)]
        self.assertEqual([number for number, (disabled, _) in enumerate(found, 1) if disabled], [1, 3])
        self.assertEqual({reason for disabled, reason in found if disabled}, {"new switch"})
        self.assertIn('Disabled</b> <span class="why">new switch', self.rig.ask("/").text)

    def test_all_that_match(self) -> None:
        """With "all" the services are those of the filter, as they were when the confirmation was shown."""
        for number in (2, 4):
            self.rig.registry.update(number, ServiceChanges(disabled=True, disabled_reason="x"))
        self.rig.see()
        text = self.rig.ask("/bulk/enable?all=1&state=disabled").text
        self.assertIn('name="ids" value="2,4"', text)
        self.assertIn("Enable 2 services?", text)
        answer = self.confirm("/bulk/enable?all=1&state=disabled")
        self.assertIn("done for 2 of 2", answer.text)
        self.assertIn('href="/?state=disabled"', answer.text)
        self.assertFalse(any(self.row(number).disabled for number in range(1, 6)))

    def test_force_down(self) -> None:
        """Services are forced down, and let up again."""
        self.confirm("/bulk/force-down?id=1&id=2")
        self.assertEqual([self.row(number).forced_down for number in (1, 2, 3)], [True, True, False])
        self.confirm("/bulk/let-up?all=1&state=forced")
        self.assertEqual([self.row(number).forced_down for number in (1, 2, 3)], [False, False, False])

    def test_failures(self) -> None:
        """Services that could not be changed are named with the reason; the others are changed."""
        text = self.rig.ask("/bulk/disable?id=1&id=2&id=5").text.partition("<main")[2]
        (mark,) = re.findall(r'name="mark" value="([^"]+)"', text)
        self.successResultOf(self.rig.registry.delete(2))
        answer = self.rig.ask("/bulk/disable", {"mark": mark, "ids": "1,2,5"})
        self.assertIn("Disable: done for 2 of 3", answer.text)
        self.assertIn("novasvc-agent@h2", answer.text)
        self.assertTrue(self.row(5).disabled)
        self.rig.registry.outage = DatabaseUnavailableError("mysql://db", "it is gone")
        answer = self.rig.ask("/bulk/disable", {"mark": mark, "ids": "1,5,77"})
        self.assertIn("done for 0 of 3", answer.text)
        self.assertIn("it is gone", answer.text)
        self.assertIn("1 no longer registered", answer.text)

    def test_given_up(self) -> None:
        """If the client disconnects, every service is in the audit log, or in the number of those not begun."""
        for number in range(6, 31):
            self.rig.add(f"h{number}")
        self.rig.see()
        registry = self.rig.registry

        class Slow:
            """The registry, whose updates take a second."""

            def __getattr__(self, name: str) -> Any:
                return getattr(registry, name)

            def update(self, service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
                return deferLater(clock, 1.0, registry.update, service_id, changes)

        clock = self.rig.clock
        self.rig.backend._registry = Slow()  # type: ignore[assignment]
        form = urlencode({"mark": self.rig.mark(), "ids": ",".join(str(number) for number in range(1, 31))})
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(form))}
        connection = Connection(self.rig)
        with capturedLogs() as events:
            connection.send("POST", "/bulk/disable", headers, form)
            clock.pump([1.0, 0.5])
            connection.protocol.connectionLost(Failure(ConnectionDone()))
            clock.pump([1.0] * 5)
        outcomes = [(event["target"], event["outcome"]) for event in events if event.get("audit")]
        self.assertEqual(sorted(target for target, outcome in outcomes if outcome == "done"), self.names(1, 10))
        began = sorted(target for target, outcome in outcomes if outcome == CANCELLED_CHANGE)
        self.assertEqual(began, self.names(11, 20))
        self.assertIn(("10 other services", "not begun: cancelled by the client"), outcomes)
        self.assertEqual([formatEvent(event) for event in events if "log_failure" in event], [])

    def names(self, first: int, last: int) -> list[str]:
        return sorted(f"novasvc-agent@h{number}" for number in range(first, last + 1))

    def test_not_read(self) -> None:
        """A process that has not read the fleet reads it, and says so if it cannot, not that services are gone."""
        for outage in (None, DatabaseUnavailableError("mysql://db", "it is gone")):
            rig = PageRig(self, api_watch_interval=0)
            rig.add("h1")
            rig.registry.outage = outage
            asked = rig.ask("/bulk/disable?id=1")
            rig = PageRig(self, api_watch_interval=0)
            rig.add("h1")
            rig.registry.outage = outage
            done = rig.ask("/bulk/disable", {"mark": rig.mark(), "ids": "1"})
            if outage is None:
                self.assertEqual((asked.status, done.status), (200, 200))
                self.assertIn("done for 1 of 1", done.text)
            else:
                self.assertEqual((asked.status, done.status), (503, 503))
                self.assertIn("it is gone", done.text)

    def test_refused(self) -> None:
        """Nothing is changed without a selection, with too many, with an unknown action or a wrong CSRF token."""
        for path, said in (
            ("/bulk/disable", "no service is selected"),
            ("/bulk/disable?id=x&id=-1&id=99999999999999999999&id=77", "no service is selected"),
            ("/bulk/explode?id=1", "unknown action"),
            ("/bulk/drain?id=1", "unknown action"),
        ):
            answer = self.rig.ask(path)
            self.assertIn(answer.status, {400, 404})
            self.assertIn(said, answer.text)
        mark = self.rig.mark()
        with capturedLogs() as events:
            self.assertEqual(self.rig.ask("/bulk/disable", {"mark": "x", "ids": "1"}).status, 403)
            form = {"mark": mark, "ids": "1", "reason": "x" * 256}
            self.assertEqual(self.rig.ask("/bulk/disable", form).status, 400)
        told = [event["outcome"] for event in events if event.get("audit")]
        self.assertEqual(
            told,
            [
                "this form does not belong to your session; reload the page",
                "the reason has 256 characters; the maximum is 255",
            ],
        )
        self.assertFalse(self.row(1).disabled)

    def test_too_many(self) -> None:
        """At most a thousand services are changed at once."""
        for number in range(MAX_SERVICES):
            self.rig.add(f"more{number}")
        self.rig.see()
        answer = self.rig.ask("/bulk/disable?all=1")
        self.assertEqual(answer.status, 400)
        self.assertIn("1,005 services are selected; at most 1,000", answer.text)

    def test_reader(self) -> None:
        """A caller with the scope read has no check boxes, and may not act."""
        rig = PageRig(self, TOKENS)
        rig.add("h1")
        rig.see()
        text = rig.ask("/", X_Auth_Token=READERS).text
        self.assertIn("novasvc-agent", text)
        self.assertNotIn("checkbox", text)
        self.assertEqual(rig.ask("/bulk/disable?id=1", X_Auth_Token=READERS).status, 403)
        self.assertEqual(rig.ask("/bulk/disable", {"ids": "1"}, X_Auth_Token=READERS).status, 403)
