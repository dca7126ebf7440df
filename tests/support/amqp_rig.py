"""A broker in memory that answers as the test wants it, and the reactor and clock that lead to it."""

import re
from collections.abc import Coroutine
from typing import Any, NamedTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from txamqp.spec import Method

from novasvc.reactor.backoff import RetryPolicy
from novasvc.transport.amqp import AMQPTransport, BrokerAddress, BrokerOptions
from novasvc.transport.amqp.channel import AMQPClosedError, Channel
from novasvc.transport.amqp.codec import decode_method, encode_method, encode_properties
from novasvc.transport.amqp.delegate import Login
from novasvc.transport.amqp.frames import (
    METHOD,
    PROTOCOL_HEADER,
    FrameReader,
    pack_content,
    pack_frame,
)
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.spec import SPEC

LOGIN = Login(username="nova", password="secret", vhost="cell", name="test")
URL = "amqp://nova:secret@one:5672,two:5673/cell"
CLOSED_WITH = "channel.close"
DENIED = "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nBy default, this feature is not permitted"
"""What RabbitMQ says when it does not permit a queue that is neither durable nor exclusive."""


def method(name: str) -> Any:
    """Find a method of the spec by a name such as "queue.declare"."""
    kind, _, which = name.partition(".")
    return SPEC.classes.byname[kind].methods.byname[which]


def pack(channel: int, name: str, **given: Any) -> bytes:
    """Write a method; what is not given has its type's empty value."""
    what = method(name)
    args = [given.pop(field.name.replace("-", "_"), Method.DEFAULTS[field.type]) for field in what.fields]
    assert not given, given
    return pack_frame(METHOD, channel, encode_method(what, tuple(args)))


class Said(NamedTuple):
    """A method that the client has sent."""

    channel: int
    name: str
    args: dict[str, Any]
    body: bytes | None = None
    properties: bytes = b""


