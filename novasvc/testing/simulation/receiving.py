"""What a process of a simulation receives: deliveries, and the listeners that they come from."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from novasvc.interfaces import IDelivery, IListener, ISession, Reachability, WriteProbe
from novasvc.testing.simulation.clock import ProcessClock
from novasvc.testing.simulation.link import Link
from novasvc.testing.simulation.sending import BROKER
from novasvc.transport.errors import BrokerUnavailableError

Receiver = Callable[[IDelivery], None]


class Ask(Protocol):
    """Asks the broker to do something."""

    def __call__(self, do: Callable[[], Deferred[Any]], stream: str, *, after: tuple[str, ...] = ()) -> Deferred[Any]:
        """Return the Deferred of the broker's answer; it fails with a BrokerUnavailableError without a connection.

        :param after: the streams of which the answer overtakes nothing.
        """


@implementer(ISession)
@attrs.define(eq=False)
class Session:
    """What deliveries arrive on until the process notices that its connection is lost; see ISession."""

    ended: bool = False
    redelivers: bool = attrs.field(default=True, init=False)


@implementer(IDelivery)
@attrs.define(eq=False)
class Delivery:
    """A message that has reached a process; settling it takes time, and is lost with the connection. See IDelivery."""

    _inner: Any
    _link: Link
    session: Session
    body: bytes
    expires_at: float | None
    _clock: ProcessClock
    deliveries: int
    deaths: int
    sent_to: str
    _settled: bool = attrs.field(default=False, init=False)
    counts_death: bool = attrs.field(default=True, init=False)

    @property
    def expires_in(self) -> float | None:
        """The seconds for which the sender still waits; see IDelivery for this and the methods."""
        return None if self.expires_at is None else self.expires_at - self._clock.seconds()

    def _settle(self, do: Callable[[], object]) -> None:
        if not (self._settled or self.session.ended):
            self._settled = True
            self._link.to_broker("settle", do)

    def ack(self) -> None:
        """Acknowledge the message."""
        self._settle(self._inner.ack)

    def reject(self) -> None:
        """Drop the message."""
        self._settle(self._inner.reject)

    def hold(self) -> None:
        """Do nothing: there is no consumer_timeout."""

    def requeue(self, deliveries: int) -> None:
        """Give the message back to any server of its target."""
        self._settle(partial(self._inner.requeue, deliveries))

    def requeue_here(self, deliveries: int) -> None:
        """Give the message back to this process."""
        self._settle(partial(self._inner.requeue_here, deliveries))

    def quarantine(self, reason: str) -> None:
        """Move the message to the quarantine."""
        self._settle(partial(self._inner.quarantine, reason))


@implementer(IListener)
@attrs.define(eq=False)
class Listener:
    """The consumers of one server, at the other end of a link; see IListener.

    :param name: of its streams.
    :param receiver: called in the process with each delivery.
    :ivar inner: the listener at the broker; None until it is made.
    :ivar abandoned: the connection was lost before the process knew of it.
    """

    _name: str
    _receiver: Receiver
    _link: Link
    _clock: ProcessClock
    _ask: Ask
    inner: Any = attrs.field(default=None, init=False)
    session: Session = attrs.field(factory=Session, init=False)
    hold_after: None = attrs.field(default=None, init=False)
    abandoned: bool = attrs.field(default=False, init=False)

    @property
    def live(self) -> bool:
        """Whether its consumers are active, as far as the process knows."""
        return self._link.connected and bool(self.inner.live)

    def deliver(self, inner: Any) -> None:
        """Take a delivery at the broker, and send it to the process."""
        session = self.session

        def receive() -> None:
            if session.ended:
                return
            # What it has waited on its way counts, too; see "Time in a queue" in the protocol.
            expires_in = inner.expires_in
            expires_at = None if expires_in is None else self._clock.seconds() + expires_in
            self._receiver(
                Delivery(
                    inner,
                    self._link,
                    session,
                    inner.body,
                    expires_at,
                    self._clock,
                    inner.deliveries,
                    deaths,
                    inner.sent_to,
                )
            )

        deaths = inner.deaths
        # Not before the answer to the request that made this listener.
        self._link.to_process(f"{self._name}.{inner.sent_to}", receive, after=("answers",))

    def lost(self) -> None:
        """Note that the process has lost its connection."""
        self.session.ended = True

    def restored(self) -> None:
        """Note that there is another connection."""
        self.session = Session()

    def _tell(self, do: Callable[[], Deferred[None]]) -> Deferred[None]:
        """Have the broker do something to the consumers; without a connection, do it before there is one again."""
        if not self._link.connected:
            return do()
        streams = tuple(f"{self._name}.{sent_to}" for sent_to in ("topic", "server", "fanout"))
        asking: Deferred[None] = self._ask(do, "settle", after=streams)

        def lost(failure: Any) -> Deferred[None]:
            failure.trap(BrokerUnavailableError)
            return do()

        return asking.addErrback(lost)

    def cancel_topic(self, prefetch: int) -> Deferred[None]:
        """See IListener for this and the other methods."""
        return self._tell(lambda: self.inner.cancel_topic(prefetch))

    def cancel(self) -> Deferred[None]:
        """Stop all deliveries."""
        return self._tell(self.inner.cancel)

    def close(self) -> Deferred[None]:
        """Delete the queues that only this listener used."""
        self.session.ended = True
        return self._tell(self.inner.close)

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Verify that messages reach this listener, within the time."""
        if not self._link.connected:
            return fail(BrokerUnavailableError(BROKER, "the connection is lost"))

        def late(*_: object) -> Reachability:
            raise BrokerUnavailableError(BROKER, f"the broker did not answer within {timeout:g} s")

        asking: Deferred[Reachability] = self._ask(lambda: self.inner.verify(write, timeout), "publish")
        return asking.addTimeout(timeout + 1.0, self._clock, onTimeoutCancel=late)
