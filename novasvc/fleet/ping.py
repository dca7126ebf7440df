"""Ping many nodes, a bounded number at a time."""

from collections.abc import Callable, Iterator, Sequence

import attrs
from twisted.internet.defer import Deferred, gatherResults

from novasvc.fleet.calls import NodeCalls
from novasvc.fleet.errors import NodeFailedError
from novasvc.fleet.plan import MAX_CONCURRENT
from novasvc.registry.record import ServiceRecord


@attrs.frozen
class Pong:
    """What a ping has found.

    :param seconds: until the answer; None if there was none.
    :param problem: why there was none.
    """

    record: ServiceRecord
    seconds: float | None = None
    problem: str | None = None


async def ping_all(
    records: Sequence[ServiceRecord], calls: NodeCalls, seconds: float, answered: Callable[[Pong], object]
) -> list[Pong]:
    """Ping services, at most MAX_CONCURRENT at a time.

    :param seconds: that each has.
    :param answered: called with each result when it is known.
    :return: the results, in the order of the services.
    """
    found: dict[int, Pong] = {}

    async def work(left: Iterator[ServiceRecord]) -> None:
        for record in left:
            try:
                pong = Pong(record, seconds=await calls.ping(record, seconds))
            except NodeFailedError as error:
                pong = Pong(record, problem=error.problem)
            found[record.id] = pong
            answered(pong)

    left = iter(records)
    workers = [Deferred.fromCoroutine(work(left)) for _ in range(min(MAX_CONCURRENT, len(records)))]
    await gatherResults(workers, consumeErrors=True)
    return [found[record.id] for record in records]
