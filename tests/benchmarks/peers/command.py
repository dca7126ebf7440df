"""What all peers have in common: two roles, one small protocol, one payload.

``python -m tests.benchmarks.peers.NAME serve URL`` prints READY when a call could arrive, and
serves until SIGTERM. ``... call URL IN_FLIGHT WARM_UP SECONDS`` calls as fast as it can with that
many calls outstanding, prints READY when the warm-up is over and the measuring begins, and at its
end one JSON object: {"calls": int, "seconds": float, "p50_ms": float, "p99_ms": float}. Whoever
started both reads their processor time and memory at these two lines.
"""

import json
import sys
from array import array
from collections.abc import Callable
from time import perf_counter

TOPIC = "benchmark"

PAYLOAD = {
    "host": "compute-0017.example.org",
    "state": "active",
    "text": "h\u00e9llo",
    "number": 4711,
    "load": [0.25, 1.5, 12],
}
"""About 100 bytes of JSON. Every call carries it, and every reply has to be equal to it."""


class Window:
    """The time in which calls count: after a warm-up, for some seconds.

    :param warm_up: seconds from now.
    :param seconds: to measure, from the first reply after the warm-up.
    """

    def __init__(self, warm_up: float, seconds: float) -> None:
        self.over = False
        self._seconds = seconds
        self._began = 0.0
        self._warm = perf_counter() + warm_up
        self._latencies = array("d")

    def answered(self, sent: float, reply: object) -> None:
        """Count a call whose reply came now.

        :param sent: perf_counter() when the call was made.
        :param reply: has to be the payload.
        """
        now = perf_counter()
        if reply != PAYLOAD:
            raise ValueError(f"the echo of {PAYLOAD} is {reply}")
        if self._began:
            if now < self._began + self._seconds:
                self._latencies.append(now - sent)
            elif not self.over:
                self.over = True
                self._report(now)
        elif now >= self._warm:
            self._began = now
            ready()

    def _report(self, now: float) -> None:
        latencies = sorted(self._latencies)
        count = len(latencies)
        figures = {
            "calls": count,
            "seconds": now - self._began,
            "p50_ms": latencies[count // 2] * 1000,
            "p99_ms": latencies[count * 99 // 100] * 1000,
        }
        print(json.dumps(figures), flush=True)


def ready() -> None:
    """Tell who started this process."""
    print("READY", flush=True)


def run(
    serve: Callable[[str], None],
    call: Callable[[str, int, Window], None],
    **others: Callable[..., None],
) -> None:
    """Take the role that the command line names.

    :param serve: takes the broker's URL, amqp://user:password@host:port/vhost.
    :param call: takes the URL, the number of calls in flight, and the window; ends when that is over.
    :param others: further roles; each takes its words.
    """
    match sys.argv[1:]:
        case ["serve", url]:
            serve(url)
        case ["call", url, in_flight, warm_up, seconds]:
            call(url, int(in_flight), Window(float(warm_up), float(seconds)))
        case [role, *words] if role in others:
            others[role](*words)
        case _:
            sys.exit(__doc__)
