"""A persistent broker connection: hosts in turn, deadlines and exponential backoff, as an Automat machine.

States: idle -> connecting -> handshaking -> preparing -> ready <-> blocked. A failure leads to
waiting, and from there to connecting again. close() leads to closing, then closed.
"""

from collections.abc import Callable
from typing import Any, Protocol

import attrs
from automat import TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.config.errors import SettingError
from novasvc.config.transport_url import BrokerAddress, Host
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.rpc.errors import TransportClosedError
from novasvc.telemetry import flight, metrics
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.endpoints import endpoint, failure_reason, is_tls_failure
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.protocol import AMQPProtocol, Login
from novasvc.transport.errors import (
    BrokerError,
    BrokerFailedError,
    BrokerRefusedError,
    BrokerUnavailableError,
    DeclarationDeniedError,
    DeclarationMismatchError,
)

_log = Logger()

_ACCESS_REFUSED = 403
"""Reply code access-refused: wrong credentials during the handshake, a missing permission after it."""
_OPERATOR_ERRORS = BrokerRefusedError, DeclarationMismatchError, DeclarationDeniedError
"""Errors that only an operator can resolve, so they are retried with the slow backoff."""
_FAILED_ROUNDS = 5
"""Rounds of internal broker errors before the slow backoff applies to them, too."""
_LOGGED_BOUND = 50
"""Bound on the distinct reasons logged in one outage; each host may have its own, and they alternate."""


_CONNECTED = {"ready", "blocked"}


class ConnectionHandler(Protocol):
    """The owner of what happens on a connection: it declares, publishes or consumes."""

    async def prepare(self, protocol: AMQPProtocol) -> None:
        """Open channels and make declarations on a new connection, before it counts as ready.

        :raises BrokerError: a declaration failed; the connection is closed and retried.
        :raises AMQPClosedError: the connection was lost meanwhile.
        """

    def ready(self) -> None:
        """Resume publishing. Called after prepare, after connection.unblocked, and when the socket has room again."""

    def lost(self, reason: AMQPClosedError) -> bool | None:
        """Give up what was under way on the connection; called once for each connection.

        :return: True if the broker's reason no longer applies; the connection is then retried without a pause.
        """


class _Machine(Protocol):
    """The inputs of the state machine. None of them blocks."""

    def open(self) -> None:
        """Start connecting."""

    def connected(self) -> None:
        """Note that the TCP or TLS connection is established."""

    def opened(self) -> None:
        """Handle connection.open-ok: the virtual host is open."""

    def prepared(self) -> None:
        """Note that the handler's prepare has returned."""

    def failed(self, error: BrokerError) -> None:
        """Note that an attempt has failed, or the connection was lost."""

    def retry_due(self) -> None:
        """Start the next attempt: the backoff is over."""

    def block(self) -> None:
        """Handle connection.blocked."""

    def unblock(self) -> None:
        """Handle connection.unblocked."""

    def close(self) -> None:
        """Disconnect for good."""

    def disconnected(self) -> None:
        """Note that the closing handshake is over."""


def quick_backoff() -> RetryPolicy:
    """Return the backoff for an unreachable broker: half a second to 2 s, so that a fleet is back within seconds."""
    return jittered_backoff(first=0.5, longest=2.0)


def slow_backoff() -> RetryPolicy:
    """Return the backoff for a broker that refuses us: 4 s to a minute, as only an operator can resolve that."""
    return jittered_backoff(first=4.0, longest=60.0)


