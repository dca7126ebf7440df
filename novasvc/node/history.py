"""What the methods of a node did in the last half hour: a bounded ring, there before anybody looks."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from novasvc.rpc.endpoint import Method
from novasvc.telemetry.metrics import DeliveryMetrics, MethodMetrics

_log = Logger()

INTERVAL = 10.0
"""Seconds of one entry."""
LENGTH = 180
"""Entries: half an hour."""

NO_HISTORY: dict[str, Any] = {"interval": INTERVAL, "newest": 0, "length": 0, "methods": []}
"""The history of a node that does not serve."""

_Figures = tuple[int, int, float]
"""Calls that have ended, errors among them, and their seconds in all."""


class MethodHistory:
    """Notes every INTERVAL seconds what each method has done since. Methods that did nothing take no memory.

    Intervals are numbered by the reactor's clock. That is the monotonic clock of the host, so the workers of a host
    number them alike, and their histories can be added up.

    :param metrics: of the methods.
    :param deliveries: counts the messages that were quarantined.
    """

    def __init__(
        self, metrics: Mapping[Method, MethodMetrics], deliveries: DeliveryMetrics, clock: IReactorTime
    ) -> None:
        self._metrics = {method: one for method, one in metrics.items() if method.exposure.counted}
        self._deliveries = deliveries
        self._clock = clock
        self._before: dict[Method, _Figures] = {}
        self._quarantined = deliveries.quarantined.value
        self._entries: deque[tuple[int, dict[Method, _Figures], int]] = deque(maxlen=LENGTH)
        self._began = self._number()
        self._ticking = LoopingCall(self.note)
        self._ticking.clock = clock
        self._ended: Deferred[Any] | None = None

    def start(self) -> None:
        """Begin to note."""
        for method in self._metrics:
            self._before[method] = self._figures(method)  # counters are the process's: an earlier node may have counted
        self._ended = self._ticking.start(INTERVAL, now=False)
        self._ended.addErrback(lambda failure: _log.failure("the history of methods ends", failure))

    def stop(self) -> None:
        """Stop noting."""
        if self._ticking.running:
            self._ticking.stop()

    def note(self) -> None:
        """Note what has happened since the last time."""
        happened = {}
        for method in self._metrics:
            now, before = self._figures(method), self._before.get(method, (0, 0, 0.0))
            if now != before:
                self._before[method] = now
                happened[method] = (now[0] - before[0], now[1] - before[1], now[2] - before[2])
        quarantined = self._deliveries.quarantined.value
        more, self._quarantined = int(quarantined - self._quarantined), quarantined
        if happened or more:
            self._entries.append((self._number(), happened, more))

    @property
    def quarantined(self) -> int:
        """Messages that were quarantined in the last half hour."""
        oldest = self._number() - LENGTH
        noted = sum(more for number, _, more in self._entries if number > oldest)
        return noted + int(self._deliveries.quarantined.value - self._quarantined)

    def rows(self) -> dict[str, Any]:
        """Return the history.

        :return: JSON: {"interval": seconds, "newest": number of the last interval, "methods": [{"method", "namespace":
            str or None, "version", "calls": [int], "errors": [int], "seconds": [float]}]}. The lists have one figure
            for each interval of the last half hour, or since the start if that was later, the newest last.
        """
        newest = self._number() - 1  # the one that goes on is not complete
        first = max(newest - LENGTH + 1, self._began)
        length = max(0, newest - first + 1)
        found: dict[Method, dict[str, list[Any]]] = {}
        for number, happened, _ in self._entries:
            place = min(number - first, length - 1)
            if place < 0:
                continue
            for method, (calls, errors, seconds) in happened.items():
                if method not in found:
                    found[method] = {"calls": [0] * length, "errors": [0] * length, "seconds": [0.0] * length}
                row = found[method]
                row["calls"][place] += calls
                row["errors"][place] += errors
                row["seconds"][place] = round(row["seconds"][place] + seconds, 6)
        return {
            "interval": INTERVAL,
            "newest": newest,
            "length": length,
            "methods": [{**name_of(method), **row} for method, row in found.items()],
        }

    def _figures(self, method: Method) -> _Figures:
        one = self._metrics[method]
        errors = one.failed.value + one.timed_out.value
        return int(one.done.value + one.expected.value + errors), int(errors), one.seconds.sum

    def _number(self) -> int:
        return int(self._clock.seconds() // INTERVAL)


def name_of(method: Method) -> dict[str, Any]:
    """Return what identifies a method: {"method", "namespace": str or None, "version"}."""
    return {
        "method": method.name,
        "namespace": method.exposure.namespace,
        "version": ".".join(map(str, method.version[:2])),
    }
