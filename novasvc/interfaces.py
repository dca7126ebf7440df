"""The seams: what a part may expect of another without knowing which one it is.

Methods that wait return Deferreds. Each has a deadline of its own, so none waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from socket import socket
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from novasvc.context import RequestContext

if TYPE_CHECKING:
    from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
    from novasvc.registry.record import Records, ServiceChanges, ServiceRecord
    from novasvc.rpc.target import Target

WriteProbe = Callable[[str, str], bytes]
"""Takes a token and an address; returns a call whose reply goes to the address and bears the token."""


@attrs.frozen
class Reachability:
    """Whether messages reach a listener.

    :param problem: why they do not, the rest of a sentence; None if they do.
    :param repaired: what was missing and was made again, a noun phrase each.
    """

    problem: str | None = None
    repaired: tuple[str, ...] = ()


class ISession(Interface):
    """What deliveries come by, such as a channel. When it ends, the transport takes back what is unsettled."""

    ended = Attribute("bool: nothing that is said of its deliveries has an effect any more.")
    kept = Attribute("bool: what was unsettled then comes again, to somebody; False if it may be lost.")


class IDelivery(Interface):
    """One message on its way to a server. Settled once: acknowledged, rejected, requeued or quarantined."""

    body = Attribute("bytes: the message as it was sent.")
    expires_in = Attribute("float | None: seconds that the sender still waits, as far as the transport knows.")
    deliveries = Attribute("int: times that it was delivered before and not settled, as far as the transport knows.")
    deaths = Attribute("int: processes that held it and died, as far as that is certain; a lost channel is no death.")
    counted = Attribute("bool: the transport counts it as a death if this process dies with the delivery unsettled.")
    session = Attribute("ISession: what it came by.")
    sent_to = Attribute('str: what its sender addressed: "topic", "server" (of a topic) or "fanout".')

    def ack() -> None:
        """Say that the message is taken; it will not come again.

        Has no effect once the message was settled, or went back with its session: the message
        comes again then. It may come again, too, if the session ends at once. What is said below
        has no effect in the same cases.
        """

    def hold() -> None:
        """Keep the message unsettled for longer than :attr:`IListener.hold_after`.

        It may come again, to the same receiver and to no other while this process lives. The new
        delivery takes the place of this one: the receiver acknowledges this one. If it cannot be
        held, it stays as it was.
        """

    def reject() -> None:
        """Drop the message."""

    def requeue(deliveries: int) -> None:
        """Give the message back, to be delivered again, here or elsewhere.

        :param int deliveries: what the next delivery is to say; 0 for one that was not begun.
        """

    def requeue_here(deliveries: int) -> None:
        """Give the message back, to be delivered again, ``counted``, to this process alone while it lives.

        Where the transport has no such place, it does as :meth:`requeue`.

        :param int deliveries: what the next delivery is to say.
        """

    def quarantine(reason: str) -> None:
        """Put the message aside, where nobody consumes and an operator finds it.

        :param str reason: goes with it, in one line.
        """


class IListener(Interface):
    """What :meth:`ITransport.listen` started."""

    live = Attribute("bool: it consumes now.")
    hold_after = Attribute(
        "float | None: seconds after which a delivery has to be settled or held, or the transport may take it back."
    )

    def narrow(prefetch: int) -> Deferred[None]:
        """Go on with the messages to the server itself, and stop the deliveries of its topic and of fanouts.

        Called first when a server drains. Other listeners to the same server come first from now on, where the
        transport can tell.

        :param int prefetch: deliveries that may be unsettled at a time from now on, > 0.
        :return: Deferred[None], fired when no delivery of the topic or of a fanout will be made any more.
        """

    def verify(write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Prove that messages to its topic and server reach it, and make again what is missing.

        It sends itself a message as a caller would, and waits until it is back; the receiver does not get it. The
        bindings of the topic's queue and of its own queue for fanouts are made again, in turns. Called at
        intervals, by a listener of :meth:`ITransport.listen` with a server; not while one is under way.

        :param write: makes the message.
        :param float timeout: seconds until it is given up, > 0.
        :return: Deferred[Reachability].
        :raises BrokerError: it cannot be told now: the broker takes no messages, or the connection changed.
        """

    def cancel() -> Deferred[None]:
        """Stop the deliveries; those already made can still be acknowledged.

        Called when a server that drains has finished what it had begun.

        :return: Deferred[None], fired when no further delivery will be made.
        """

    def close() -> Deferred[None]:
        """Give up the queues that only this listener used; unacknowledged deliveries go back.

        Called last, after the calls in flight ended.

        :return: Deferred[None].
        """