class _SingleProtocolFactory(Factory):
    """Builds the one protocol that it was given; logs nothing."""

    noisy = False

    def __init__(self, protocol: AMQPProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> AMQPProtocol:
        return self._protocol


@attrs.define(eq=False)
class Connection:
    """Keep one connection to one of an address's hosts; reconnect after each loss.

    :param name: its purpose: "publishing" or "consuming"; a label in logs and metrics.
    :param address: hosts, credentials and virtual host.
    :param options: deadlines, heartbeat, TLS.
    :param reactor: connects, and measures time.
    :param handler: called when the connection is made, ready and lost.
    :param client_name: what the broker's list of connections shows.
    :param retry: backoff: seconds to wait after the nth failed round of hosts.
    :param retry_refused: the same, if the broker answered and refused us.
    :ivar is_writable: the connection is ready and the socket has room: what is written now leaves in this turn.
    :ivar is_congested: the socket's buffer is full.
    :ivar blocked_by: the reason that connection.blocked gave, or "".
    :ivar last_error: why the last attempt or connection failed; None once it is ready.
    :ivar reconnects: how often it was restored after a loss.
    """

    name: str
    address: BrokerAddress
    options: BrokerOptions
    reactor: Any
    handler: ConnectionHandler
    client_name: str
    retry: RetryPolicy = attrs.field(factory=quick_backoff)
    retry_refused: RetryPolicy = attrs.field(factory=slow_backoff)
    state: str = attrs.field(default="idle", init=False)
    blocked_by: str = attrs.field(default="", init=False)
    is_congested: bool = attrs.field(default=False, init=False)
    is_writable: bool = attrs.field(default=False, init=False)
    last_error: BrokerError | None = attrs.field(default=None, init=False)
    protocol: AMQPProtocol | None = attrs.field(default=None, init=False)
    reconnects: int = attrs.field(default=0, init=False)
    _machine: _Machine = attrs.field(init=False)
    _host: Host = attrs.field(init=False)
    _certificate_problem: str = attrs.field(default="", init=False)
    _attempts: int = attrs.field(default=0, init=False)
    _refusals: int = attrs.field(default=0, init=False)
    _retry_at_once: bool = attrs.field(default=False, init=False)
    _attempt: Deferred[None] | None = attrs.field(default=None, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _opening: Deferred[None] | None = attrs.field(default=None, init=False)
    _logged_reasons: set[str] = attrs.field(factory=set, init=False)
    _open_error: Exception = attrs.field(factory=lambda: TransportClosedError("connecting"), init=False)
    _closing: list[Deferred[None]] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        # Create the series at zero: an increase is computed from the first exported value.
        metrics.broker_lost.at(self.name)
        metrics.broker_reconnects.at(self.name)
        self._machine = _make_machine(self)

    # -- public --------------------------------------------------------------------------------

    def open(self) -> Deferred[None]:
        """Connect. Call it once.

        :return: Deferred[None], fired when the connection is ready. It fails with a BrokerError when every host was
            tried once in vain; the connection is then closed. After the first success it reconnects by itself.
        """
        self._opening = Deferred(lambda _: self._machine.close())
        self._machine.open()
        return self._opening

    def close(self) -> Deferred[None]:
        """Disconnect for good.

        :return: Deferred[None], fired when the socket is closed; never fails.
        """
        if self.state == "closed":
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._closing.append(closed)
        self._machine.close()
        return closed

    @property
    def host_and_port(self) -> str:
        """The present or last host: "name:port"."""
        return f"{self._host.host}:{self._host.port}"

    @property
    def problem(self) -> str | None:
        """Why nothing can be sent or received now; None if the connection is ready."""
        if self.state == "ready":
            return None
        if self.state == "blocked":
            return f"the broker blocks publishing: {self.blocked_by}"
        doing = f"the {self.name} connection is {self.state}"
        return doing if self.last_error is None else f"{doing}: {self.last_error}"

    # -- Observer ------------------------------------------------------------------------------

    def lost(self, reason: AMQPClosedError) -> None:
        """Handle the end of the connection; see Observer."""
        was_ready = self.state in _CONNECTED
        self.is_congested, self.blocked_by = False, ""
        self.is_writable = self.state == "ready"
        self._retry_at_once = bool(self.handler.lost(reason))
        if was_ready and not reason.clean:
            flight.note("broker", f"{self.name} lost {self._shown()}")
            self._machine.failed(self._broker_error(reason))

    def blocked(self, reason: str) -> None:
        """Handle connection.blocked; see Observer."""
        self.blocked_by = reason
        self._machine.block()

    def unblocked(self) -> None:
        """Handle connection.unblocked; see Observer."""
        self.blocked_by = ""
        self._machine.unblock()

    def congested(self, congested: bool) -> None:  # noqa: FBT001 - as Observer has it
        """Handle the socket's back-pressure; see Observer."""
        self.is_congested = congested
        self.is_writable = self.state == "ready" and not congested
        if not congested and self.state == "ready":
            self.handler.ready()

    # -- called by the state machine -----------------------------------------------------------

    def enter(self, state: str) -> None:
        """Enter a state: update ``is_writable`` and the metrics."""
        before, self.state = self.state, state
        self.is_writable = state == "ready" and not self.is_congested
        for states, figure in ((_CONNECTED, metrics.broker_connected), ({"blocked"}, metrics.broker_blocked)):
            figure.at(self.name).value += (state in states) - (before in states)
        if before in _CONNECTED and state == "waiting":
            metrics.broker_lost.at(self.name).value += 1

    def start_attempt(self) -> None:
        """Start an attempt with the next host."""
        hosts = self.address.hosts
        self._host = hosts[self._attempts % len(hosts)]
        self._attempts += 1
        self._certificate_problem = ""
        self._retry_at_once = False
        self._attempt = Deferred.fromCoroutine(self._connect())
        self._attempt.addErrback(self._attempt_failed)

    async def _connect(self) -> None:
        host, options = self._host, self.options
        login = Login(username=host.username, password=host.password, vhost=self.address.vhost, name=self.client_name)
        protocol = AMQPProtocol(
            login,
            clock=self.reactor,
            heartbeat=options.heartbeat,
            operation_timeout=options.operation_timeout,
            observer=self,
        )
        deadline = self.reactor.seconds() + options.connect_timeout

        async def in_time(step: Deferred[Any], doing: str) -> None:
            left = max(0.0, deadline - self.reactor.seconds())
            late = AMQPClosedError(f"{doing} took longer than {options.connect_timeout:g} s")
            await step.addTimeout(left, self.reactor, onTimeoutCancel=lambda _, __: Failure(late))

        try:
            client_endpoint = endpoint(
                self.reactor,
                host.host,
                host.port,
                tls=self.address.tls,
                options=options,
                on_rejected=self._certificate_rejected,
            )
            await in_time(client_endpoint.connect(_SingleProtocolFactory(protocol)), "connecting")
            self._machine.connected()
            await in_time(Deferred.fromCoroutine(protocol.handshake()), "the handshake")
            self._machine.opened()
            await self.handler.prepare(protocol)
        except BaseException as error:
            protocol.end(
                error
                if isinstance(error, AMQPClosedError)
                else AMQPClosedError("the attempt was cancelled", clean=True)
            )
            raise
        self.protocol = protocol
        self._machine.prepared()

    def _attempt_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError, ConnectingCancelledError) and self.state in {"closing", "closed"}:
            return
        error = failure.value
        if isinstance(error, AMQPClosedError):
            self._machine.failed(self._broker_error(error))
        elif isinstance(error, BrokerError):
            self._machine.failed(error)
        elif isinstance(error, SettingError):  # a TLS file that open() could read, and that has changed since
            self._machine.failed(BrokerRefusedError(self._shown(), str(error)))
        else:
            if not is_tls_failure(failure) and not isinstance(error, OSError) and not failure.check(*_EXPECTED):
                _log.failure("unexpected error while connecting to {broker}", failure, broker=self._shown())
            kind = BrokerRefusedError if is_tls_failure(failure) else BrokerUnavailableError
            self._machine.failed(kind(self._shown(), self._certificate_problem or failure_reason(failure)))

    def _broker_error(self, reason: AMQPClosedError) -> BrokerError:
        """Turn the end of a connection into an error that tells the operator what to do."""
        shown = self._shown()
        if reason.cause is not None:
            kind = BrokerRefusedError if is_tls_failure(reason.cause) else BrokerUnavailableError
            return kind(shown, self._certificate_problem or failure_reason(reason.cause))
        error = topology.broker_error(shown, reason)
        if type(error) is not BrokerRefusedError:
            return error
        if reason.code == _ACCESS_REFUSED and self.state == "handshaking":
            return BrokerRefusedError(shown, f"it refuses the user {self._host.username!r}: {reason}")
        if reason.code == _ACCESS_REFUSED or "vhost" in reason.problem:
            return BrokerRefusedError(shown, f"it refuses the virtual host {self.address.vhost!r}: {reason}")
        return BrokerRefusedError(shown, f"it refuses the connection: {reason}")

    def _certificate_rejected(self, problem: str) -> None:
        self._certificate_problem = problem

    def _shown(self) -> str:
        return self.address.shown(self._host)

    def record_failure(self, error: BrokerError) -> None:
        """Record why the connection failed or was lost; log each distinct reason once in an outage."""
        self.last_error, self.protocol = error, None
        if self._retry_at_once:
            return
        if (
            self._opening is None
            and str(error) not in self._logged_reasons
            and len(self._logged_reasons) < _LOGGED_BOUND
        ):
            self._logged_reasons.add(str(error))
            _log.warn("the connection for {name} is lost; reconnecting: {error}", name=self.name, error=error)

    def wait(self, error: BrokerError) -> None:
        """Schedule the next attempt: the next host at once, the next round of hosts after a backoff."""
        refused, failed = isinstance(error, _OPERATOR_ERRORS), isinstance(error, BrokerFailedError)
        self._refusals = self._refusals + 1 if refused or failed else 0
        rounds, place = divmod(self._attempts, len(self.address.hosts))
        # Refusals have a count of their own: a broker that starts after a long outage may refuse once or twice.
        refusals = self._refusals // len(self.address.hosts) - (_FAILED_ROUNDS if failed else 0)
        if place or self._retry_at_once:
            delay = 0.0
        elif refused or refusals > 0:
            delay = self.retry_refused(max(1, refusals))
        else:
            delay = self.retry(max(1, rounds))
        flight.note("broker", f"{self.name} retry in {delay:.1f} s {type(error).__name__} {self._shown()}")
        self._timer = self.reactor.callLater(delay, self._retry_due)

    def _retry_due(self) -> None:
        self._timer = None
        self._machine.retry_due()

    def has_tried_all(self) -> bool:
        """Return whether the first open has tried every host in vain."""
        return self._opening is not None and self._attempts >= len(self.address.hosts) and not self._retry_at_once

    def became_ready(self) -> None:
        """Call the handler and fire the Deferred of open(); log the recovery if a loss was logged."""
        opening, self._opening = self._opening, None
        self._attempts, self._refusals, self._attempt = 0, 0, None
        flight.note("broker", f"{self.name} connected {self._shown()}")
        if opening is None:
            self.reconnects += 1
            metrics.broker_reconnects.at(self.name).value += 1
            _log.info("the connection for {name} was restored: {broker}", name=self.name, broker=self._shown())
        self.last_error = None
        self._logged_reasons.clear()
        if self.blocked_by:
            self._machine.block()  # connection.blocked arrived during prepare
        else:
            self.handler.ready()
        if opening is not None:
            opening.callback(None)

    def fail_open(self, error: BrokerError) -> None:
        """Fail the first open with this error, and close."""
        self._open_error = error
        self._machine.close()

    def disconnect(self) -> None:
        """Cancel the attempt or the backoff, and close the connection if there is one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._attempt is not None:
            self._attempt.cancel()
        protocol, self.protocol = self.protocol, None
        closing = succeed(None) if protocol is None else protocol.close()
        closing.addBoth(lambda _: self._machine.disconnected())

    def fire_waiters(self) -> None:
        """Fire the Deferreds of close(), and fail that of an open() that was cut short."""
        opening, self._opening = self._opening, None
        closing, self._closing = self._closing, []
        if opening is not None and not opening.called:
            opening.errback(self._open_error)
        for closed in closing:
            closed.callback(None)


_EXPECTED = (
    "twisted.internet.error.ConnectError",
    "twisted.internet.error.ConnectionClosed",
    "twisted.internet.error.DNSLookupError",
    "twisted.internet.defer.TimeoutError",
)


def _build() -> Callable[[Connection], _Machine]:
    builder = TypeMachineBuilder(_Machine, Connection)
    names = "idle connecting handshaking preparing ready blocked waiting closing closed"
    states = {name: builder.state(name) for name in names.split()}
    idle, connecting, handshaking, preparing, ready, blocked, waiting, closing, closed = states.values()
    attempting = (connecting, handshaking, preparing)
    connected_states = (ready, blocked)

    for before, given in ((idle, _Machine.open), (waiting, _Machine.retry_due)):

        @before.upon(given).to(connecting)
        def start_attempt(machine: _Machine, connection: Connection) -> None:
            connection.enter("connecting")
            connection.start_attempt()

    @connecting.upon(_Machine.connected).to(handshaking)
    def begin_handshake(machine: _Machine, connection: Connection) -> None:
        connection.enter("handshaking")

    @handshaking.upon(_Machine.opened).to(preparing)
    def prepare(machine: _Machine, connection: Connection) -> None:
        connection.enter("preparing")

    @preparing.upon(_Machine.prepared).to(ready)
    def be_ready(machine: _Machine, connection: Connection) -> None:
        connection.enter("ready")
        connection.became_ready()

    for state in (*attempting, *connected_states):

        @state.upon(_Machine.failed).to(waiting)
        def wait(machine: _Machine, connection: Connection, error: BrokerError) -> None:
            connection.enter("waiting")
            connection.record_failure(error)
            if connection.has_tried_all():
                connection.fail_open(error)
            else:
                connection.wait(error)

    @ready.upon(_Machine.block).to(blocked)
    def block(machine: _Machine, connection: Connection) -> None:
        connection.enter("blocked")
        _log.warn(
            "the broker blocks publishing: {reason}; messages are held until it unblocks", reason=connection.blocked_by
        )

    @blocked.upon(_Machine.unblock).to(ready)
    def unblock(machine: _Machine, connection: Connection) -> None:
        connection.enter("ready")
        _log.info("the broker no longer blocks publishing")
        connection.handler.ready()

    for state in (*attempting, waiting, closing, closed, blocked):
        state.upon(_Machine.block).loop().returns(None)
    for state in (*attempting, waiting, closing, closed, ready):
        state.upon(_Machine.unblock).loop().returns(None)

    for state in (idle, *attempting, *connected_states, waiting):

        @state.upon(_Machine.close).to(closing)
        def close(machine: _Machine, connection: Connection) -> None:
            connection.enter("closing")
            connection.disconnect()

    @closing.upon(_Machine.disconnected).to(closed)
    def end(machine: _Machine, connection: Connection) -> None:
        connection.enter("closed")
        connection.fire_waiters()

    for state in (closing, closed):
        state.upon(_Machine.close).loop().returns(None)
        for late in (_Machine.connected, _Machine.opened, _Machine.prepared, _Machine.retry_due):
            state.upon(late).loop().returns(None)

        @state.upon(_Machine.failed).loop()
        def ignore_failure(machine: _Machine, connection: Connection, error: BrokerError) -> None:
            """Ignore a failure of the attempt that closing has cancelled."""

    return builder.build()


_make_machine = _build()
