from datetime import datetime, timedelta
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.page.problems import MAX_NAMED, Problems, find_problems, headline
from novasvc.api.service_status import Assessment, ServiceStatus, count_totals, status_of
from novasvc.registry.incarnation import Incarnation
from novasvc.registry.record import ServiceRecord
from tests.support.page_rig import assess_alone

LONG_AGO = datetime(2026, 1, 1)  # noqa: DTZ001
ASSESS = assess_alone(60.0)
NOW = datetime(2026, 11, 29, 12, 0, 0)  # noqa: DTZ001 - as in the database


def record(number: int = 1, state: str | None = None, *, age: float = 5.0, **fields: Any) -> ServiceRecord:
    """Return a row; with a state it has an incarnation that has been in it for 100 s."""
    incarnation = {name: fields.pop(name) for name in ("reason", "calls", "until", "zone", "tags") if name in fields}
    if state is not None:
        usual: dict[str, Any] = {"reason": None, "calls": 0, "until": None, "zone": None, "tags": ()}
        fields["incarnation"] = Incarnation(
            number=1, state=state, since=NOW - timedelta(seconds=100), machine="m1", pid=7, started_at=LONG_AGO,
            **{**usual, **incarnation},
        )  # fmt: skip
    usual = {
        "uuid": f"{number:036}", "host": f"h{number}", "binary": "agent", "topic": "agent", "disabled": False,
        "disabled_reason": None, "forced_down": False, "report_count": 1, "created_at": NOW, "updated_at": None,
        "last_seen_up": NOW - timedelta(seconds=age), "version": 1,
    }  # fmt: skip
    return ServiceRecord(id=number, age=age, **{**usual, **fields})


def status(row: ServiceRecord) -> ServiceStatus:
    return status_of(row, ASSESS(row), None, 1_000.0, 1, is_baseline=True)


class AssessTests(SynchronousTestCase):
    def test_states(self) -> None:
        """The state follows from the heartbeat, the operator and what the service says of itself."""
        for row, expected in (
            (record(), Assessment("up")),
            (record(age=70), Assessment("down", "no heartbeat", 70)),
            (record(age=70, last_seen_up=None, report_count=0), Assessment("down", "no heartbeat yet", 70)),
            (record(forced_down=True), Assessment("forced down", "by an operator")),
            (record(state="ready"), Assessment("up", "", 100)),
            (record(state="ready", age=70), Assessment("down", "no heartbeat", 70)),
            (record(state="starting"), Assessment("starting", "", 100)),
            (record(state="stopped"), Assessment("stopped", "cleanly", 100)),
            (record(state="stopped", age=9000, reason="by ada"), Assessment("stopped", "by ada", 100)),
            (record(state="failed", reason="no disk"), Assessment("failed", "no disk", 100)),
            (record(state="draining", calls=1), Assessment("draining", "1 call in flight", 100)),
        ):
            found = ASSESS(row)
            self.assertEqual((found.state, found.reason, found.age), (expected.state, expected.reason, expected.age))

    def test_failed_alike(self) -> None:
        """Services that failed for the same reason are one problem, although each names itself in its reason."""
        failed = "did not start; step init_host failed: OSError: no disk"
        services = [status(record(number, "failed", reason=f"agent@h{number} {failed}")) for number in (1, 2)]
        self.assertEqual([service.reason for service in services], [failed, failed])
        (problem,) = find_problems(services).shown
        self.assertEqual((problem.why, problem.count), (failed, 2))

    def test_drains_too_long(self) -> None:
        """A service that drains after its deadline is in trouble; one that drains within it is not."""
        for left, state, trouble in ((-10, "draining too long", True), (10, "draining", False)):
            row = record(state="draining", calls=3, until=NOW + timedelta(seconds=left))
            found = status(row)
            self.assertEqual((found.state, found.reason, found.is_trouble), (state, "3 calls in flight", trouble))

    def test_since(self) -> None:
        """A time that the row tells is kept from read to read; one that it does not tell is when it was seen."""
        row = record(age=70)
        first = status_of(row, ASSESS(row), None, 1000.0, 1, is_baseline=True)
        self.assertEqual(first.since, 930.0)
        later = attrs.evolve(row, age=72.01)
        self.assertEqual(status_of(later, ASSESS(later), first, 1002.0, 2, is_baseline=False).since, 930.0)
        forced = attrs.evolve(row, forced_down=True)
        unknown = status_of(forced, ASSESS(forced), None, 1000.0, 1, is_baseline=True)
        self.assertIsNone(unknown.since)
        seen = status_of(forced, ASSESS(forced), first, 1002.0, 2, is_baseline=False)
        self.assertEqual((seen.since, seen.turned), (1002.0, 2))

    def test_place(self) -> None:
        """Zone and tags are those of the node."""
        found = status(record(state="ready", zone="east", tags=("gpu",)))
        self.assertEqual((found.zone, found.tags), ("east", ("gpu",)))
        self.assertEqual((status(record()).zone, status(record()).tags), ("", ()))

    def test_totals(self) -> None:
        """Services that start or drain count as up."""
        states = ("ready", "starting", "draining", "stopped", "failed")
        totals = count_totals(status(record(number, state)) for number, state in enumerate(states))
        self.assertEqual((totals.services, totals.up, totals.stopped, totals.failed, totals.down), (5, 3, 1, 1, 0))


