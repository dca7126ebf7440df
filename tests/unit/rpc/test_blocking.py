"""Tests for novasvc.rpc.blocking: threads that call, on the real reactor and in memory."""

import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

import novasvc.blocking
from novasvc import rpc
from novasvc.config import Settings
from novasvc.config.errors import SettingError
from novasvc.context import RequestContext, current_context
from novasvc.errors import (
    ForkedClientError,
    InvalidArgumentsError,
    NoSuchMethodError,
    ReactorStoppedError,
    ReactorThreadError,
    RPCTimeoutError,
    TooManyCallsError,
    TransportClosedError,
)
from novasvc.node.runtime import Runtime
from novasvc.rpc import blocking
from novasvc.rpc.blocking import BlockingClient
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.support.rpc_rig import CONTEXT, TARGET, Diary
from tests.support.waiting import until


class Desk(Diary):
    """Answers, hangs, or raises."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[RequestContext] = []

    @rpc.expose
    def whose(self, context: RequestContext) -> str:
        self.contexts.append(context)
        return context.request_id

    @rpc.expose(expected=(LookupError,))
    def fail(self, context: RequestContext) -> None:
        raise LookupError("no such desk")


class BlockingCase(TestCase):
    async def make(self, **options: Any) -> BlockingClient:
        broker, self.desk = MemoryBroker(), Desk()
        self.transport = MemoryTransport(broker, clock=reactor)
        server = rpc.Server(
            MemoryTransport(broker, clock=reactor),
            TARGET,
            rpc.Endpoints(self.desk),
            clock=reactor,
            concurrency=4,
            run_blocking=deferToThread,
        )
        await server.start()
        self.addCleanup(self._end, server)
        self.client = rpc.Client(self.transport, clock=reactor, target=TARGET)
        self.addCleanup(self.client.close)
        return BlockingClient(self.client, reactor=reactor, **options)

    async def _end(self, server: rpc.Server) -> None:
        for hanging in self.desk.hanging:
            if not hanging.called:
                hanging.cancel()
        await server.close()
        # The methods that were cancelled are logged.
        self.flushLoggedErrors()


class CallTests(BlockingCase):
    async def test_result(self) -> None:
        """A thread gets the result, many threads each their own, and a cast returns when it is sent."""
        client = await self.make()
        waiting = [deferToThread(client.call, CONTEXT, "note", what=number) for number in range(10)]
        self.assertEqual(await gatherResults(waiting), list(range(10)))
        await deferToThread(client.cast, CONTEXT, "note", what="cast")
        await deferToThread(client.fanout, CONTEXT, "note", what="fanout")
        await until(lambda: {"cast", "fanout"} <= set(self.desk.calls))
        self.assertEqual(client.waiting, 0)

    async def test_gather(self) -> None:
        """A gather returns the answers of all servers that came in time."""
        client = (await self.make()).prepare(server=None, timeout=0.5)
        gathered = await deferToThread(client.gather, CONTEXT, "note", what="all")
        self.assertEqual([reply.result for reply in gathered.replies], ["all"])
        self.assertEqual(client.waiting, 0)

    async def test_emit(self) -> None:
        """An event is published by the client's emitter, which may be connected first; without one it is an error."""
        client = await self.make()
        error = await self.assertFailure(deferToThread(client.emit, CONTEXT, "tea.sold"), TypeError)
        self.assertIn("manager.attachments.blocking", str(error))
        emitter = rpc.EventEmitter(self.transport, publisher_id="test.h1", clock=reactor)
        seen: list[Any] = []
        deliveries: list[Any] = []
        await self.transport.subscribe("tea", ["notifications.info"], deliveries.append, 10)

        async def connect() -> rpc.EventEmitter:
            seen.append("connected")
            return emitter

        for events in (emitter, connect):
            client = BlockingClient(self.client, reactor=reactor, events=events).prepare(timeout=5)
            self.assertIsNone(await deferToThread(client.emit, CONTEXT, "tea.sold", {"amount": 2}))
            await self.assertFailure(deferToThread(client.emit, CONTEXT, "no spaces"), InvalidArgumentsError)
        self.assertEqual(seen, ["connected", "connected"])
        await until(lambda: len(deliveries) == 2)
        self.assertIn(b"tea.sold", deliveries[0].body)

    async def test_errors(self) -> None:
        """The thread gets the errors of rpc.Client, those of the method among them."""
        client = await self.make()
        for method, kind in (("nothing", NoSuchMethodError), ("fail", LookupError)):
            await self.assertFailure(deferToThread(client.call, CONTEXT, method), kind)
        brief = client.prepare(timeout=0.05)
        await self.assertFailure(deferToThread(brief.call, CONTEXT, "hang"), RPCTimeoutError)
        self.assertEqual((client.waiting, self.client.pending), (0, 0))

    async def test_misuse(self) -> None:
        """A forgotten context or method, and arguments by position, are said as by rpc.Client."""
        client = await self.make()
        for send in (client.call, client.cast, client.fanout, client.gather):
            for args, problem in (
                (("note",), "() takes a RequestContext first, not 'note'"),
                ((CONTEXT,), "() has no method"),
                ((CONTEXT, "note", "tea"), "() of 'note' takes arguments by name, but got 'tea'"),
            ):
                error = await self.assertFailure(deferToThread(send, *args), TypeError)
                self.assertIn(send.__name__ + problem, str(error))

    async def test_prepared(self) -> None:
        """prepare() takes what that of rpc.Client takes; another parameter is an error at once."""
        client = await self.make()
        other = client.prepare(topic="nowhere", server=None)
        error = await self.assertFailure(deferToThread(other.call, CONTEXT, "note"), Exception)
        self.assertIn("no server for nowhere", str(error))
        error = self.assertRaises(TypeError, client.prepare, topc="compute")
        self.assertIn("not topc", str(error))

    async def test_context(self) -> None:
        """The call is made in the thread's context variables: a new request context has the thread's request id."""
        client = await self.make()

        def serve() -> Any:
            current_context.set(RequestContext(request_id="req-of-the-thread"))
            return client.call(RequestContext(), "whose")

        self.assertEqual(await deferToThread(serve), "req-of-the-thread")


