from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.errors import APIError
from novasvc.api.page.description import NodeDescriptions, read_description
from novasvc.api.page.history import read_history
from novasvc.api.page.node_search import NodeSearch
from novasvc.api.page.rendering import duration, span, sparkline
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.record import ServiceRecord


def method(calls: int, mean: float | None = None, name: str = "greet") -> dict[str, Any]:
    return {"method": name, "namespace": None, "version": "1.0", "calls": calls, "mean": mean}


class ReadTests(SynchronousTestCase):
    def test_types(self) -> None:
        """Fields of another type, and numbers that cannot be shown, are dropped."""
        description = read_description(
            {"pid": 7, "uptime": float("nan"), "version": 3, "worker": True, "in_flight": 2.0}
        )
        self.assertEqual((description["pid"], description["in_flight"]), (7, 2))
        self.assertEqual([description[name] for name in ("uptime", "version", "worker", "state")], [None] * 4)

    def test_bounded(self) -> None:
        """The sizes of tables and texts from a node are bounded."""
        description = read_description({"methods": [method(1)] * 9999, "events": [{"text": "x" * 9999}]})
        self.assertEqual((len(description["methods"]), len(description["events"][0]["text"])), (200, 500))


class HistoryTests(SynchronousTestCase):
    def test_series(self) -> None:
        """Rates are calls per second; durations those of the calls of each interval, None where there were none."""
        row = {"method": "greet", "namespace": None, "version": "1.0", "calls": [20, 0, 5], "seconds": [10.0, 0.0, 5.0]}
        history = read_history({"interval": 10, "length": 3, "methods": [row]})
        series = history.of(method(25))
        self.assertEqual((series.rates, series.durations), ([2.0, 0.0, 0.5], [0.5, None, 1.0]))
        self.assertAlmostEqual(series.rate or 0, 2.5 / 3)
        self.assertEqual(history.seconds, 30)

    def test_not_called(self) -> None:
        """A method that is not in the history was not called; without a history its rate is unknown."""
        told = read_history({"interval": 10, "length": 3, "methods": []})
        self.assertEqual(told.of(method(0)).rate, 0.0)
        self.assertIsNone(read_history(None).of(method(0)).rate)

    def test_nonsense(self) -> None:
        """Whatever a node answers becomes a history, of bounded size."""
        for answer in (None, [], "x", {"interval": 0}, {"interval": "x", "length": 3, "methods": []}, {"methods": 7}):
            self.assertEqual(read_history(answer).seconds, 0)
        rows = [
            {"method": str(number), "calls": [float("nan"), True, "x", -4] * 999, "seconds": [1]}
            for number in range(999)
        ]
        told = read_history({"interval": 10, "length": 1e9, "methods": [*rows, None, 7]})
        self.assertEqual((len(told.series), told.seconds), (0, 10_000))


class SearchTests(SynchronousTestCase):
    def test_filters(self) -> None:
        """Events are filtered by kind and text, newest first; errors by text."""
        events = [
            {"kind": "call", "text": "greet", "outcome": "done", "request_id": "req-1"},
            {"kind": "call", "text": "count: ValueError", "outcome": "failed", "request_id": "req-2"},
            {"kind": "task", "text": "sweep", "outcome": "running"},
            {"kind": "broker", "text": "connected"},
        ]
        errors = [{"method": "greet", "error": "ValueError"}, {"method": "count", "text": "no GREETING"}]
        description = read_description({"events": events, "errors": errors})
        for kind, text, expected in (
            ("", "", ["connected", "sweep", "count: ValueError", "greet"]),
            ("call", "", ["count: ValueError", "greet"]),
            ("task", "", ["sweep"]),
            ("problem", "", ["count: ValueError"]),
            ("other", "", ["connected"]),
            ("nonsense", "REQ-1", ["greet"]),
        ):
            search = NodeSearch.read({b"kind": [kind.encode()], b"find": [text.encode()]})
            self.assertEqual([event["text"] for event in search.events(description)], expected)
        search = NodeSearch.read({b"find": [b"greet"]})
        self.assertEqual([error["method"] for error in search.errors(description)], ["count", "greet"])


