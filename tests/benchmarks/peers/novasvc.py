"""novasvc, on its AMQP transport at default options: a manager's exposed method, the full way.

Envelope, context with a request id, dispatch by name, version check, a deadline of 60 seconds on
each call, publisher confirms on every message, mandatory publishing, acknowledgement.
As many coroutines call as there are calls in flight.

Roles beyond those of all peers:

- ``cast URL IN_FLIGHT SECONDS``: READY, casts for that long, then {"casts": int, "seconds": float}
  when the server has run them all.
- ``fill URL COUNT``: casts that many to whoever comes later, then READY.
- ``serve_later URL``: READY when connected, serves from the next line on stdin on.
- ``load URL IN_FLIGHT``: READY, calls until there is a line on stdin, then {"calls": int, "failed": int,
  "longest_ms": float}; each failure is a line on stderr.
- ``drain URL COUNT``: READY; from the next line on stdin on it waits until the server has run that
  many casts, then {"casts": int}.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import NovasvcError
from novasvc.manager import Manager
from novasvc.rpc.target import Target
from novasvc.run.process_tree import tune_garbage_collector
from novasvc.transport.amqp import AMQPTransport, BrokerAddress
from tests.benchmarks.peers.command import PAYLOAD, TOPIC, Window, ready, run

FILL_IN_FLIGHT = 256
POLL_SECONDS = 0.01
LOAD_TIMEOUT = 10.0

Main = Callable[[Any, AMQPTransport], Awaitable[None]]


class EchoManager(Manager):
    """Echoes, and counts what was cast to it."""

    noted = 0

    @rpc.expose
    def echo(self, context: RequestContext, value: Any) -> Any:
        """Return what came."""
        return value

    @rpc.expose
    def note(self, context: RequestContext, value: Any) -> None:
        """Count."""
        self.noted += 1

    @rpc.expose
    def count(self, context: RequestContext) -> int:
        """Return how many notes ran."""
        return self.noted


def serve(url: str) -> None:
    """Echo, and count."""

    async def main(reactor: Any, transport: AMQPTransport) -> None:
        await _server(reactor, transport).start()
        ready()
        await _stopped(reactor)

    _run(url, main)


def serve_later(url: str) -> None:
    """Connect; serve when told to."""

    async def main(reactor: Any, transport: AMQPTransport) -> None:
        server = _server(reactor, transport)
        ready()
        await deferToThread(sys.stdin.readline)
        await server.start()
        await _stopped(reactor)

    _run(url, main)


def call(url: str, in_flight: int, window: Window) -> None:
    """Have that many coroutines call one after another."""

    async def main(reactor: Any, transport: AMQPTransport) -> None:
        client, context = _client(reactor, transport), RequestContext(user_id="benchmark")

        async def caller() -> None:
            while not window.over:
                sent = perf_counter()
                window.answered(sent, await client.call(context, "echo", value=PAYLOAD))

        await _together(in_flight, caller)

    _run(url, main)


def cast(url: str, in_flight: str, seconds: str) -> None:
    """Have that many coroutines cast one after another; see how long all took to run."""

    async def main(reactor: Any, transport: AMQPTransport) -> None:
        client, context = _client(reactor, transport), RequestContext(user_id="benchmark")
        casts = 0

        async def caller() -> None:
            nonlocal casts
            while perf_counter() < began + float(seconds):
                await client.cast(context, "note", value=PAYLOAD)
                casts += 1

        ready()
        began = perf_counter()
        await _together(int(in_flight), caller)
        await _noted(reactor, client, casts)
        print(json.dumps({"casts": casts, "seconds": perf_counter() - began}), flush=True)

    _run(url, main)


def fill(url: str, count: str) -> None:
    """Cast that many; nobody serves."""

    async def main(reactor: Any, transport: AMQPTransport) -> None:
        client, context = _client(reactor, transport), RequestContext(user_id="benchmark")
        casts = 0

        async def caller() -> None:
            nonlocal casts
            while casts < int(count):
                casts += 1
                await client.cast(context, "note", value=PAYLOAD)

        await _together(FILL_IN_FLIGHT, caller)
        ready()

    _run(url, main)


def drain(url: str, count: str) -> None:
    """Wait until that many casts ran."""

    async def main(reactor: Any, transport: AMQPTransport) -> None:
        ready()
        await deferToThread(sys.stdin.readline)
        await _noted(reactor, _client(reactor, transport), int(count))
        print(json.dumps({"casts": int(count)}), flush=True)

    _run(url, main)


def load(url: str, in_flight: str) -> None:
    """Have that many coroutines call one after another until told to end, whatever happens to their calls."""

    async def main(reactor: Any, transport: AMQPTransport) -> None:
        client, context = _client(reactor, transport).prepare(timeout=LOAD_TIMEOUT), RequestContext(user_id="benchmark")
        calls = failed = 0
        longest = 0.0

        async def caller() -> None:
            nonlocal calls, failed, longest
            while not told.called:
                sent = perf_counter()
                try:
                    answered = await client.call(context, "echo", value=PAYLOAD) == PAYLOAD
                except NovasvcError as error:
                    answered = False
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)
                calls += 1
                failed += not answered
                longest = max(longest, perf_counter() - sent)

        ready()
        told = deferToThread(sys.stdin.readline)
        await _together(int(in_flight), caller)
        print(json.dumps({"calls": calls, "failed": failed, "longest_ms": longest * 1000}), flush=True)

    _run(url, main)


def _stopped(reactor: Any) -> Deferred[None]:
    """Wait for SIGTERM."""
    stopped: Deferred[None] = Deferred()
    reactor.addSystemEventTrigger("before", "shutdown", stopped.callback, None)
    return stopped


async def _noted(reactor: Any, client: rpc.Client, count: int) -> None:
    while await client.call(RequestContext(), "count") < count:
        await deferLater(reactor, POLL_SECONDS)


async def _together(number: int, caller: Callable[[], Any]) -> None:
    await gatherResults([Deferred.fromCoroutine(caller()) for _ in range(number)], consumeErrors=True)


def _server(reactor: Any, transport: AMQPTransport) -> rpc.Server:
    endpoints = rpc.Endpoints(EchoManager("server"))
    return rpc.Server(transport, Target(TOPIC, "server"), endpoints, clock=reactor, run_blocking=deferToThread)


def _client(reactor: Any, transport: AMQPTransport) -> rpc.Client:
    return rpc.Client(transport, clock=reactor).prepare(topic=TOPIC)


def _run(url: str, main: Main) -> None:
    async def connected(reactor: Any) -> None:
        transport = AMQPTransport(BrokerAddress.parse(url), reactor=reactor)
        await transport.open()
        tune_garbage_collector()  # as a node does when it has started
        try:
            await main(reactor, transport)
        finally:
            await transport.close()

    warnings = LogLevelFilterPredicate(LogLevel.warn)
    observer = FilteringLogObserver(textFileLogObserver(sys.stderr), [warnings])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    react(connected)


if __name__ == "__main__":
    run(serve, call, cast=cast, fill=fill, serve_later=serve_later, load=load, drain=drain)