class WrongPlaceTests(BlockingCase):
    async def test_reactor_thread(self) -> None:
        """In the reactor's thread a call is an error at once, which says what to do; nothing is sent."""
        client = await self.make()
        await deferToThread(client.call, CONTEXT, "note", what="first")
        error = self.assertRaises(ReactorThreadError, client.call, CONTEXT, "note")
        self.assertIn("@rpc.expose(blocking=True)", str(error))
        self.assertEqual((self.desk.calls, client.waiting), (["first"], 0))

    async def test_forked(self) -> None:
        """After a fork a call is an error at once; tests/e2e/test_blocking.py forks."""
        client = await self.make()
        self.patch(blocking.os, "getpid", lambda: -1)
        error = await self.assertFailure(deferToThread(client.call, CONTEXT, "note"), ForkedClientError)
        self.assertIn("fork first", str(error))

    async def test_bound(self) -> None:
        """One call more than may wait is refused; when one has ended, the next is accepted."""
        client = await self.make(max_waiting=2)
        threads = [deferToThread(client.call, CONTEXT, "hang") for _ in range(2)]
        await until(lambda: len(self.desk.hanging) == 2)
        self.assertEqual(client.waiting, 2)
        # A prepared client counts with it.
        refused = deferToThread(client.prepare(timeout=1).call, CONTEXT, "note")
        error = await self.assertFailure(refused, TooManyCallsError)
        self.assertIn("2 calls are already waiting", str(error))
        self.desk.hanging[0].callback("done")
        await until(lambda: client.waiting == 1)
        self.assertEqual(await deferToThread(client.call, CONTEXT, "note", what=1), 1)
        self.desk.hanging[1].callback("done")
        self.assertEqual(await gatherResults(threads), ["done", "done"])


