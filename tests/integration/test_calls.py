"""Tests for gathers, cancellation and progress of calls over RabbitMQ and between the processes of a host."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.trial.unittest import TestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.reactor.threads import BlockingPool
from novasvc.rpc.target import Target
from novasvc.transport.local import HostSockets, LocalTransport
from novasvc.transport.memory import MemoryBroker
from tests.faults.amqp_rig import PATIENCE, AMQPCase
from tests.support.waiting import until

CONTEXT = RequestContext(request_id="req-1")


class Desk:
    """What each server serves."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.cancelled = 0
        self.waiting: list[Deferred[Any]] = []
        self.go = threading.Event()

    @rpc.expose
    def hang(self, context: RequestContext, what: Any = None) -> Deferred[Any]:
        self.begun.append(what)
        self.waiting.append(Deferred(self._count))
        return self.waiting[-1]

    @rpc.expose(idempotent=True)
    def hang_again(self, context: RequestContext, what: Any = None) -> Deferred[Any]:
        return self.hang(context, what)

    def _count(self, _: object) -> None:
        self.cancelled += 1

    @rpc.expose
    def where(self, context: RequestContext) -> int:
        self.begun.append("where")
        return id(self)

    @rpc.expose(blocking=True)
    def copy(self, context: RequestContext) -> str:
        context.progress(0.25, "first")
        self.go.wait(PATIENCE)
        return "copied"


class Suite:
    """The tests; a subclass has transports."""

    id: Callable[[], str]
    assertEqual: Any  # noqa: N815 - trial's
    assertFailure: Any  # noqa: N815
    addCleanup: Any  # noqa: N815

    async def transport(self) -> Any:
        """Return an open transport of another process."""
        raise NotImplementedError

    async def start(self, server: str = "h1", concurrency: int = 64) -> Desk:
        desk = Desk()
        self.addCleanup(desk.go.set)
        serving = rpc.Server(
            await self.transport(),
            Target("desk", server),
            rpc.Endpoints(desk),
            clock=reactor,
            concurrency=concurrency,
            run_blocking=BlockingPool(reactor, threads=2).run_blocking,
        )
        self.addCleanup(serving.close)
        await serving.start()
        return desk

    async def caller(self, **given: Any) -> rpc.Client:
        client = rpc.Client(await self.transport(), clock=reactor, timeout=PATIENCE, **given)
        self.addCleanup(client.close)
        return client.prepare(topic="desk")

    async def test_cancel(self) -> None:
        """A cancelled call cancels the method in the worker that runs it; the others go on."""
        desks = [await self.start(), await self.start(), await self.start("h2")]
        client = await self.caller()
        for target in (client, client.prepare(server="h1"), client.prepare(server="h2")):
            for desk in desks:
                desk.begun, desk.cancelled = [], 0
            calls = [target.call(CONTEXT, method) for method in ("hang", "hang_again") * 3]
            await until(lambda: sum(len(desk.begun) for desk in desks) == 6)
            for number, calling in enumerate(calls, 1):
                calling.cancel()
                await self.assertFailure(calling, CancelledError)
                await until(lambda number=number: sum(desk.cancelled for desk in desks) == number)

    async def test_cancel_waiting(self) -> None:
        """A cancelled request that waits in a full server, or in the queue, never begins."""
        desk = await self.start(concurrency=2)
        client = await self.caller()
        running = [client.call(CONTEXT, "hang_again", what="first") for _ in range(2)]
        await until(lambda: len(desk.begun) == 2)
        cancelled = [client.call(CONTEXT, "hang_again", what="cancelled") for _ in range(6)]
        last = client.call(CONTEXT, "where")
        for calling in cancelled:
            calling.cancel()
            await self.assertFailure(calling, CancelledError)
        # The cancellations may arrive only after what is let go now; a last one shows that all of them have.
        running[0].cancel()
        await self.assertFailure(running[0], CancelledError)
        await until(lambda: desk.cancelled == 1)
        desk.waiting[1].callback(None)
        await last
        await running[1]
        self.assertEqual(desk.begun, ["first", "first", "where"])

    async def test_gather(self) -> None:
        """Each host answers once, however many workers it has, and who is missing is named."""
        desks = [await self.start("h1"), await self.start("h1"), await self.start("h2")]
        client = await self.caller(hosts=lambda topic: succeed({"h1", "h2"}))
        for _ in range(10):
            gathered = await client.gather(CONTEXT, "where").all()
            self.assertEqual((set(gathered.results), gathered.missing), ({"h1", "h2"}, ()))
        self.assertEqual(len(desks[0].begun) + len(desks[1].begun), 10)
        self.assertEqual(len(desks[2].begun), 10)
        client = (await self.caller(hosts=lambda topic: succeed({"h1", "h2", "h3"}))).prepare(timeout=1)
        gathering = client.gather(CONTEXT, "where")
        found = [reply.host async for reply in gathering]
        self.assertEqual((sorted(map(str, found)), gathering.missing), (["h1", "h2"], ("h3",)))

    async def test_gather_cancelled(self) -> None:
        """Cancelling a gather cancels the methods of all hosts."""
        desks = [await self.start("h1"), await self.start("h2")]
        waiting = (await self.caller()).gather(CONTEXT, "hang").all()
        await until(lambda: all(desk.begun for desk in desks))
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: all(desk.cancelled for desk in desks))

    async def test_progress(self) -> None:
        """A method in a thread reports its progress to the caller."""
        desk = await self.start()
        reports: list[Any] = []
        client = (await self.caller()).prepare(on_progress=lambda *report: reports.append(report))
        calling = client.call(CONTEXT, "copy")
        await until(lambda: reports == [(0.25, "first")])
        desk.go.set()
        self.assertEqual(await calling, "copied")


class AMQPTests(Suite, AMQPCase):
    """Over RabbitMQ."""

    async def transport(self) -> Any:
        return await self.connect()

    async def test_reconnect(self) -> None:
        """After the server's connection was lost, cancellations reach it again."""
        desk = Desk()
        transport = await self.connect()
        await self.serve(transport, "desk", diary=desk)
        client = await self.caller()
        for connection in transport.connections:
            assert connection.protocol is not None
            connection.protocol.transport.abortConnection()
        calling = client.prepare(idempotent=True).call(CONTEXT, "hang_again")
        await until(lambda: desk.begun)
        calling.cancel()
        await self.assertFailure(calling, CancelledError)
        await until(lambda: desk.cancelled)


class LocalTests(Suite, TestCase):
    """Between the processes of a host; each server and each client has a broker of its own, as a process has."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)

    async def transport(self) -> Any:
        transport = LocalTransport(HostSockets(MemoryBroker(), reactor, self.directory))
        self.addCleanup(transport.close)
        await transport.open()
        return transport
