from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.errors import APIError
from novasvc.api.page.description import NodeDescriptions, read_description
from novasvc.api.page.history import Sample, latencies, rates
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


class LineTests(SynchronousTestCase):
    def test_rates(self) -> None:
        """Rates are calls per second; None where a method was unknown or no time passed."""
        samples = [
            Sample(0, {}),
            Sample(2, {"m": (4, None)}),
            Sample(4, {"m": (10, None)}),
            Sample(4, {"m": (11, None)}),
        ]
        self.assertEqual(rates(samples, "m"), [None, 3.0, None])

    def test_latencies(self) -> None:
        """Latencies are those of the calls between two samples, not of all calls since the start."""
        samples = [Sample(0, {"m": (10, 1.0)}), Sample(2, {"m": (12, 5.0)}), Sample(4, {"m": (12, 5.0)})]
        self.assertEqual(latencies(samples, "m"), [2.0, None])

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


class PortraitsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.registry = MemoryRegistry(self.clock)
        self.asked: list[Deferred[Any]] = []

        async def ask(record: ServiceRecord) -> Any:
            self.asked.append(Deferred())
            return await self.asked[-1]

        self.descriptions = NodeDescriptions(ask, self.clock)
        self.record = self.register("h1")

    def register(self, host: str) -> ServiceRecord:
        return self.successResultOf(self.registry.register(host, "agent", "agent", 1))

    def get(self, record: ServiceRecord | None = None) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.descriptions.get(record or self.record))

    def test_one_question(self) -> None:
        """Concurrent viewers share one call; cancelling one of them does not affect the others."""
        first, second, third = self.get(), self.get(), self.get()
        self.assertEqual(len(self.asked), 1)
        first.cancel()
        self.failureResultOf(first)
        self.asked[0].callback({"pid": 1})
        for waiting in (second, third):
            self.assertEqual(self.successResultOf(waiting)[0]["pid"], 1)
        self.successResultOf(self.get())
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(1)
        self.get()
        self.assertEqual(len(self.asked), 2)

    def test_history(self) -> None:
        """Samples are kept per process."""
        for pid, calls in ((1, 0), (2, 100), (1, 6)):
            waiting = self.get()
            self.asked[-1].callback({"pid": pid, "methods": [method(calls, 0.5)]})
            _, samples = self.successResultOf(waiting)
            self.clock.advance(2)
        self.assertEqual(rates(samples, ".greet 1.0"), [1.5])
        self.assertEqual(latencies(samples, ".greet 1.0"), [0.5])

    def test_silence(self) -> None:
        """If a node does not answer, all waiting viewers get the error, and the next request calls it again."""
        waiting = [self.get(), self.get()]
        self.asked[0].errback(APIError(504, "it is silent"))
        for one in waiting:
            self.failureResultOf(one, APIError)
        self.clock.advance(1)
        again = self.get()
        self.asked[1].callback({"pid": 1})
        self.successResultOf(again)

    def test_bug(self) -> None:
        """An unexpected error reaches the viewer, and the next request calls the node again."""
        waiting = self.get()
        self.asked[0].errback(ZeroDivisionError())
        self.failureResultOf(waiting, ZeroDivisionError)
        self.clock.advance(1)
        again = self.get()
        self.asked[1].callback({})
        self.successResultOf(again)

    def test_bounded(self) -> None:
        """The numbers of cached nodes and processes are bounded."""
        for number in range(100):
            self.get(self.register(f"h{number}"))
            self.asked[-1].callback({"pid": number})
        for number in range(40):
            self.get()
            self.asked[-1].callback({"pid": number})
            self.clock.advance(1)
        self.assertEqual(len(self.descriptions._nodes), 64)
        self.assertEqual(len(self.descriptions._nodes[self.record.uuid].samples), 16)
