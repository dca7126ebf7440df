"""A persistent broker connection: hosts in turn, deadlines and exponential backoff, as an Automat machine.

States: idle -> connecting -> handshaking -> preparing -> ready <-> blocked. A failure leads to
waiting, and from there to connecting again. close() leads to closing, then closed. The table is at
the end of the module.
"""

from math import inf
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc._compat import machine_state
from novasvc.config.transport_url import BrokerAddress, Host
from novasvc.reactor.backoff import RetryPolicy
from novasvc.reactor.machine import build_machine
from novasvc.rpc.errors import TransportClosedError
from novasvc.telemetry import flight, metrics
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.connection_errors import ConnectionErrors
from novasvc.transport.amqp.delegate import Login
from novasvc.transport.amqp.endpoints import endpoint
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.reconnect import ReconnectSchedule, quick_backoff, slow_backoff
from novasvc.transport.errors import BrokerError

_log = Logger()

_LOGGED_BOUND = 50
"""Bound on the distinct reasons logged in one outage; each host may have its own, and they alternate."""
_CONNECTED = frozenset({"ready", "blocked"})


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
    :ivar unblocked_at: seconds on the reactor's clock of the last connection.unblocked; -inf before the first.
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
    blocked_by: str = attrs.field(default="", init=False)
    unblocked_at: float = attrs.field(default=-inf, init=False)
    is_congested: bool = attrs.field(default=False, init=False)
    is_writable: bool = attrs.field(default=False, init=False)
    last_error: BrokerError | None = attrs.field(default=None, init=False)
    protocol: AMQPProtocol | None = attrs.field(default=None, init=False)
    reconnects: int = attrs.field(default=0, init=False)
    _machine: _Machine = attrs.field(init=False)
    _schedule: ReconnectSchedule = attrs.field(init=False)
    _host: Host = attrs.field(init=False)
    _errors: ConnectionErrors = attrs.field(init=False)
    _settings_adapted: bool = attrs.field(default=False, init=False)
    _attempt: Deferred[None] | None = attrs.field(default=None, init=False)
    _retry_call: IDelayedCall | None = attrs.field(default=None, init=False)
    _opening: Deferred[None] | None = attrs.field(default=None, init=False)
    _open_error: Exception = attrs.field(factory=lambda: TransportClosedError("connecting"), init=False)
    _close_waiters: list[Deferred[None]] = attrs.field(factory=list, init=False)
    _logged_reasons: set[str] = attrs.field(factory=set, init=False)

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
        self._schedule = ReconnectSchedule(self.address.hosts, self.retry, self.retry_refused)
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
        self._close_waiters.append(closed)
        self._machine.close()
        return closed

    @property
    def state(self) -> str:
        """The machine's state: idle, connecting, handshaking, preparing, ready, blocked, waiting, closing or closed."""
        return machine_state(self._machine)

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

    # -- ConnectionObserver --------------------------------------------------------------------

    def lost(self, reason: AMQPClosedError) -> None:
        """Handle the end of the connection; see ConnectionObserver."""
        was_ready = self.state in _CONNECTED
        self.is_congested, self.blocked_by = False, ""
        self._update_writable()
        self._settings_adapted = bool(self.handler.lost(reason))
        if was_ready and not reason.clean:
            flight.note("broker", f"{self.name} lost {self._shown()}")
            self._machine.failed(self._errors.from_close(reason, handshaking=False))

    def blocked(self, reason: str) -> None:
        """Handle connection.blocked; see ConnectionObserver."""
        self.blocked_by = reason
        self._machine.block()

    def unblocked(self) -> None:
        """Handle connection.unblocked; see ConnectionObserver."""
        self.blocked_by, self.unblocked_at = "", self.reactor.seconds()
        self._machine.unblock()

    def congested(self, congested: bool) -> None:  # noqa: FBT001 - as ConnectionObserver has it
        """Handle the socket's back-pressure; see ConnectionObserver."""
        self.is_congested = congested
        self._update_writable()
        if self.is_writable:
            self.handler.ready()

    def _update_writable(self) -> None:
        # Kept in an attribute, since it is read for every message; updated in each action that changes it.
        self.is_writable = self.state == "ready" and not self.is_congested

    # -- actions of the machine, see the table: connecting -------------------------------------

    def start_attempt(self) -> None:
        """Start an attempt with the next host."""
        self._host = self._schedule.next_host()
        self._errors = ConnectionErrors(self.address, self._host)
        self._settings_adapted = False
        self._attempt = Deferred.fromCoroutine(self._connect())
        self._attempt.addErrback(self._attempt_ended)

    async def _connect(self) -> None:
        host, options = self._host, self.options
        protocol = AMQPProtocol(
            Login(username=host.username, password=host.password, vhost=self.address.vhost, name=self.client_name),
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
            on_rejected = self._errors.certificate_rejected
            client_endpoint = endpoint(
                self.reactor, host.host, host.port, tls=self.address.tls, options=options, on_rejected=on_rejected
            )
            await in_time(client_endpoint.connect(_SingleProtocolFactory(protocol)), "connecting")
            self._machine.connected()
            await in_time(Deferred.fromCoroutine(protocol.handshake()), "the handshake")
            self._machine.opened()
            await self.handler.prepare(protocol)
            self._check_prepared(protocol)
        except BaseException as error:
            cancelled = AMQPClosedError("the attempt was cancelled", clean=True)
            protocol.end(error if isinstance(error, AMQPClosedError) else cancelled)
            raise
        self.protocol = protocol
        self._machine.prepared()

    def _check_prepared(self, protocol: AMQPProtocol) -> None:
        """Raise if the connection was lost or closed, which prepare does not notice while it awaits something else."""
        if protocol.reason is not None:
            raise protocol.reason
        if self.state != "preparing":
            raise CancelledError

    def _attempt_ended(self, failure: Failure) -> None:
        state = self.state
        if failure.check(CancelledError, ConnectingCancelledError) and state in {"closing", "closed"}:
            return
        self._machine.failed(self._errors.from_attempt(failure, handshaking=state == "handshaking"))

    def became_ready(self) -> None:
        """Resume publishing, log a recovery, and fire the Deferred of open()."""
        self._update_writable()
        metrics.broker_connected.at(self.name).value += 1
        opening, self._opening = self._opening, None
        self._schedule.reset()
        self._attempt = None
        flight.note("broker", f"{self.name} connected {self._shown()}")
        if opening is None:
            self.reconnects += 1
            metrics.broker_reconnects.at(self.name).value += 1
            _log.info("the {name} connection was restored: {broker}", name=self.name, broker=self._shown())
        self.last_error = None
        self._logged_reasons.clear()
        if self.blocked_by:
            self._machine.block()  # connection.blocked arrived during prepare
        else:
            self.handler.ready()
        if opening is not None:
            opening.callback(None)

    # -- actions: failures ---------------------------------------------------------------------

    def lose_blocked(self, error: BrokerError) -> None:
        """Do as :meth:`lose`, after the broker has blocked publishing."""
        metrics.broker_blocked.at(self.name).value -= 1
        self.lose(error)

    def lose(self, error: BrokerError) -> None:
        """Count a lost connection, and reconnect."""
        metrics.broker_connected.at(self.name).value -= 1
        metrics.broker_lost.at(self.name).value += 1
        self._update_writable()
        self.reconnect(error)

    def reconnect(self, error: BrokerError) -> None:
        """Schedule the next attempt, or fail open() if it has tried every host in vain."""
        self.last_error, self.protocol = error, None
        if self._opening is not None and self._schedule.has_tried_all() and not self._settings_adapted:
            self._open_error = error
            self._machine.close()
            return
        delay = self._schedule.delay(error)
        if self._settings_adapted:
            delay = 0.0  # what the broker refused is not declared again
        else:
            self._log_once(error, delay)
        flight.note("broker", f"{self.name} retry in {delay:.1f} s {type(error).__name__} {self._shown()}")
        self._retry_call = self.reactor.callLater(delay, self._retry)

    def _log_once(self, error: BrokerError, delay: float) -> None:
        """Log each distinct reason once in an outage. The failure of the first open is its caller's to log."""
        reason = str(error)
        if self._opening is None and reason not in self._logged_reasons and len(self._logged_reasons) < _LOGGED_BOUND:
            self._logged_reasons.add(reason)
            _log.warn(
                "the {name} connection is down; reconnecting in {delay:.1f} s (attempt {attempt}): {error}",
                name=self.name,
                delay=delay,
                attempt=self._schedule.attempts + 1,
                error=error,
            )

    def _retry(self) -> None:
        self._retry_call = None
        self._machine.retry_due()

    # -- actions: blocked ----------------------------------------------------------------------

    def became_blocked(self) -> None:
        """Stop publishing until connection.unblocked."""
        self._update_writable()
        metrics.broker_blocked.at(self.name).value += 1
        _log.warn("the broker blocks publishing: {reason}; messages are held until it unblocks", reason=self.blocked_by)

    def became_unblocked(self) -> None:
        """Resume publishing."""
        self._update_writable()
        metrics.broker_blocked.at(self.name).value -= 1
        _log.info("the broker no longer blocks publishing")
        self.handler.ready()

    # -- actions: closing ----------------------------------------------------------------------

    def disconnect_blocked(self) -> None:
        """Do as :meth:`disconnect_ready`, after the broker has blocked publishing."""
        metrics.broker_blocked.at(self.name).value -= 1
        self.disconnect_ready()

    def disconnect_ready(self) -> None:
        """Close the connection."""
        metrics.broker_connected.at(self.name).value -= 1
        self._update_writable()
        self.disconnect()

    def disconnect(self) -> None:
        """Cancel the attempt or the backoff, and close the connection if there is one."""
        if self._retry_call is not None:
            self._retry_call.cancel()
            self._retry_call = None
        if self._attempt is not None:
            self._attempt.cancel()
        protocol, self.protocol = self.protocol, None
        closing = succeed(None) if protocol is None else protocol.close()
        closing.addBoth(lambda _: self._machine.disconnected())

    def fire_waiters(self) -> None:
        """Fire the Deferreds of close(), and fail that of an open() that was cut short."""
        opening, self._opening = self._opening, None
        closing, self._close_waiters = self._close_waiters, []
        if opening is not None and not opening.called:
            opening.errback(self._open_error)
        for closed in closing:
            closed.callback(None)

    def ignore_failure(self, error: BrokerError) -> None:
        """Ignore a failure of the attempt that closing has cancelled."""

    def _shown(self) -> str:
        return self.address.shown(self._host)


_ATTEMPTING = "connecting | handshaking | preparing"
_INPUT = _Machine

_make_machine = build_machine(
    _Machine,
    Connection,
    "idle",
    (
        ("idle", _INPUT.open, "connecting", Connection.start_attempt),
        ("waiting", _INPUT.retry_due, "connecting", Connection.start_attempt),
        ("connecting", _INPUT.connected, "handshaking", None),
        ("handshaking", _INPUT.opened, "preparing", None),
        ("preparing", _INPUT.prepared, "ready", Connection.became_ready),
        # -- failures
        (_ATTEMPTING, _INPUT.failed, "waiting", Connection.reconnect),
        ("ready", _INPUT.failed, "waiting", Connection.lose),
        ("blocked", _INPUT.failed, "waiting", Connection.lose_blocked),
        # -- connection.blocked and connection.unblocked; became_ready sees what came before it
        ("ready", _INPUT.block, "blocked", Connection.became_blocked),
        ("blocked", _INPUT.unblock, "ready", Connection.became_unblocked),
        (f"{_ATTEMPTING} | waiting | closing | closed | blocked", _INPUT.block, "", None),
        (f"{_ATTEMPTING} | waiting | closing | closed | ready", _INPUT.unblock, "", None),
        # -- close
        (f"idle | {_ATTEMPTING} | waiting", _INPUT.close, "closing", Connection.disconnect),
        ("ready", _INPUT.close, "closing", Connection.disconnect_ready),
        ("blocked", _INPUT.close, "closing", Connection.disconnect_blocked),
        ("closing", _INPUT.disconnected, "closed", Connection.fire_waiters),
        # -- inputs of an attempt that closing has cancelled
        ("closing | closed", _INPUT.close, "", None),
        ("closing | closed", _INPUT.connected, "", None),
        ("closing | closed", _INPUT.opened, "", None),
        ("closing | closed", _INPUT.prepared, "", None),
        ("closing | closed", _INPUT.retry_due, "", None),
        ("closing | closed", _INPUT.failed, "", Connection.ignore_failure),
    ),
)