class LineTests(SynchronousTestCase):
    def test_sparkline(self) -> None:
        """A sparkline has a point for each value, a gap for None, and an escaped label."""
        line = str(sparkline([0.0, 5.0, None, 2.5], 'rate of "x"'))
        self.assertIn('d="M0.0 22.0L40.0 2.0M120.0 12.0L120.0 12.0"', line)
        self.assertIn('aria-label="rate of &#34;x&#34;"', line)
        self.assertIn('d=""', str(sparkline([], "")))

    def test_words(self) -> None:
        """Spans and durations are formatted for people."""
        spans = [span(seconds) for seconds in (-5, 0, 119.9, 120, 7199, 7200, 172800, None)]
        self.assertEqual(spans, ["0 s", "0 s", "119 s", "2 min", "119 min", "2 h", "2 d", "?"])
        durations = [duration(seconds) for seconds in (0.00034, 0.0032, 0.25, 1.5, 300)]
        self.assertEqual(durations, ["340 µs", "3.2 ms", "250 ms", "1.50 s", "5 min"])


class DescriptionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.registry = MemoryRegistry(self.clock)
        self.asked: list[tuple[str, Deferred[Any]]] = []

        async def ask(record: ServiceRecord, method: str) -> Any:
            self.asked.append((method, Deferred()))
            return await self.asked[-1][1]

        self.descriptions = NodeDescriptions(ask, self.clock)
        self.record = self.register("h1")

    def register(self, host: str) -> ServiceRecord:
        return self.successResultOf(self.registry.register(host, "agent", "agent", 1))

    def get(self, record: ServiceRecord | None = None) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.descriptions.get(record or self.record))

    def answer(self, method: str, result: Any) -> None:
        """Answer the question of this method that waits."""
        (waiting,) = [one for name, one in self.asked if name == method and not one.called]
        waiting.callback(result)

    def test_one_question(self) -> None:
        """Concurrent viewers share one call; cancelling one of them does not affect the others."""
        first, second, third = self.get(), self.get(), self.get()
        self.assertEqual([method for method, _ in self.asked], ["describe", "history"])
        first.cancel()
        self.failureResultOf(first)
        self.answer("describe", {"pid": 1})
        self.answer("history", {})
        for waiting in (second, third):
            self.assertEqual(self.successResultOf(waiting)[0]["pid"], 1)
        self.successResultOf(self.get())
        self.assertEqual(len(self.asked), 2)
        self.clock.advance(1)
        self.get()
        self.assertEqual([method for method, _ in self.asked], ["describe", "history", "describe"])

    def test_history_is_kept(self) -> None:
        """The history is asked for every ten seconds."""
        self.get()
        self.answer("describe", {})
        self.answer("history", {"interval": 10, "length": 3, "methods": []})
        self.clock.advance(9.9)
        waiting = self.get()
        self.answer("describe", {})
        self.assertEqual(self.successResultOf(waiting)[1].seconds, 30)
        self.clock.advance(0.1)
        self.get()
        self.assertEqual([method for method, _ in self.asked].count("history"), 2)

    def test_no_history(self) -> None:
        """A node of an earlier version, which does not know the question, is shown without a history."""
        waiting = self.get()
        self.answer("describe", {"pid": 1})
        self.answer("history", Failure(APIError(502, "there is no such method")))
        description, history = self.successResultOf(waiting)
        self.assertEqual((description["pid"], history.seconds), (1, 0))

    def test_silence(self) -> None:
        """If a node does not answer, all waiting viewers get the error at once, and the next request calls it again."""
        waiting = [self.get(), self.get()]
        self.answer("describe", Failure(APIError(504, "it is silent")))
        for one in waiting:
            self.failureResultOf(one, APIError)
        self.clock.advance(1)
        again = self.get()
        self.answer("describe", {"pid": 1})
        self.answer("history", {})
        self.successResultOf(again)

    def test_bug(self) -> None:
        """An unexpected error reaches the viewer, and the next request calls the node again."""
        waiting = self.get()
        self.answer("describe", Failure(ZeroDivisionError()))
        self.failureResultOf(waiting, ZeroDivisionError)
        self.clock.advance(1)
        self.get()
        self.assertEqual([method for method, _ in self.asked].count("describe"), 2)

    def test_bounded(self) -> None:
        """The number of cached nodes is bounded."""
        for number in range(100):
            self.get(self.register(f"h{number}"))
        self.assertEqual(len(self.descriptions._nodes), 64)
