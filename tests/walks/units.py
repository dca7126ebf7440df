"""The units of work that are walked, each with the real code around it."""

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport

from novasvc import rpc
from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.login_links import LoginLinks
from novasvc.api.sessions import Sessions
from novasvc.api.site import make_api_root
from novasvc.api.tokens import Token, digest
from novasvc.context import RequestContext
from novasvc.http import make_site
from novasvc.periodic import TaskRunner, periodic_task
from novasvc.registry.heartbeat import Heartbeat, ServiceIdentity
from novasvc.registry.incarnation import ServiceStart
from novasvc.rpc.target import Target
from novasvc.testing import MemoryRegistry, memory_runtime
from novasvc.transport.amqp import AMQPTransport, BrokerAddress
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.support.incarnation_owner import Owner
from tests.walks.recorder import Recorder, Walk, record

WARM_UP = 3
"""Units before the first that is recorded: what is cached and opened by the first of them is there."""
ROUNDS = 9
"""Units that are recorded; the shortest counts."""
_POLL = 0.005
"""Seconds between two looks whether everything has arrived."""
_VALUE = {"number": 1, "text": "h\u00e9llo"}
_PEER = IPv4Address("TCP", "127.0.0.1", 4711)
_TOKEN = "the-token-of-walks"
_GET = (
    "GET /v2.1/os-services HTTP/1.1\r\nHost: 127.0.0.1:8774\r\nUser-Agent: walks\r\nAccept: application/json\r\n"
    f"X-Auth-Token: {_TOKEN}\r\nX-OpenStack-Nova-API-Version: 2.11\r\n\r\n"
).encode()


class _Echo:
    @rpc.expose
    def echo(self, _context: RequestContext, value: Any) -> Any:
        return value


class _Tasks:
    @periodic_task(spacing=10)
    def work(self, _context: RequestContext) -> None:
        _nothing()


def _nothing() -> None:
    """Do nothing."""


def _shortest(work: Callable[[], Any], prepare: Callable[[], Any] = _nothing) -> Walk:
    """Do a unit of work again and again, and return the shortest walk.

    :param prepare: called before each unit, and not recorded.
    """
    walks = []
    for _ in range(WARM_UP + ROUNDS):
        prepare()
        walks.append(record(work))
    return min(walks[WARM_UP:], key=len)


def rpc_memory() -> Walk:
    """One call over the memory transport, client and server together."""
    clock = Clock()
    transport = MemoryTransport(MemoryBroker(), clock=clock)
    _result(transport.open())
    server = _server(transport, clock)
    _result(server.start())
    client = rpc.Client(transport, clock=clock).prepare(topic="walks")
    context = RequestContext(user_id="walks")

    def call() -> None:
        calling = client.call(context, "echo", value=_VALUE)
        while not calling.called:
            clock.advance(0)
        assert _result(calling) == _VALUE

    return _shortest(call)


def os_services() -> Walk:
    """One GET /v2.1/os-services through the API's site: a token, one service, a registry in memory."""
    with _api() as (clock, registry, channel, wire):
        registry.beat(_result(registry.register("walks", "novasvc-agent", "agent", 1)).id)

        def get() -> None:
            wire.clear()
            channel.dataReceived(_GET)
            while b'"services"' not in wire.value():
                clock.advance(0.001)

        # Between two requests there is time enough for the list to be read anew.
        return _shortest(get, prepare=lambda: clock.advance(10.0))


def heartbeat() -> Walk:
    """One heartbeat to a registry in memory."""
    clock = Clock()
    registry = MemoryRegistry(clock)
    start = ServiceStart(host="walks", binary="novasvc-agent", topic="agent", version=1, owner="walks", machine="m1")
    record_ = _result(registry.begin(start))
    identity = ServiceIdentity("walks", "novasvc-agent", "agent", 1)
    Heartbeat(registry, identity, record_, clock, 10.0, Owner(), [_holds]).start()
    return _shortest(lambda: clock.advance(10.0))


def periodic_task_() -> Walk:
    """One run of one periodic task."""
    clock = Clock()
    runner = TaskRunner(_Tasks(), clock=clock, random_source=random.Random(7))
    runner.start()
    return _shortest(lambda: clock.advance(10.0))


async def rpc_amqp(reactor: Any, url: str) -> Walk:
    """One call over RabbitMQ, client and server in one process, each with its own transport, as in two processes.

    A call has ended when its result is there, the broker has confirmed request and reply, and the
    server has acknowledged its delivery.
    """
    ours, theirs = (AMQPTransport(BrokerAddress.parse(url), reactor=reactor) for _ in range(2))
    await ours.open()
    await theirs.open()
    server = _server(theirs, reactor)
    await server.start()
    client = rpc.Client(ours, clock=reactor).prepare(topic="walks")
    context = RequestContext(user_id="walks")
    recorder = Recorder()
    walks: list[Walk] = []
    try:
        for number in range(WARM_UP + ROUNDS):
            with recorder.recording():
                result = await client.call(context, "echo", value=_VALUE)
                await deferLater(reactor, _POLL)  # out of the turn in which the result came
            assert result == _VALUE
            while server.in_flight or len(ours._publisher) or len(theirs._publisher):
                with recorder.recording():
                    await deferLater(reactor, _POLL)
            walk = recorder.take()
            if number >= WARM_UP:
                walks.append(walk)
    finally:
        await client.close()
        await server.close()
        await theirs.close()
        await ours.close()
    return min(walks, key=len)


WITHOUT_SERVER: dict[str, Callable[[], Walk]] = {
    "rpc_memory": rpc_memory,
    "os_services": os_services,
    "heartbeat": heartbeat,
    "periodic_task": periodic_task_,
}
"""The walks that need no server, by name."""


def _server(transport: Any, clock: Any) -> rpc.Server:
    return rpc.Server(transport, Target("walks", "here"), rpc.Endpoints(_Echo()), clock=clock, run_blocking=_no_threads)


def _no_threads(*_: object) -> Deferred[Any]:
    raise AssertionError


def _holds() -> None:
    return None


def _result(deferred: Deferred[Any]) -> Any:
    """Return the result that a Deferred has already."""
    found: list[Any] = []
    deferred.addCallback(found.append)
    return found[0]


@contextmanager
def _api() -> Iterator[tuple[Clock, MemoryRegistry, Any, StringTransport]]:
    """Make the API, and a connection to it that stays open."""
    clock = Clock()
    clock.advance(1_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runtime = memory_runtime(clock, control_socket=folder / "control")
        backend = Backend(runtime)
        access = Access(
            (Token("walks", "read", digest(_TOKEN)),), Sessions(b"k" * 32, clock.seconds), LoginLinks(folder / "logins")
        )
        site = make_site(make_api_root(backend, access), reactor=clock)
        site.startFactory()
        backend.open()
        clock.advance(0)
        registry = backend.registry
        assert isinstance(registry, MemoryRegistry)
        wire = StringTransport(peerAddress=_PEER)
        channel = site.buildProtocol(_PEER)
        assert channel is not None
        channel.makeConnection(wire)
        try:
            yield clock, registry, channel, wire
        finally:
            site.stopFactory()
