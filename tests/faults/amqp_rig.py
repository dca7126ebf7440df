"""Servers and clients on a real broker, for the tests of what can happen to them."""

import re
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, LogLevel, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import RPCError
from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport, BrokerAddress, BrokerOptions
from novasvc.transport.amqp.migration.leftovers import move_leftovers
from novasvc.transport.amqp.migration.session import Session
from novasvc.transport.amqp.reconnect import quick_backoff
from tests.servers import Broker, Proxy, shared_broker, vhost_url
from tests.support.waiting import until

PATIENCE = 30.0
"""Seconds that a test waits for what nobody has promised a time for."""
TOPIC = "compute"
CONTEXT = RequestContext()


class Diary:
    """What is served: notes what is called; what hangs is let go by the test."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.hanging: list[tuple[Any, Deferred[Any]]] = []

    @rpc.expose
    def note(self, context: RequestContext, what: Any = None) -> Any:
        self.calls.append(what)
        return what

    @rpc.expose
    def hang(self, context: RequestContext, what: Any = None) -> Deferred[Any]:
        return self._hang(what)

    @rpc.expose(idempotent=True)
    def hang_again(self, context: RequestContext, what: Any = None) -> Deferred[Any]:
        return self._hang(what)

    def _hang(self, what: Any) -> Deferred[Any]:
        self.calls.append(what)
        hanging: Deferred[Any] = Deferred()
        self.hanging.append((what, hanging))
        return hanging

    def let_go(self, number: int | None = None) -> None:
        """Let those that hang return what they were called with, the oldest first."""
        number = len(self.hanging) if number is None else number
        gone, self.hanging = self.hanging[:number], self.hanging[number:]
        for what, hanging in gone:
            if not hanging.called:
                hanging.callback(what)


class AMQPCase(TestCase):
    """Each test has a virtual host, :attr:`vhost` at :attr:`url`, on :attr:`broker`."""

    retry = staticmethod(quick_backoff())

    def setUp(self) -> None:
        self.broker = self.choose_broker()
        self.url = self.choose_url()
        self.vhost = self.url.rpartition("/")[2]
        self.diary = Diary()
        self._events: list[LogEvent] = []
        globalLogPublisher.addObserver(self._events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self._events.append)

    def choose_broker(self) -> Broker:
        return shared_broker()

    def choose_url(self) -> str:
        return vhost_url(self, self.broker)

    # -- what is tested --------------------------------------------------------------------------

    def make_transport(self, url: str | None = None, exchange: str = "nova", **options: Any) -> AMQPTransport:
        options = {"operation_timeout": 5.0, "connect_timeout": 5.0, **options}
        transport = AMQPTransport(
            BrokerAddress.parse(url or self.url),
            reactor=reactor,
            exchange=exchange,
            options=BrokerOptions(**options),
            retry=self.retry,
            name=self.id(),
        )
        self.addCleanup(transport.close)
        return transport

    async def connect(self, url: str | None = None, exchange: str = "nova", **options: Any) -> AMQPTransport:
        transport = self.make_transport(url, exchange, **options)
        await transport.open()
        return transport

    async def serve(
        self,
        transport: AMQPTransport | None = None,
        topic: str = TOPIC,
        server: str = "h1",
        concurrency: int = 64,
        diary: Any = None,
        run_blocking: Callable[..., Deferred[Any]] = maybeDeferred,
        **given: Any,
    ) -> rpc.Server:
        server_ = rpc.Server(
            transport or await self.connect(),
            Target(topic, server),
            rpc.Endpoints(diary or self.diary),
            clock=reactor,
            concurrency=concurrency,
            run_blocking=run_blocking,
            **given,
        )
        self.addCleanup(server_.close)
        await server_.start()
        return server_

    async def client(
        self, transport: AMQPTransport | None = None, topic: str = TOPIC, patience: float = PATIENCE
    ) -> rpc.Client:
        transport = transport or await self.connect()
        client = rpc.Client(transport, clock=reactor, timeout=patience, target=Target(topic))
        self.addCleanup(client.close)
        return client

    async def move(self, queue: str, to: str) -> None:
        """Move all messages of a queue to another one, with their properties unchanged, as RabbitMQ's shovel does."""
        async with Session(BrokerAddress.parse(self.url), BrokerOptions(), reactor) as session:
            self.assertTrue(await move_leftovers(session, queue, to))

    async def assert_serves(self, client: rpc.Client, what: str = "still here") -> None:
        """See that a call is answered."""
        self.assertEqual(await client.call(CONTEXT, "note", what=what), what)

    async def assert_comes_back(self, client: rpc.Client, patience: float = PATIENCE) -> float:
        """Call until a call is answered; return the seconds that it took."""
        begun = reactor.seconds()
        while True:
            left = begun + patience - reactor.seconds()
            if left <= 0:
                self.fail(f"no call was answered within {patience:g} s")
            try:
                await client.prepare(timeout=min(0.5, left)).call(CONTEXT, "note", what="back")
            except RPCError:
                await deferLater(reactor, 0.02)
            else:
                return reactor.seconds() - begun

    # -- what is seen ------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], Any], patience: float = PATIENCE) -> float:
        """Wait until something holds; return the seconds that it took."""
        return await until(condition, patience)

    async def until_asked(self, condition: Callable[[], Any], patience: float = PATIENCE) -> None:
        """Wait until something holds that the broker is asked for; in a thread, so that nothing else waits for that."""
        deadline = reactor.seconds() + patience
        while not await deferToThread(condition):
            if reactor.seconds() > deadline:
                self.fail(f"line {condition.__code__.co_firstlineno}: not within {patience:g} s")

    async def outcomes(self, deferreds: list[Deferred[Any]]) -> list[Any]:
        """Wait for all; return results, and errors, each of which has to be an RPCError."""
        results = []
        for success, result in await DeferredList(deferreds, consumeErrors=True):
            if success:
                results.append(result)
                continue
            assert isinstance(result, Failure)
            self.assertTrue(result.check(RPCError), result)
            results.append(result.value)
        return results

    def said(self, pattern: str, level: LogLevel = LogLevel.info) -> list[str]:
        """Return the events logged so far, from a level up, that have the pattern."""
        texts = [
            eventAsText(event, includeTimestamp=False, includeSystem=False)
            for event in self._events
            if event.get("log_level", LogLevel.info) >= level
        ]
        return [text for text in texts if re.search(pattern, text)]

    def assert_secret(self, *secrets: str) -> None:
        """See that no event has one of these, nor shows it to an observer that writes all fields."""
        for event in self._events:
            for field in (eventAsText(event), *map(repr, event.values()), *map(str, event.values())):
                for secret in secrets:
                    self.assertNotIn(secret, field)


class ProxyCase(AMQPCase):
    """As AMQPCase, by way of :attr:`proxy`, which :attr:`url` leads to; :attr:`direct_url` does not."""

    def setUp(self) -> None:
        super().setUp()
        self.proxy = Proxy(reactor, self.broker.port)
        self.direct_url = self.url
        self.url = self.broker.url(self.vhost, port=self.proxy.listen())
        self.addCleanup(self.proxy.stop)