class ProblemsTests(SynchronousTestCase):
    def find(self, *rows: ServiceRecord) -> tuple[list[tuple[str, str, int]], Problems]:
        problems = find_problems([status(row) for row in rows])
        return [(problem.title, problem.why, problem.count) for problem in problems.shown], problems

    def test_worst_first(self) -> None:
        """Problems are grouped by what is wrong and why, the worst first; what works is left out."""
        found, _ = self.find(
            record(1, disabled=True, disabled_reason="new disk"),
            record(2, age=99),
            record(3, disabled=True, disabled_reason="new disk"),
            record(4, "failed", reason="no disk"),
            record(5, forced_down=True),
            record(6, "starting"),
            record(7, "stopped"),
            record(8, age=99, disabled=True),
            record(9),
            record(10, "draining", calls=2, until=NOW - timedelta(seconds=9)),
            record(11, "draining", calls=3, until=NOW - timedelta(seconds=9)),
        )
        self.assertEqual(
            found,
            [
                ("failed", "no disk", 1),
                ("down", "no heartbeat", 1),
                ("draining too long", "", 2),
                ("forced down", "by an operator", 1),
                ("down", "no heartbeat; disabled: no reason given", 1),
                ("stopped", "cleanly", 1),
                ("disabled", "new disk", 2),
            ],
        )

    def test_many(self) -> None:
        """Of many services a few are named, and all are counted."""
        _, problems = self.find(*(record(number, age=99) for number in range(MAX_NAMED + 10)))
        (problem,) = problems.shown
        self.assertEqual((problem.count, len(problem.affected), problem.url), (40, 12, "/?state=down"))
        rows = (record(number, disabled=True, disabled_reason=f"reason {number}") for number in range(100))
        _, problems = self.find(*rows)
        self.assertEqual((len(problems.shown), problems.count), (20, 100))
        self.assertEqual(problems.shown[0].url, "/?q=reason+0&state=disabled")

    def test_headline(self) -> None:
        """The headline says what is wrong, or that nothing is."""
        for rows, expected in (
            ([], "No service has registered yet"),
            ([record(1)], "Nothing is wrong: the one service is up"),
            ([record(1), record(2)], "Nothing is wrong: all 2 services are up"),
            ([record(1), record(2, "draining")], "Nothing is wrong: 1 up, 1 draining"),
            ([record(1), record(2, disabled=True)], "Nothing is down: 1 up, 1 disabled"),
            ([record(1, age=99), record(2, disabled=True), record(3, "failed")], "1 failed, 1 down"),
        ):
            services = [status(row) for row in rows]
            self.assertEqual(headline(services, find_problems(services)), expected)