class LinkTransport(StringTransport):
    """A TCP transport without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, bool] = {}

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options["no delay"] = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options["keep alive"] = enabled


@attrs.define(eq=False)
class Broker:
    """What all its connections share: how they answer.

    :param unanswered: names of methods that get no answer.
    :param closing: by name of a method: the reply code and text that its channel is closed with instead.
    :param denying: whether it closes a connection that declares a queue that is not durable.
    :param confirming: whether messages are confirmed by themselves.
    :param counts: messages and consumers of every queue.
    :param refusing: ports where nobody listens; ``deaf`` ones answer nothing.
    """

    tune: tuple[int, int, int] = (2047, 131_072, 60)
    unanswered: set[str] = attrs.field(factory=set)
    closing: dict[str, tuple[int, str]] = attrs.field(factory=dict)
    denying: bool = False
    confirming: bool = True
    counts: tuple[int, int] = (0, 1)
    refusing: set[int] = attrs.field(factory=set)
    deaf: set[int] = attrs.field(factory=set)
    links: list["Link"] = attrs.field(factory=list)

    def link(self, purpose: str) -> "Link":
        """Return the newest connection whose name has this word."""
        return next(link for link in reversed(self.links) if purpose in link.name)


@attrs.define(eq=False)
class Link:
    """The broker's end of one connection.

    :param seen: all that the client has said on it.
    """

    broker: Broker
    protocol: Any
    port: int = 0
    transport: LinkTransport = attrs.field(factory=LinkTransport)
    seen: list[Said] = attrs.field(factory=list)
    heartbeats: int = 0
    name: str = ""
    gone: bool = False
    _reader: FrameReader = attrs.field(init=False)
    _greeted: bool = False
    _out: list[bytes] = attrs.field(factory=list)
    _published: dict[int, int] = attrs.field(factory=dict)
    _delivered: int = 0

    def __attrs_post_init__(self) -> None:
        self._reader = FrameReader(self, frame_max=131_072, body_limit=2**30)
        self.protocol.makeConnection(self.transport)

    # -- for tests -----------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of what the client has said."""
        return [said.name for said in self.seen]

    def all(self, name: str) -> list[Said]:
        """Return what the client has said by one method."""
        return [said for said in self.seen if said.name == name]

    def last(self, name: str) -> Said:
        """Return the last of them."""
        return self.all(name)[-1]

    def consumer(self, queue: str, *, otherwise: str = "") -> str:
        """Return the tag of the newest consumer of a queue.

        :param queue: regular expression of its name.
        :param otherwise: what to return if there is none.
        """
        tags = [said.args["consumer_tag"] for said in self.all("basic.consume") if re.match(queue, said.args["queue"])]
        return tags[-1] if tags else otherwise

    def say(self, channel: int, name: str, **args: Any) -> None:
        """Send a method."""
        self.feed(pack(channel, name, **args))

    def feed(self, data: bytes) -> None:
        """Send bytes, in one piece."""
        self.protocol.dataReceived(data)

    def delivery(
        self, channel: int, body: bytes, consumer: str = "", properties: dict[str, Any] | bytes = b"\0\0", **args: Any
    ) -> bytes:
        """Write a message to a consumer, that of the topic by default; its tag is the next one."""
        consumer = consumer or self.consumer(r"compute$", otherwise="1")
        self._delivered += 1
        args = {"delivery_tag": self._delivered, "exchange": "nova", "routing_key": "compute"} | args
        head = pack(channel, "basic.deliver", consumer_tag=consumer, **args)
        packed = properties if isinstance(properties, bytes) else encode_properties(properties)
        return head + pack_content(channel, packed, body, 131_072)

    def deliver(self, channel: int, body: bytes, **more: Any) -> int:
        """Send it, and return its tag."""
        self.feed(self.delivery(channel, body, **more))
        return self._delivered

    def give_back(self, said: Said, code: int = 312, text: str = "NO_ROUTE") -> None:
        """Return a message that was published."""
        names = {"exchange": said.args["exchange"], "routing_key": said.args["routing_key"]}
        head = pack(said.channel, "basic.return", reply_code=code, reply_text=text, **names)
        self.feed(head + pack_content(said.channel, said.properties, said.body or b"", 131_072))

    def lose(self, reason: Exception | None = None) -> None:
        """Cut the connection."""
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(reason or ConnectionLost()))

    def pump(self) -> bool:
        """Read what the client has written, and answer. Return whether there was anything."""
        data = self.transport.value()
        self.transport.clear()
        if data and not self._greeted:
            assert data.startswith(PROTOCOL_HEADER)
            data = data.removeprefix(PROTOCOL_HEADER)
            self._greeted = True
            self._start()
        self._reader.feed(data)
        out, self._out = b"".join(self._out), []
        if out and not self.gone:
            self.feed(out)
        if self.transport.disconnecting and not self.gone:
            self.lose(ConnectionDone())
            return True
        return bool(data or out)

    def _start(self) -> None:
        if "protocol header" not in self.broker.unanswered:
            self._answer(0, "connection.start", version_minor=9, mechanisms="PLAIN AMQPLAIN", locales="en_US")

    def _answer(self, channel: int, name: str, **args: Any) -> None:
        self._out.append(pack(channel, name, **args))

    # -- FrameReceiver -------------------------------------------------------------------------

    def heartbeat_received(self) -> None:
        self.heartbeats += 1

    def method_received(self, channel: int, payload: bytes) -> None:
        what, values = decode_method(payload)
        args = {field.name.replace("-", "_"): value for field, value in zip(what.fields, values, strict=True)}
        said = Said(channel, f"{what.klass.name}.{what.name}", args)
        self.seen.append(said)
        if said.name == "connection.start-ok":
            self.name = args["client_properties"]["connection_name"]
        if said.name in self.broker.unanswered:
            return
        if said.name in self.broker.closing:
            code, text = self.broker.closing[said.name]
            kind = "connection.close" if channel == 0 else CLOSED_WITH
            self._answer(channel, kind, reply_code=code, reply_text=text)
        elif self.broker.denying and said.name == "queue.declare" and not args["durable"]:
            self._answer(0, "connection.close", reply_code=541, reply_text=DENIED)
        elif said.name == "connection.start-ok":
            channels, frame, heartbeat = self.broker.tune
            self._answer(0, "connection.tune", channel_max=channels, frame_max=frame, heartbeat=heartbeat)
        elif what.responses and not args.get("no_wait"):
            self._answer_usually(said, what.responses[0])

    def _answer_usually(self, said: Said, answer: Any) -> None:
        same = {"queue", "consumer_tag", "active"} & {field.name.replace("-", "_") for field in answer.fields}
        given = {name: said.args[name] for name in same}
        if said.name == "queue.declare":
            given["message_count"], given["consumer_count"] = self.broker.counts
        self._answer(said.channel, f"{answer.klass.name}.{answer.name}", **given)
        if said.name == "channel.open":
            self._published[said.channel] = 0

    def content_received(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        what, values = decode_method(payload)
        args = {field.name.replace("-", "_"): value for field, value in zip(what.fields, values, strict=True)}
        said = Said(channel, "basic.publish", args, body, properties)
        self.seen.append(said)
        self._published[channel] += 1
        if said.name in self.broker.closing:
            code, text = self.broker.closing[said.name]
            self._answer(channel, CLOSED_WITH, reply_code=code, reply_text=text)
        elif self.broker.confirming:
            self._answer(channel, "basic.ack", delivery_tag=self._published[channel])


class RigReactor(MemoryReactorClock):
    """Time that the test moves, and connections that lead to the broker."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self.broker = broker
        self._dialled: list[tuple[int, Any, Any]] = []
        self.ports: list[int] = []

    def connectTCP(self, host: str, port: int, factory: Any, **more: Any) -> Any:
        connector = super().connectTCP(host, port, factory, **more)
        self._dialled.append((port, factory, connector))
        self.ports.append(port)
        return connector

    def answer_dials(self) -> bool:
        """Connect, or refuse to, what was dialled since."""
        dialled, self._dialled = self._dialled, []
        for port, factory, connector in dialled:
            if connector.stoppedConnecting or port in self.broker.deaf:
                continue
            if port in self.broker.refusing:
                factory.clientConnectionFailed(connector, Failure(ConnectError(string="Connection refused")))
            else:
                self.broker.links.append(Link(self.broker, factory.buildProtocol(None), port))
        return bool(dialled)

    def settle(self) -> None:
        """Let client and broker talk until they have nothing to say, without any time passing."""
        busy = True
        while busy:
            self.advance(0)
            busy = self.answer_dials()
            for link in list(self.broker.links):
                busy = link.pump() or busy


class Owner:
    """Whom a connection tells what happens; see ConnectionObserver."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def lost(self, reason: AMQPClosedError) -> None:
        self.heard.append(reason)

    def blocked(self, reason: str) -> None:
        self.heard.append(("blocked", reason))

    def unblocked(self) -> None:
        self.heard.append("unblocked")

    def congested(self, congested: bool) -> None:
        self.heard.append(("congested", congested))


class AMQPCase(SynchronousTestCase):
    """A broker, the way to it, and what is logged."""

    def setUp(self) -> None:
        self.broker = Broker()
        self.reactor = RigReactor(self.broker)
        self.log: list[str] = []
        globalLogPublisher.addObserver(self._logged)
        self.addCleanup(globalLogPublisher.removeObserver, self._logged)

    def _logged(self, event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("novasvc."):
            self.log.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    def settle(self) -> None:
        self.reactor.settle()

    def wait(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass in small steps, and all talk meanwhile."""
        self.settle()
        end = self.reactor.seconds() + seconds
        while (left := end - self.reactor.seconds()) > 1e-9:
            self.reactor.advance(min(step, left))
            self.settle()

    def started(self, work: Coroutine[Any, Any, Any] | Deferred[Any]) -> Deferred[Any]:
        """Begin something, and let it go as far as it goes without time."""
        deferred = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
        self.settle()
        return deferred

    def done(self, work: Coroutine[Any, Any, Any] | Deferred[Any]) -> Any:
        """Return the result of what takes no time."""
        return self.successResultOf(self.started(work))

    def failed(self, work: Coroutine[Any, Any, Any] | Deferred[Any], *kinds: type[Exception]) -> Any:
        """Return the error of what fails at once."""
        return self.failureResultOf(self.started(work), *kinds).value

    def assert_idle(self) -> None:
        """Fail if a timer is still set."""
        self.settle()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    # -- a protocol by itself ------------------------------------------------------------------

    def linked(self, heartbeat: float = 0, operation_timeout: float = 15.0, *, open_it: bool = True) -> Link:
        """Connect a protocol, and let it have its handshake; its owner is ``self.owner``."""
        self.owner = Owner()
        self.protocol = AMQPProtocol(
            LOGIN, clock=self.reactor, heartbeat=heartbeat, operation_timeout=operation_timeout, observer=self.owner
        )
        link = Link(self.broker, self.protocol)
        self.broker.links.append(link)
        if open_it:
            self.done(self.protocol.handshake())
        return link

    def channel(self) -> Channel:
        """Open a channel of the protocol."""
        return self.done(self.protocol.open_channel())  # type: ignore[no-any-return]

    # -- a transport ---------------------------------------------------------------------------

    def transport(self, url: str = URL, retry: RetryPolicy = lambda _: 1.0, **options: Any) -> AMQPTransport:
        """Open a transport, whose timers and connections are looked for when the test has ended."""
        transport = AMQPTransport(
            BrokerAddress.parse(url), reactor=self.reactor, options=BrokerOptions(**options), retry=retry
        )
        self.addCleanup(self._close, transport)
        self.done(transport.open())
        return transport

    def _close(self, transport: AMQPTransport) -> None:
        closed = self.started(transport.close())
        self.wait(30, step=1)
        self.successResultOf(closed)
        self.assert_idle()
        self.assertEqual([link for link in self.broker.links if not link.gone], [])