class ITransport(Interface):
    """How messages move. Knows addresses and bytes, nothing of what they mean."""

    def open() -> Deferred[None]:
        """Connect. Called once before anything else.

        :return: Deferred[None]; fails with a BrokerUnavailableError that names the address, worth
            another attempt with a new transport.
        """

    def close() -> Deferred[None]:
        """Disconnect; whatever still waits fails with TransportClosedError.

        :return: Deferred[None].
        """

    def problem() -> str | None:
        """Say why messages do not move now, in a sentence that shows no secret; None if they do."""

    def listen(target: Target, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume from the topic, from topic and server, and from the topic's fanout.

        :param Target target: topic and server are used.
        :param receiver: called with an IDelivery for each message; returns None, never raises.
        :param int prefetch: deliveries from each of its queues that may be unsettled at a time, > 0.
        :return: Deferred[IListener], fired when the first message could arrive.
        """

    def consume(queue: str, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume from one queue and no other, made if it is not there; otherwise as :meth:`listen`.

        :param str queue: its name.
        """

    def post(queue: str, body: bytes) -> Deferred[None]:
        """Send a message to a queue, where it waits until somebody consumes it; made if it is not there.

        :param str queue: its name.
        :param bytes body: the message.
        :return: as :meth:`send`, and fails as that does.
        """

    def send(target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:
        """Send a request.

        :param Target target: topic, and server or fanout.
        :param bytes body: the message.
        :param ttl: float seconds after which nobody wants it, or None.
        :param bool mandatory: fail if nobody serves the target.
        :return: Deferred[None], fired when the transport answers for the message.
        :raises UndeliverableError: mandatory, and nobody is there.
        :raises TransportFullError: too many messages wait to be taken.
        :raises TransportClosedError: after close.
        :raises BrokerError: the broker refuses it, or is not there.
        :raises UnconfirmedError: the connection was lost while the message was under way.
        """

    def open_replies(receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Begin to receive replies. Called by each client before its first call is sent.

        :param receiver: called with the bytes of each reply; returns None, never raises.
        :return: Deferred[str]: the address that peers reply to, opaque.
        """

    def close_replies(address: str) -> Deferred[None]:
        """Receive no more replies at an address, and give it up.

        :param str address: what open_replies gave; one that was given up is no error.
        :return: Deferred[None]; never fails.
        """

    def reply(address: str, body: bytes, patience: float | None = None) -> Deferred[None]:
        """Send a reply.

        :param str address: what the caller's open_replies gave.
        :param bytes body: the message.
        :param patience: float seconds for which it may be held while it cannot be sent: those that its caller still
            waits. None, if nobody knows, is a bound of the transport's own.
        :return: Deferred[None]; a caller that is gone is no error. It fails if it could not be sent in time.
            Cancelling it gives up what is still held.
        """


class IServiceRegistry(Interface):
    """The ``services`` table, however it is reached.

    Every method returns a Deferred that fails with a subclass of DatabaseError, or with
    ServiceNotFoundError where there is no live row. Stamps and ages are by the clock of the
    database. :class:`novasvc.registry.record.ServiceRecord` is the row.
    """

    def open() -> Deferred[None]:
        """Reach the database and see that its schema is the one we know.

        Called again, with backoff, as long as it fails with DatabaseUnavailableError.

        :return: Deferred[None].
        """

    def close() -> Deferred[None]:
        """Let go of the database.

        :return: Deferred[None]; never fails.
        """

    def register(host: str, binary: str, topic: str | None, version: int) -> Deferred[ServiceRecord]:
        """Return the row of (host, binary), created if there is none. Racing is no error.

        :param str host: the node's host.
        :param str binary: the node's binary.
        :param topic: str, or None for a service that serves no topic.
        :param int version: the code's service version; an existing row gets it too.
        :return: Deferred[ServiceRecord].
        """

    def beat(service_id: int) -> Deferred[None]:
        """Add one to report_count and stamp last_seen_up.

        :param int service_id: the row's id.
        :return: Deferred[None]; fails with ServiceNotFoundError if the row is gone, and with DatabaseFullError, even
            though the row was stamped, if the database has no room for more.
        """

    def prove_writable() -> Deferred[None]:
        """See that the database can be written, and change nothing: for who sends no heartbeats.

        :return: Deferred[None]; fails with what a write would fail with.
        """

    def get(service: str) -> Deferred[ServiceRecord]:
        """Read one row.

        :param str service: its id in decimal, or its uuid.
        :return: Deferred[ServiceRecord].
        """

    def list(host: str | None, binary: str | None, topic: str | None) -> Deferred[Records]:
        """Read the live rows, ordered by binary, host, id.

        :param host: str, or None for all.
        :param binary: str, or None for all.
        :param topic: str, or None for all.
        :return: Deferred[list[ServiceRecord]].
        """

    def page(query: ServiceQuery) -> Deferred[ServicePage]:
        """Read a part of the live rows, in an order.

        :param ServiceQuery query: which part.
        :return: Deferred[ServicePage]; fails with ServiceNotFoundError if there never was the row it comes after.
        """

    def count(query: ServiceQuery) -> Deferred[ServiceTotals]:
        """Count the live rows that a query finds, whatever its limit and what it comes after.

        :param ServiceQuery query: which rows.
        :return: Deferred[ServiceTotals].
        """

    def update(service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """Change what an operator may change.

        :param int service_id: the row's id.
        :param ServiceChanges changes: what to change; what is not given stays.
        :return: Deferred[ServiceRecord], as it is then.
        """

    def delete(service_id: int) -> Deferred[None]:
        """Soft-delete the row: a new one for the same (host, binary) may follow.

        :param int service_id: the row's id.
        :return: Deferred[None].
        """


class IManager(Interface):
    """What a node drives; users write these. See :class:`novasvc.manager.Manager`.

    Each hook may return a value, a Deferred or a coroutine, and is awaited before the next step.
    """

    host = Attribute("str: the host this manager works for.")

    def attach(attachments: Any) -> None:
        """Take what the node gives its manager. Called once, before init_host.

        :param ManagerResources attachments: reactor, RPC client, task runner, registry.
        """

    def init_host() -> Any:
        """Prepare; nothing is consumed yet. Called after the row is there."""

    def pre_start_hook() -> Any:
        """Prepare further; called after init_host, before the first message can arrive."""

    def post_start_hook() -> Any:
        """Go on when messages can arrive; called before the first heartbeat."""

    def cleanup_host() -> Any:
        """Tidy up; called on stop, when the calls in flight and the running tasks have ended."""

    def periodic_tasks(context: RequestContext, raise_on_error: bool) -> Deferred[float]:
        """Run the tasks that are due.

        :param RequestContext context: an admin context.
        :param bool raise_on_error: let a task's exception through.
        :return: Deferred[float]: seconds to the next due task.
        """


class IStartable(Interface):
    """A service whose start takes time and can fail."""

    def when_started() -> Deferred[None]:
        """Wait for the start that is under way.

        :return: a new Deferred[None] each time; fired when running, fails with the reason.
        """


class IHealthy(Interface):
    """A service that can tell how it does."""

    def health() -> Deferred[dict[str, Any]]:
        """See whether it can do what it is there for; within seconds, whatever hangs.

        :return: Deferred of {"service": its name, "legs": [{"name": what it stands on, "ready": bool, "detail": text
            for people, without secrets, "since": ISO 8601 in UTC, when that became so}]}; never fails.
        """


class IPreforkable(Interface):
    """A server whose listening sockets are opened once, in the supervisor, and shared by all its workers.

    The supervisor's server opens them. Each worker gets a copy of the server, made by pickle, and
    copies of the sockets. What is pickled must not hold the sockets.
    """

    def open_sockets(held: Sequence[socket]) -> Sequence[socket]:
        """Return sockets that listen. Called once, with the supervisor's privileges, before a worker exists.

        Called again on the server that takes this one's place in a reload.

        :param held: the sockets of the server that it replaces; one that is bound to the right
            address is to be returned, for it cannot be bound again.
        :raises NovasvcError: an address cannot be bound.
        """

    def adopt_sockets(sockets: Sequence[socket]) -> None:
        """Take what open_sockets returned, in the same order. Called in each worker, before startService.

        :param sockets: the worker's own copies; to be closed when they are not needed any more.
        """


class IReplaceable(IPreforkable):
    """A server that another may take the place of in the same process, without its address being closed meanwhile."""

    replaceable = Attribute("bool: its sockets can be handed on. That of a file has one owner, and cannot.")

    def duplicate_sockets() -> Sequence[socket]:
        """Return copies of its sockets, for the :meth:`IPreforkable.open_sockets` of another."""

    def superseded() -> None:
        """See that another listens where it does: who waits there when it is stopped, is the other's."""


Rows = Sequence[dict[str, Any]]
"""As Records, above."""


class ISupervisor(Interface):
    """What an operator can ask of a supervisor. Arguments and results are JSON types."""

    def workers() -> Rows:
        """Return a row for each worker process or place of one, by number.

        :return: {"number": int, "server": str, "pid": int or None, "state": "starting", "ready",
            "draining", "hung", "backing off" or "failed", "since": ISO 8601 in UTC, "restarts": int,
            "memory": private bytes or None, "trouble": str or None}.
        """

    def resize(count: int, server: str | None) -> None:
        """Run that many workers.

        :param count: > 0.
        :param server: its name; None is the only one.
        :raises ResizeError: the number cannot be had, or there are several servers.
        :raises NoSuchWorkerError: no server has this name.
        """

    def drain(number: int | None) -> Deferred[None]:
        """Drain one worker, which is then replaced; or all, and end the supervisor.

        :param number: of the worker; None is all.
        :return: fired when it has ended; for all, when their draining has begun.
        :raises NoSuchWorkerError: no worker has this number.
        """

    def reload() -> Deferred[Rows]:
        """Read the configuration again, and replace all workers, one after the other.

        :return: fired when the last one is replaced, with a row for each setting that has changed:
            {"setting", "before", "after"}, texts, secrets masked.
        :raises ReloadError: it was refused, or a new worker did not become ready.
        """

    def metrics() -> Deferred[Rows]:
        """Tell the figures of all workers, and of the supervisor, in one.

        A worker that does not answer within a second is left out.

        :return: a :data:`novasvc.telemetry.instruments.Document` for each name; the label "worker" is added.
        """

    def health() -> Deferred[Rows]:
        """Tell how the services of all workers are.

        :return: a row for each: number, server, pid, state as in workers(); "services": [{"service": its name,
            "legs": [{"name", "ready": bool, "detail", "since": ISO 8601 in UTC}]}] or None if it does not answer.
        """

    def dump() -> Deferred[Rows]:
        """Say what every worker does.

        :return: a row for each: number, server, pid, state as in workers(); "stacks": text;
            "calls": [{"method", "request_id", "seconds"}] or None if it does not answer; "events":
            [{"time": ISO 8601 in UTC, "kind": str, "text": str}], the last ones last.
        """
