"""A server and a client on a transport in memory and a Clock, for the tests of novasvc.rpc."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.rpc.message import Reply, ReplyTo, encode_request, read_reply, unwrap
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import Counter
from novasvc.transport.memory import MemoryBroker, MemoryTransport

TARGET = Target("compute", "h1")
CONTEXT = RequestContext(request_id="req-1", user_id="u1")


class RigTransport(MemoryTransport):
    """A memory transport that records its use; ``on_reply``, if set, publishes the replies in its place.

    :ivar received: messages that the servers on this transport received.
    """

    def __init__(self, broker: MemoryBroker, clock: Clock) -> None:
        super().__init__(broker, clock=clock)
        self.on_reply: Callable[[], Deferred[None]] | None = None
        self.counting = True
        self.received = 0
        self.reply_timeout: float | None = None

    def listen(self, target: Target, receiver: Callable[[Any], None], prefetch: int) -> Deferred[Any]:
        def receive(delivery: Any) -> None:
            self.received += 1
            if delivery.deliveries and not self.counting:
                # As from a queue without a delivery count, which knows only the count given at a requeue.
                delivery.counts_death, self.counting = False, True
            receiver(delivery)

        return super().listen(target, receive, prefetch)

    def reply(self, address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        self.reply_timeout = timeout
        return super().reply(address, body) if self.on_reply is None else self.on_reply()


class SlowTransport(MemoryTransport):
    """A transport whose Deferreds fire when the test says so, as over a network."""

    def __init__(self, broker: MemoryBroker, clock: Clock) -> None:
        super().__init__(broker, clock=clock)
        self.waiting: list[tuple[str, Deferred[Any]]] = []
        self.written: list[tuple[Target, bytes, float | None]] = []
        self.cancelled: list[str] = []
        self.trouble: str | None = None

    def problem(self) -> str | None:
        return self.trouble

    def wait(self, what: str) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred(lambda _: self.cancelled.append(what))
        self.waiting.append((what, waiting))
        return waiting

    def release(self, result: object = None) -> None:
        released, self.waiting = self.waiting, []
        for _, waiting in released:
            waiting.callback(result)

    def open_replies(self, receiver: Any) -> Deferred[str]:
        return self.wait("open_replies").addCallback(lambda _: MemoryTransport.open_replies(self, receiver))

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:
        self.written.append((target, body, ttl))
        return self.wait("send").addCallback(lambda _: MemoryTransport.send(self, target, body, ttl, mandatory))


class Diary:
    """Records the calls; ``hang`` and ``hang_again`` return Deferreds that the test fires."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.hanging: list[Deferred[Any]] = []
        self.cancelled = 0

    def _hang(self) -> Deferred[Any]:
        def cancelled(_: object) -> None:
            self.cancelled += 1

        hanging: Deferred[Any] = Deferred(cancelled)
        self.hanging.append(hanging)
        return hanging

    @rpc.expose
    def note(self, context: RequestContext, what: Any = None) -> Any:
        self.calls.append(what)
        return what

    @rpc.expose
    def hang(self, context: RequestContext, what: Any = None) -> Deferred[Any]:
        self.calls.append(what)
        return self._hang()

    @rpc.expose(idempotent=True)
    def hang_again(self, context: RequestContext, what: Any = None) -> Deferred[Any]:
        self.calls.append(what)
        return self._hang()


class RPCCase(SynchronousTestCase):
    """A test case whose :attr:`server` serves :attr:`diary` on TARGET; :attr:`client` calls it."""

    concurrency = 2

    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.transport = self.make_transport()
        self.blocking: list[tuple[Callable[[], Any], Deferred[Any]]] = []
        self.diary = self.make_endpoint()
        self.server = self.serve()
        self.client = rpc.Client(self.make_transport(), clock=self.clock, target=TARGET)
        self.replies: list[Reply] = []

    def make_endpoint(self) -> Any:
        return Diary()

    def make_transport(self) -> RigTransport:
        return RigTransport(self.broker, self.clock)

    def serve(self, **given: Any) -> rpc.Server:
        server = rpc.Server(
            given.pop("transport", self.transport),
            TARGET,
            rpc.Endpoints(self.diary),
            clock=self.clock,
            concurrency=self.concurrency,
            run_blocking=self.run_blocking,
            **given,
        )
        self.successResultOf(server.start())
        return server

    def run_blocking(self, function: Callable[[], Any]) -> Deferred[Any]:
        """Record the function; :meth:`run_threads` runs it."""
        waiting: Deferred[Any] = Deferred()
        self.blocking.append((function, waiting))
        return waiting

    def run_threads(self) -> None:
        threads, self.blocking = self.blocking, []
        for function, waiting in threads:
            maybeDeferred(function).chainDeferred(waiting)
        self.clock.advance(0)

    def call(self, method: str, **args: Any) -> Deferred[Any]:
        calling = self.client.call(CONTEXT, method, **args)
        self.clock.advance(0)
        return calling

    def outcomes(self, method: str) -> dict[str, float]:
        """Return how many runs of a method ended with each outcome that occurred."""
        return {values[3]: one.value for values, one in metrics.served if values[2] == method and one.value}

    def count(self, fate: str) -> float:
        """Return how many messages were not run, or not answered, for this reason."""
        counter: Counter = getattr(self.server.delivery_metrics, fate)
        return counter.value

    def send(self, body: bytes, ttl: float | None = None) -> None:
        """Send a message unchanged."""
        self.successResultOf(self.transport.send(TARGET, body, ttl, False))
        self.clock.advance(0)

    def request(self, method: str, **given: Any) -> bytes:
        """Encode a call whose replies are appended to :attr:`replies`."""
        address = self.successResultOf(
            self.transport.open_replies(lambda b: self.replies.append(read_reply(unwrap(b))))
        )
        return encode_request(method, given, {}, reply_to=ReplyTo("id", address))

    def redeliver(self, *bodies: bytes, times: int = 1) -> None:
        """Send messages that other servers received and did not settle."""
        self.successResultOf(self.server.stop_consuming())
        for body in bodies:
            self.send(body)
        for _ in range(times):
            self.assertEqual(len(self.take()), len(bodies))
        self.server = self.serve()
        self.clock.advance(0)

    def take(self) -> list[Any]:
        """Receive the waiting messages, and leave them unsettled."""
        taken: list[Any] = []
        left = self.make_transport()
        self.successResultOf(left.listen(TARGET, taken.append, 100))
        self.clock.advance(0)
        self.successResultOf(left.close())
        return taken
