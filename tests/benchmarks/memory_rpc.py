"""How many calls a second go through one process: client, memory transport, server, and back.

The whole path is real: both JSON encodings both ways, context, dispatch, acknowledgement,
deadline. Nothing is asserted; the numbers are printed.
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.rpc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport

IN_FLIGHT = 64


class _Echo:
    @rpc.expose
    def echo(self, context: RequestContext, value: Any) -> Any:
        return value

    @rpc.expose
    async def echo_later(self, context: RequestContext, value: Any) -> Any:
        return value


async def measure(reactor: Any, seconds: float = 3.0) -> dict[str, float]:
    """Call plain methods and coroutines, 64 in flight, from coroutines on this reactor.

    :param reactor: running; provides IReactorTime.
    :param seconds: for each of the two.
    :return: {"calls/s, plain methods": calls, "calls/s, coroutines": calls}.
    """
    transport = MemoryTransport(MemoryBroker(), clock=reactor)
    await transport.open()
    server = rpc.Server(
        transport,
        Target("bench", "here"),
        rpc.Endpoints(_Echo()),
        clock=reactor,
        concurrency=IN_FLIGHT,
        run_blocking=_no_threads,
    )
    await server.start()
    client = rpc.Client(transport, clock=reactor).prepare(topic="bench")
    try:
        return {
            "calls/s, plain methods": await _rate(reactor, client, "echo", seconds),
            "calls/s, coroutines": await _rate(reactor, client, "echo_later", seconds),
        }
    finally:
        await client.close()
        await server.close()
        await transport.close()


async def _rate(reactor: Any, client: rpc.Client, method: str, seconds: float) -> float:
    context = RequestContext(user_id="bench")
    clock: Callable[[], float] = reactor.seconds
    began = clock()
    until = began + seconds

    async def caller() -> int:
        calls = 0
        while clock() < until:
            value = {"number": calls, "text": "h\u00e9llo"}
            if await client.call(context, method, value=value) != value:
                raise AssertionError(method)
            calls += 1
        return calls

    callers = [Deferred.fromCoroutine(caller()) for _ in range(IN_FLIGHT)]
    return sum(await gatherResults(callers)) / (clock() - began)


def _no_threads(*_: object) -> Deferred[Any]:
    raise AssertionError