class StopTests(BlockingCase):
    async def test_close(self) -> None:
        """A close ends all waits at once, the calls with them, and later calls fail; a second close does nothing."""
        client = await self.make()
        prepared = client.prepare(timeout=50)
        threads = [deferToThread(each.call, CONTEXT, "hang") for each in (client, prepared)]
        await until(lambda: len(self.desk.hanging) == 2)
        client.close()
        for success, failure in await DeferredList(threads, consumeErrors=True):
            self.assertFalse(success)
            failure.trap(TransportClosedError)
        self.assertEqual(self.client.pending, 0)
        for each in (client, prepared):
            await self.assertFailure(deferToThread(each.call, CONTEXT, "note"), TransportClosedError)
        client.close()

    async def test_close_prepared(self) -> None:
        """A prepared client cannot be closed, because others share its connection."""
        client = await self.make()
        with client.prepare(timeout=50) as prepared:
            waiting = deferToThread(prepared.call, CONTEXT, "hang")
            await until(lambda: self.desk.hanging)
        self.desk.hanging[0].callback("done")
        self.assertEqual(await waiting, "done")

    async def test_close_in_a_thread(self) -> None:
        """Any thread may close it, as the end of a with statement does."""
        client = await self.make()
        waiting = deferToThread(client.call, CONTEXT, "hang")
        await until(lambda: self.desk.hanging)

        def leave() -> None:
            with client:
                pass

        await deferToThread(leave)
        await self.assertFailure(waiting, TransportClosedError)
        await until(lambda: not self.client.pending)

    async def test_client_closed(self) -> None:
        """The end of the service that has the client ends the waits."""
        client = await self.make()
        waiting = deferToThread(client.call, CONTEXT, "hang")
        await until(lambda: self.desk.hanging)
        await self.client.close()
        await self.assertFailure(waiting, TransportClosedError)

    async def test_while_it_connects(self) -> None:
        """A close ends a call that still connects, and cancels the connecting."""
        connecting: Deferred[rpc.Client] = Deferred()
        asked: list[bool] = []

        def connect() -> Deferred[rpc.Client]:
            asked.append(True)
            return connecting

        client = BlockingClient(connect, reactor=reactor)
        waiting = deferToThread(client.call, CONTEXT, "note")
        await until(lambda: asked)
        client.close()
        await self.assertFailure(waiting, TransportClosedError)
        self.assertTrue(connecting.called)


class FakeReactor:
    """A reactor that runs nothing."""

    def __init__(self, *, running: bool = True) -> None:
        self.running = running

    def callFromThread(self, *args: Any) -> None:
        """Never run it."""


class ReactorTests(TestCase):
    """What a thread does if the reactor has no outcome for it."""

    def setUp(self) -> None:
        self.patch(blocking, "_LOOK", 0.01)

    def call(self, fake: FakeReactor) -> Deferred[Any]:
        client: Any = object()
        return deferToThread(BlockingClient(client, reactor=fake).prepare(topic="stock").call, CONTEXT, "note")

    async def test_blocked(self) -> None:
        """A reactor that is blocked for two looks ends the wait with an error that says so."""
        error = await self.assertFailure(self.call(FakeReactor()), RPCTimeoutError)
        self.assertIn("no reply from stock to 'note'", str(error))
        self.assertIn("the reactor of this process is blocked", str(error))

    async def test_stopped(self) -> None:
        """A reactor that does not run is an error at once, one that has stopped meanwhile soon."""
        error = await self.assertFailure(self.call(FakeReactor(running=False)), ReactorStoppedError)
        self.assertIn("novasvc.blocking.connect()", str(error))
        fake = FakeReactor()
        waiting = self.call(fake)
        fake.running = False
        # The thread may have begun before, or begin now.
        await self.assertFailure(waiting, TransportClosedError, ReactorStoppedError)

    async def test_closed_after_the_reactor(self) -> None:
        """After the end of the reactor there is nothing to disconnect, and closing is no error."""
        closed: list[str] = []

        async def disconnect() -> None:
            closed.append("disconnected")

        client: Any = object()
        ended = BlockingClient(client, reactor=FakeReactor(running=False), _close=disconnect)
        with ended:
            pass
        ended.close()
        self.assertEqual(closed, [])


class ConnectTests(TestCase):
    async def test_no_client(self) -> None:
        """A client that cannot be made leaves no connection behind."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        missing = Path(directory.name, "missing")
        settings = Settings(state_dir=Path(directory.name), rpc_signing_key_file=missing)
        runtimes: list[Runtime] = []
        make = Runtime.from_settings

        def remember(*given: Any) -> Runtime:
            runtimes.append(make(*given))
            return runtimes[0]

        self.patch(Runtime, "from_settings", remember)
        connecting = deferToThread(novasvc.blocking.connect, settings=settings)
        self.assertIn(str(missing), str(await self.assertFailure(connecting, SettingError)))
        # The lock is free again, and the connection closed.
        transport = await runtimes[0].broker.acquire()
        await runtimes[0].broker.release()
        self.assertEqual(transport.problem(), "the transport is closed")
