import json
import re
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.page.query import Query
from novasvc.api.page.stream import KEEPALIVE, MAX_VIEWERS, STALLED
from novasvc.api.page.view import View, Views
from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.record import ServiceChanges
from tests.support.page_rig import ADMINS, TOKENS, Connection, PageRig


class Stream:
    """A browser's stream of events."""

    def __init__(self, rig: PageRig, path: str = "/events", **headers: str) -> None:
        self.connection = Connection(rig)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.send("GET", path, named)
        rig.clock.advance(0)

    def leave(self) -> None:
        self.connection.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def first(self) -> Any:
        """Return the data of the first message."""
        return self.messages[0][2]

    @property
    def text(self) -> str:
        head, _, body = self.connection.octets.partition(b"\r\n\r\n")
        chunks = re.split(rb"(?:^|\r\n)[0-9a-f]+\r\n", body)
        return (head + b"\r\n\r\n" + b"".join(chunks)).decode()

    @property
    def messages(self) -> list[tuple[str, str, Any]]:
        """Return (event, id, data) of each."""
        found = re.findall(r"(?:id: (\S+)\n)?event: (\w+)\ndata: (.*)\n\n", self.text)
        return [(event, number, json.loads(data)) for number, event, data in found]

    @property
    def last(self) -> Any:
        """Return the data of the last one."""
        return self.messages[-1][2]


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = PageRig(self)
        self.addCleanup(lambda: self.successResultOf(_stopped(self.rig)))
        self.uuid = self.rig.add("h1")
        self.rig.see()

    def test_begins(self) -> None:
        """A stream begins with the retry time, then an update with the whole page and an id."""
        stream = Stream(self.rig)
        self.assertIn("content-type: text/event-stream; charset=utf-8", stream.text.lower())
        self.assertIn("\r\n\r\nretry: 2000\n\n", stream.text)
        event, number, data = stream.messages[0]
        self.assertEqual((event, data["id"]), ("news", number))
        self.assertEqual(
            {name: count for name, count in data["totals"].items() if count}, {"services": 1, "hosts": 1, "up": 1}
        )
        self.assertEqual(data["cells"], [[1, "up", False, data["cells"][0][3]]])
        self.assertEqual(data["trouble"], "")

    def test_tells_differences(self) -> None:
        """Each read yields an update with the changed cells and the new timeline entries as HTML."""
        stream = Stream(self.rig)
        self.rig.clock.advance(2)
        self.assertEqual((stream.last["cells"], stream.last["entries"]), ([], ""))
        self.rig.registry.update(1, ServiceChanges(forced_down=True))
        self.rig.clock.advance(2)
        self.assertEqual(stream.last["cells"][0][:3], [1, "forced down", False])
        self.assertIn(f'<a href="/node/{self.uuid}">novasvc-agent@h1</a> was forced down', stream.last["entries"])
        self.rig.clock.advance(2)
        self.assertEqual((stream.last["cells"], stream.last["entries"]), ([], ""))

    def test_tells_what_is_wrong(self) -> None:
        """An update has the problems if they have changed, and the squares of services that have."""
        stream = Stream(self.rig)
        self.rig.clock.advance(2)
        self.assertEqual((stream.last["problems"], stream.last["squares"]), (None, []))
        self.rig.registry.update(1, ServiceChanges(disabled=True, disabled_reason="<i>"))
        self.rig.clock.advance(2)
        self.assertEqual(stream.last["squares"], [[1, "o", "h1: disabled, <i>"]])
        self.assertIn("&lt;i&gt;", stream.last["problems"])
        self.assertEqual((stream.last["headline"], stream.last["wrong"]), ("Nothing is down: 1 disabled", 1))
        self.rig.registry.update(1, ServiceChanges(disabled=False))
        self.rig.clock.advance(2)
        self.assertEqual((stream.last["squares"], stream.last["problems"].strip()), ([[1, "", "h1"]], ""))
        self.assertEqual(stream.last["headline"], "Nothing is wrong: the one service is up")

    def test_comes_back(self) -> None:
        """A reconnecting viewer gets only what changed since its Last-Event-ID."""
        known = Stream(self.rig).messages[0][1]
        self.rig.add("h2")
        self.rig.clock.advance(2)
        for stream in (Stream(self.rig, Last_Event_ID=known), Stream(self.rig, f"/events?since={known}")):
            self.assertEqual([cell[0] for cell in stream.first["cells"]], [2])
            self.assertIn("novasvc-agent@h2", stream.first["entries"])

    def test_unknown_id(self) -> None:
        """An unknown Last-Event-ID gets the whole page."""
        for known in ("0badcafe-1-1", "x", "", "a-b-c", "-", "9" * 4000, f"{self.rig.add('h2')}-999999-1"):
            stream = Stream(self.rig, f"/events?since={known}")
            self.assertEqual(stream.first["cells"][0][0], 1, known)
            self.assertEqual(stream.first["entries"], "")

    def test_other_process(self) -> None:
        """A page that another API process has made loads its list and its map again only if they differ."""
        other = PageRig(self)
        for rig in (self.rig, other):
            if rig is other:
                rig.add("h1")
            rig.add("h2")
            rig.registry.update(2, ServiceChanges(forced_down=True))
        other.see()
        for _ in range(3):  # this process has been running for longer
            self.rig.see()
        text = other.ask("/").text
        (since,) = re.findall(r'data-since="([^"]+)"', text)
        news = json.loads(self.rig.ask(f"/events?poll=1&since={since}-0").text)
        self.assertEqual(re.findall(r'data-(?:layout|shape)="([^"]+)"', text), [news["shape"], news["layout"]])
        self.assertEqual((news["whole"], news["squares"]), (True, [[2, "f", "h2: forced down, by an operator"]]))
        known = json.loads(self.rig.ask(f"/events?poll=1&since={news['id']}").text)
        self.assertEqual((known["whole"], known["squares"]), (False, []))
        self.rig.add("h3")
        self.rig.see()
        news = json.loads(self.rig.ask(f"/events?poll=1&since={since}-0").text)
        self.assertNotIn(news["shape"], text)
        self.assertNotIn(news["layout"], text)

    def test_own_view(self) -> None:
        """An update has only cells of the viewer's own page."""
        self.rig.add("other")
        self.rig.see()
        stream = Stream(self.rig, "/events?q=other")
        self.rig.clock.advance(2)
        cells = {cell[0] for _, _, data in stream.messages for cell in data["cells"]}
        self.assertEqual(cells, {2})
        self.assertEqual(stream.last["totals"]["services"], 2)

    def test_in_turns(self) -> None:
        """Updates for many different queries are spread over several turns of the reactor."""
        clock, turns = self.rig.clock, []
        view, call_later = Views.view, clock.callLater

        def view_slowly(views: Views, query: Query) -> View:
            clock.rightNow += 0.02
            return view(views, query)

        def note_turns(seconds: float, call: Any, *args: Any, **more: Any) -> Any:
            if getattr(call, "__name__", "") == "_send_some":
                turns.append(call)
            return call_later(seconds, call, *args, **more)

        streams = [Stream(self.rig, f"/events?q={number}") for number in range(3)]
        before = [len(stream.messages) for stream in streams]
        self.patch(Views, "view", view_slowly)
        self.patch(clock, "callLater", note_turns)
        self.rig.see()
        told = [len(stream.messages) - known for stream, known in zip(streams, before, strict=True)]
        self.assertGreaterEqual(min(told), 1)
        self.assertGreaterEqual(len(turns), 2)

    def test_outage(self) -> None:
        """During an outage of the database viewers get the reason, and an update when it is over."""
        stream = Stream(self.rig)
        self.rig.registry.outage = DatabaseUnavailableError("mysql://db", "it is gone")
        self.rig.clock.pump([2.0] * 3)
        self.assertIn("it is gone", stream.last["trouble"])
        self.assertGreaterEqual(stream.last["old"], 4)
        self.rig.registry.outage = None
        self.rig.clock.advance(2)
        self.assertEqual((stream.last["trouble"], stream.last["old"]), ("", 0.0))

    def test_alive(self) -> None:
        """A stream without updates sends keepalives."""
        stream = Stream(self.rig)
        watch = self.rig.backend._services[0]
        watch.stopService()
        self.rig.clock.pump([1.0] * int(3 * KEEPALIVE))
        self.assertGreaterEqual([event for event, _, _ in stream.messages].count("alive"), 2)
        watch.startService()

    def test_gone(self) -> None:
        """Nothing is kept of a disconnected viewer; after the last one the watch reads less often."""
        stream = Stream(self.rig)
        streams = self.rig.backend._services[1]
        self.assertEqual(len(streams), 1)  # type: ignore[arg-type]
        stream.leave()
        self.assertEqual(len(streams), 0)  # type: ignore[arg-type]
        self.rig.clock.advance(2)
        version = self.rig.backend._services[0].version  # type: ignore[attr-defined]
        self.rig.clock.pump([1.0] * 8)
        self.assertEqual(self.rig.backend._services[0].version, version)  # type: ignore[attr-defined]

    def test_slow(self) -> None:
        """A viewer that does not read gets no updates, and is disconnected after a while."""
        stream = Stream(self.rig)
        producer = stream.connection.transport.producer
        producer.pauseProducing()
        size = len(stream.connection.octets)
        self.rig.clock.pump([1.0] * int(STALLED - 2))
        self.assertEqual(len(stream.connection.octets), size)
        self.rig.clock.pump([1.0] * 5)
        self.assertTrue(stream.connection.transport.disconnected)
        self.assertEqual(len(self.rig.backend._services[1]), 0)  # type: ignore[arg-type]

    def test_slow_for_a_while(self) -> None:
        """A viewer that resumes reading gets all it missed in one update."""
        stream = Stream(self.rig)
        producer = stream.connection.transport.producer
        producer.pauseProducing()
        self.rig.add("h2")
        self.rig.clock.pump([2.0] * 3)
        self.rig.registry.beat(1)
        producer.resumeProducing()
        self.rig.clock.pump([2.0])
        self.assertEqual(sorted(cell[0] for cell in stream.last["cells"]), [1, 2])
        self.assertIn("h2", stream.last["entries"])

    def test_bounded(self) -> None:
        """The number of streams is bounded; another one gets 503, and is told to poll."""
        streams = [Stream(self.rig) for _ in range(MAX_VIEWERS)]
        refused = self.rig.ask("/events")
        self.assertEqual((refused.status, refused.headers["retry-after"]), (503, "10"))
        self.assertIn("poll=1", refused.text)
        self.assertEqual(self.rig.ask("/events?poll=1").status, 200)
        streams[0].leave()
        self.assertEqual(Stream(self.rig).messages[0][0], "news")

    def test_poll(self) -> None:
        """Polling returns the same update as a stream."""
        first = json.loads(self.rig.ask("/events?poll=1").text)
        self.rig.registry.update(1, ServiceChanges(disabled=True, disabled_reason="<i>"))
        self.rig.see()
        second = json.loads(self.rig.ask(f"/events?poll=1&since={first['id']}").text)
        self.assertEqual([cell[:3] for cell in second["cells"]], [[1, "up", True]])
        self.assertIn("&lt;i&gt;", second["entries"])

    def test_head(self) -> None:
        """HEAD does not open a stream."""
        connection = Connection(self.rig)
        connection.send("HEAD", "/events", {})
        self.rig.clock.advance(0)
        self.assertIn(b"200 OK", connection.octets)
        self.assertEqual(len(self.rig.backend._services[1]), 0)  # type: ignore[arg-type]

    def test_stopped(self) -> None:
        """Streams end when the API stops."""
        stream = Stream(self.rig)
        self.successResultOf(_stopped(self.rig))
        self.assertTrue(stream.connection.octets.endswith(b"0\r\n\r\n"))


class GuardedStreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = PageRig(self, TOKENS)
        self.addCleanup(lambda: self.successResultOf(_stopped(self.rig)))
        self.rig.see()

    def test_nobody(self) -> None:
        """Without authentication there is neither a stream nor an update."""
        for path in ("/events", "/events?poll=1"):
            self.assertEqual(self.rig.ask(path).status, 401)

    def test_ends_with_session(self) -> None:
        """A stream ends with a final event when its session expires."""
        cookie = f"novasvc_session={self.rig.sessions.begin('ada', 'admin')}"
        stream = Stream(self.rig, Cookie=cookie)
        self.rig.clock.advance(2)
        self.assertEqual(stream.messages[-1][0], "news")
        self.rig.clock.advance(12 * 3600)
        self.rig.clock.advance(2)
        self.assertEqual(stream.messages[-1][0], "bye")
        self.assertTrue(stream.connection.octets.endswith(b"0\r\n\r\n"))

    def test_ends_with_logout(self) -> None:
        """Logging out ends the streams of the session, and no others."""
        mine, yours = (f"novasvc_session={self.rig.sessions.begin(name, 'admin')}" for name in ("ada", "bob"))
        streams = [Stream(self.rig, Cookie=cookie) for cookie in (mine, yours)]
        session = self.rig.sessions.read(mine.partition("=")[2])
        assert session is not None
        answer = self.rig.ask("/logout", {"mark": self.rig.sessions.csrf_token(session.id)}, Cookie=mine)
        self.assertEqual((answer.status, answer.headers["location"]), (303, "/login"))
        ended = [stream.connection.octets.endswith(b"0\r\n\r\n") for stream in streams]
        self.assertEqual(ended, [True, False])

    def test_token(self) -> None:
        """A stream can be authenticated by a token."""
        self.assertEqual(Stream(self.rig, X_Auth_Token=ADMINS).messages[0][0], "news")


def _stopped(rig: PageRig) -> Any:
    from twisted.internet.defer import Deferred  # noqa: PLC0415

    return Deferred.fromCoroutine(rig.backend.stop_services())
