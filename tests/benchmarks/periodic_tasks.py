"""1,000 periodic tasks in one runner: how late their runs begin, and what that costs.

Half of the tasks are synchronous, half are coroutines that wait. Lateness is measured by the
tasks themselves, against the due times that their spacings promise. Three loads, in one run:

- "bare": the same methods on 1,000 bare LoopingCalls, all due at one moment. What Twisted itself
  takes; the others are to be compared with it.
- "herd": one runner, all tasks due at one moment: the worst case.
- "spread": one runner, spacings between one and ten seconds.
"""

import random
import time
from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater

from novasvc.context import RequestContext
from novasvc.periodic import TaskRunner, periodic_task

TASKS = 1000
SECONDS = 10
RUN_SECONDS = 0.1


async def measure(reactor: Any) -> dict[str, float]:
    """Put each load on the reactor for ten seconds.

    :param reactor: a running one, with nothing else to do.
    :return: for each load "<load>_runs", "<load>_p50_ms", "<load>_p99_ms" (lateness) and
        "<load>_cpu" (share of one processor); "missed" due times, of both runners;
        "herd_cost", the processor time of a run in "herd" over that in "bare".
    """
    source = random.Random(0)
    together = dict.fromkeys(_names(), 1.0)
    apart = {name: source.uniform(1, 10) for name in _names()}
    bare, _ = await _put(reactor, "bare", together, _bare)
    herd, herd_missed = await _put(reactor, "herd", together, _runner)
    spread, spread_missed = await _put(reactor, "spread", apart, _runner)
    cost = (herd["herd_cpu"] / herd["herd_runs"]) / (bare["bare_cpu"] / bare["bare_runs"])
    return {**bare, **herd, **spread, "missed": herd_missed + spread_missed, "herd_cost": cost}


_Stop = Callable[[], int]
_Start = Callable[[], _Stop]


async def _put(
    reactor: Any, load: str, spacings: Mapping[str, float], prepare: Callable[[Any, object], _Start]
) -> tuple[dict[str, float], int]:
    begun: list[tuple[str, float]] = []
    owner = _make_owner(reactor, spacings, begun)
    start = prepare(reactor, owner)
    cpu, started = time.process_time(), reactor.seconds()
    stop = start()
    await deferLater(reactor, SECONDS + 0.5)
    cpu, elapsed = time.process_time() - cpu, reactor.seconds() - started
    missed = stop()
    lateness = sorted((when - started) % spacings[name] * 1000 for name, when in begun)
    return {
        f"{load}_runs": len(begun),
        f"{load}_p50_ms": lateness[len(lateness) // 2],
        f"{load}_p99_ms": lateness[len(lateness) * 99 // 100],
        f"{load}_cpu": cpu / elapsed,
    }, missed


def _runner(reactor: Any, owner: object) -> _Start:
    runner = TaskRunner(owner, clock=reactor, random_source=random.Random(0))

    def start() -> _Stop:
        runner.start()
        return stop

    def stop() -> int:
        runner.stop()
        return sum(task.missed for task in runner.stats())

    return start


def _bare(reactor: Any, owner: object) -> _Start:
    def call(method: Callable[[Any], Any]) -> None:
        result = method(None)
        if isinstance(result, CoroutineType):
            Deferred.fromCoroutine(result)

    loops = [LoopingCall(call, getattr(owner, name)) for name in _names()]

    def start() -> _Stop:
        for loop in loops:
            loop.clock = reactor
            loop.start(1.0, now=False)
        return stop

    def stop() -> int:
        for loop in loops:
            loop.stop()
        return 0

    return start


def _names() -> list[str]:
    return [f"task{number}" for number in range(TASKS)]


def _make_owner(reactor: Any, spacings: Mapping[str, float], begun: list[tuple[str, float]]) -> object:
    def make(number: int, name: str) -> Callable[..., Any]:
        def quick(_self: object, _context: RequestContext) -> None:
            begun.append((name, reactor.seconds()))

        async def waiting(_self: object, _context: RequestContext) -> None:
            begun.append((name, reactor.seconds()))
            await deferLater(reactor, RUN_SECONDS)

        return periodic_task(spacing=spacings[name], name=name)(waiting if number % 2 else quick)

    return type("Owner", (), {name: make(number, name) for number, name in enumerate(_names())})()


if __name__ == "__main__":
    from twisted.internet.task import react

    async def _main(reactor: Any) -> None:
        for name, value in (await measure(reactor)).items():
            print(f"{name:16} {value:.4g}")

    react(_main)
