"""The interfaces between the parts of the package, with when each method is called and what it raises.

Methods that wait return Deferreds. Each has its own deadline, so none waits for ever.
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
    from novasvc.middleware.invocation import Invocation
    from novasvc.periodic.term import Term
    from novasvc.registry.incarnation import ServiceStart, ServiceState
    from novasvc.registry.lease import LeaseRequest, Leases
    from novasvc.registry.observation import Observation, Observations, StatusChange
    from novasvc.registry.operation import (
        NodeChange,
        Nodes,
        Operation,
        OperationRequest,
        Operations,
        OperationState,
    )
    from novasvc.registry.outages import Outages, VerdictRule
    from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
    from novasvc.registry.record import Records, ServiceChanges, ServiceRecord
    from novasvc.rpc.target import Target

# -- messages ------------------------------------------------------------------------------------

WriteProbe = Callable[[str, str], bytes]
"""Take a token and a reply address; return a call, as bytes, whose reply goes to the address and carries the token."""


@attrs.frozen
class Reachability:
    """The result of verifying that messages reach a listener.

    :param problem: why they do not, as the rest of a sentence; None if they do.
    :param repaired: what was missing and was declared again, one noun phrase each.
    """

    problem: str | None = None
    repaired: tuple[str, ...] = ()


class ISession(Interface):
    """What deliveries arrive on, such as a channel. When it ends, the transport takes back unsettled deliveries."""

    ended = Attribute("bool: settling its deliveries has no effect any more.")
    redelivers = Attribute(
        "bool: deliveries that were unsettled at its end are delivered again; False if they may be lost."
    )


class IDelivery(Interface):
    """One message delivered to a server. Settled once: acknowledged, rejected, requeued or quarantined."""

    body = Attribute("bytes: the message as it was sent.")
    expires_in = Attribute("float | None: seconds for which the sender still waits; None if unknown.")
    expires_at = Attribute(
        "float | None: seconds on the transport's clock when the sender stops waiting; None if unknown."
    )
    deliveries = Attribute("int: earlier deliveries of the message that were not settled, as far as is known.")
    deaths = Attribute(
        "int: processes that died holding the message, as far as is certain; a lost channel is no death."
    )
    counts_death = Attribute("bool: the transport counts a death if this process dies before it settles the delivery.")
    session = Attribute("ISession: what it arrived on.")
    sent_to = Attribute('str: how its sender addressed it: "topic", "server" (of a topic) or "fanout".')

    def ack() -> None:
        """Acknowledge the message, so that it is not delivered again.

        Has no effect if the message was settled before, or if its session has ended: then it is delivered
        again. It may also be delivered again if the session ends before the acknowledgement arrives. The
        other methods have no effect in the same cases.
        """

    def hold() -> None:
        """Keep the message unsettled for longer than :attr:`IListener.hold_after`.

        It may be delivered again, only to this receiver while this process lives. The new delivery
        replaces this one, and the receiver acknowledges the new one. If the message cannot be held,
        nothing changes.
        """

    def reject() -> None:
        """Drop the message."""

    def requeue(deliveries: int) -> None:
        """Give the message back, to be delivered again to any server of its target.

        :param int deliveries: the ``deliveries`` of the next delivery; 0 for a message that was not begun.
        """

    def requeue_here(deliveries: int) -> None:
        """Give the message back, to be delivered again only to this process while it lives.

        The next delivery has ``counts_death``, so a process that dies with it is counted.

        A transport without queues of one process does the same as :meth:`requeue`.

        :param int deliveries: the ``deliveries`` of the next delivery.
        """

    def quarantine(reason: str) -> None:
        """Move the message to the quarantine queue, which nobody consumes and operators inspect.

        :param str reason: stored with it, one line.
        """


class IListener(Interface):
    """The consumers that :meth:`ITransport.listen` or :meth:`ITransport.consume` started."""

    live = Attribute("bool: its consumers are active now.")
    hold_after = Attribute(
        "float | None: seconds within which a delivery must be settled or held; then the transport may redeliver it."
    )

    def cancel_topic(prefetch: int) -> Deferred[None]:
        """Stop the deliveries of the topic and of fanouts; continue with messages to the server itself.

        Called first when a server drains. From now on the transport prefers other listeners to the same
        server, if it can.

        :param int prefetch: unsettled deliveries at a time from now on, > 0.
        :return: Deferred[None], fired when no further delivery of the topic or of a fanout will be made.
        """

    def verify(write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Verify that messages to the topic and the server reach this listener; declare again what is missing.

        It sends itself a message as a caller would, and waits for it; the receiver does not see it. The
        bindings of the topic's queue and of the listener's fanout queue are declared again in turn. Called at
        intervals, only for listeners of :meth:`ITransport.listen` with a server, and never concurrently.

        :param write: makes the message.
        :param float timeout: seconds until the verification is given up, > 0.
        :return: Deferred[Reachability].
        :raises BrokerError: unknown: the broker takes no messages now, or the connection was replaced meanwhile.
        """

    def cancel() -> Deferred[None]:
        """Stop all deliveries. Deliveries already made can still be settled.

        Called when a draining server has finished the calls it had begun.

        :return: Deferred[None], fired when no further delivery will be made.
        """

    def close() -> Deferred[None]:
        """Delete the queues that only this listener used; the broker requeues unsettled deliveries.

        Called last, after the calls in flight have ended.

        :return: Deferred[None].
        """


class ITransport(Interface):
    """Moves messages. Knows addresses and bytes, nothing of their contents."""

    def open() -> Deferred[None]:
        """Connect. Called once, before any other method.

        :return: Deferred[None]; fails with a BrokerUnavailableError that names the address. The caller may
            try again with a new transport.
        """

    def close() -> Deferred[None]:
        """Disconnect. Deferreds that have not fired fail with TransportClosedError.

        :return: Deferred[None].
        """

    def problem() -> str | None:
        """Return why messages cannot be sent now, as a sentence without secrets; None if they can."""

    def listen(target: Target, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume from the topic, from topic and server, and from the topic's fanout.

        :param Target target: its topic and server are used.
        :param receiver: called with an IDelivery for each message; returns None, never raises.
        :param int prefetch: unsettled deliveries at a time from each of the queues, > 0.
        :return: Deferred[IListener], fired when the first message can arrive.
        """

    def consume(queue: str, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume from one queue, declared if missing; otherwise as :meth:`listen`.

        :param str queue: its name.
        """

    def subscribe(
        queue: str, keys: Sequence[str], receiver: Callable[[IDelivery], None], prefetch: int
    ) -> Deferred[IListener]:
        """Consume from a queue that gets a copy of each message published to one of the keys; see :meth:`publish`.

        All who subscribe with the same queue share its messages. The queue outlives its consumers, as far as the
        transport's queues do.

        :param str queue: its name, declared if missing.
        :param keys: routing keys, str.
        :return: as :meth:`listen`.
        """

    def publish(key: str, body: bytes) -> Deferred[None]:
        """Send a message to every queue that is subscribed to a key, or has its name.

        :param str key: a routing key.
        :param bytes body: the message.
        :return: as :meth:`send`, with the same failures; UndeliverableError if there is no such queue.
        """

    def post(queue: str, body: bytes) -> Deferred[None]:
        """Send a message to a queue, declared if missing, where it waits for a consumer.

        :param str queue: its name.
        :param bytes body: the message.
        :return: as :meth:`send`, with the same failures.
        """

    def send(target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:
        """Send a request.

        :param Target target: topic, and server or fanout.
        :param bytes body: the message.
        :param ttl: TTL in seconds as a float, or None.
        :param bool mandatory: fail if no queue is bound for the target.
        :return: Deferred[None], fired when the transport has taken responsibility for the message (a confirm).
        :raises UndeliverableError: mandatory, and no queue was bound.
        :raises TransportFullError: the buffer of unsent messages is full.
        :raises TransportClosedError: after close.
        :raises BrokerError: the broker refuses the message, or is unavailable.
        :raises UnconfirmedError: the connection was lost before the confirm.
        """

    def open_replies(receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Start to receive replies. Called by each client before its first call.

        :param receiver: called with the bytes of each reply; returns None, never raises.
        :return: Deferred[str]: the reply address, opaque to peers.
        """

    def close_replies(address: str) -> Deferred[None]:
        """Stop receiving replies at an address, and delete it.

        :param str address: the result of open_replies. An address closed before is ignored.
        :return: Deferred[None]; never fails.
        """

    def reply(address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        """Send a reply.

        :param str address: the result of the caller's open_replies.
        :param bytes body: the message.
        :param timeout: seconds as a float for which the reply may be buffered while it cannot be sent: the time its
            caller still waits. None, if that is unknown, takes the transport's own bound.
        :return: Deferred[None]; succeeds if the caller is gone. Fails if the reply could not be sent in time.
            Cancelling drops a reply that is still buffered.
        """


# -- around invocations --------------------------------------------------------------------------


class IMiddleware(Interface):
    """Code around calls, methods, events, tasks and HTTP requests; see :mod:`novasvc.middleware`.

    One object serves all invocations of a process, concurrently.
    """

    kinds = Attribute("frozenset of str: the kinds of invocations that it wraps; see novasvc.middleware.KINDS.")

    def handle(invocation: Invocation, proceed: Callable[[Invocation], Deferred[Any]]) -> Any:
        """Do something before and after one invocation. Called in the reactor's thread; must not block.

        A deadline that passes meanwhile cancels what it waits for, as it would cancel the method.

        :param Invocation invocation: what is about to happen.
        :param proceed: the next middleware, or the call or method itself: takes the invocation, or a copy of it with
            another context or other arguments, and returns a Deferred of the reply. Called once, and awaited.
        :return: the reply, or a coroutine or a Deferred of it: what ``proceed`` gave, or another one; or a
            :class:`novasvc.middleware.Answer` to answer without ``proceed``. What it raises goes to the caller.
        """


# -- the registry --------------------------------------------------------------------------------


class IServiceRegistry(Interface):
    """Access to the ``services`` table: in SQL, in memory, or through a conductor.

    Every method returns a Deferred that fails with a subclass of DatabaseError, or with
    ServiceNotFoundError if there is no live row. Time stamps and ages are by the database's
    clock. :class:`novasvc.registry.record.ServiceRecord` is a row.
    """

    def open() -> Deferred[None]:
        """Connect to the database, and check that its schema has the revision this version works with.

        Called again, with backoff, while it fails with DatabaseUnavailableError.

        :return: Deferred[None].
        """

    def close() -> Deferred[None]:
        """Close the connections to the database.

        :return: Deferred[None]; never fails.
        """

    def register(host: str, binary: str, topic: str | None, version: int) -> Deferred[ServiceRecord]:
        """Return the row of (host, binary), created if there is none. Concurrent calls are safe.

        :param str host: the node's host.
        :param str binary: the node's binary.
        :param topic: str, or None for a service without a topic.
        :param int version: the code's service version; written to an existing row too.
        :return: Deferred[ServiceRecord].
        """

    def begin(start: ServiceStart) -> Deferred[ServiceRecord]:
        """Begin the next incarnation of (host, binary), and create its row if there is none.

        Of concurrent calls, one wins. A start whose ``owner`` has the latest incarnation already gets that one again,
        in whatever state it is; or ServiceNotFoundError, if its row was deleted.

        :param ServiceStart start: what the service says of itself.
        :return: Deferred[ServiceRecord]: its ``incarnation`` has the number, or is None where incarnations cannot be
            kept: an older conductor, or a database without our tables. Fails with ServiceTwinError if another start is
            alive.
        """

    def beat(service_id: int, incarnation: int | None = None) -> Deferred[None]:
        """Write a heartbeat: add one to report_count and stamp last_seen_up.

        :param int service_id: the row's id.
        :param incarnation: number of the incarnation that lives; None for a service without one, which nothing refuses.
        :return: Deferred[None]; fails with ServiceNotFoundError if the row was deleted. Fails with DatabaseFullError
            if the database has no space for more rows, even though this row was stamped. With an incarnation, it fails
            with ServiceSupersededError if a later one has begun, or with ServiceForcedDownError while the service is
            forced down; then nothing was written.
        """

    def enter(
        service_id: int,
        incarnation: int,
        state: ServiceState,
        *,
        until: float | None = None,
        reason: str | None = None,
        calls: int = 0,
    ) -> Deferred[None]:
        """Write the state of an incarnation. Entering the same state again keeps ``since``, and writes the rest.

        A service that is forced down may say its state, too.

        :param int service_id: the row's id.
        :param int incarnation: number of the incarnation.
        :param state: see :class:`novasvc.registry.incarnation.Incarnation`, as for ``reason`` and ``calls``.
        :param until: seconds from now until the deadline of a drain; None without one. 0 with "starting" says that it
            still starts, so that no other start takes its place.
        :return: Deferred[None]; fails with ServiceNotFoundError if the row was deleted, or with ServiceSupersededError
            if a later incarnation has begun.
        """

    def prove_writable() -> Deferred[None]:
        """Check that the database can be written, without a change. For services that send no heartbeats.

        :return: Deferred[None]; fails as a write would.
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
        """Read one page of the live rows, filtered and sorted.

        :param ServiceQuery query: filters, sort order, marker and limit.
        :return: Deferred[ServicePage]; fails with ServiceNotFoundError if the marker row never existed, unless the
            marker is an id, and the order that of ids.
        """

    def count(query: ServiceQuery) -> Deferred[ServiceTotals]:
        """Count the live rows that match a query, ignoring its limit and marker.

        :param ServiceQuery query: the filters.
        :return: Deferred[ServiceTotals].
        """

    def update(service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """Change the columns that an operator may change.

        :param int service_id: the row's id.
        :param ServiceChanges changes: the new values; None leaves a column as it is.
        :return: Deferred[ServiceRecord]: the row after the change.
        """

    def delete(service_id: int) -> Deferred[None]:
        """Soft-delete the row. A new row for the same (host, binary) may follow.

        :param int service_id: the row's id.
        :return: Deferred[None].
        """

    def outages(rule: VerdictRule) -> Deferred[Outages]:
        """Find the outages that concern many services now; see :mod:`novasvc.registry.outage_search`.

        A registry records for an hour the times in which a service was silent for long and that a heartbeat has ended;
        the outages follow from them and from the rows.

        :param VerdictRule rule: the settings to find them by.
        :return: Deferred[Outages]; what was read within the last sixtieth of service_down_time, at most a second, may
            be returned again.
        """

    def observations(observer: str) -> Deferred[Observations]:
        """Read what an observer was told of each service, ordered by service_id.

        :param str observer: its name.
        :return: Deferred[list[Observation]].
        """

    def observe(observer: str, fencing: int, observations: Sequence[Observation]) -> Deferred[None]:
        """Write what an observer was told, or is to be told, in one transaction.

        :param str observer: its name.
        :param int fencing: fencing number of the process that tells it.
        :param observations: the new ones; one with a status of None is deleted. Those of other services stay.
        :return: Deferred[None]; fails with ObserverSupersededError if a greater fencing number has written before, then
            nothing was written.
        """

    def hold_leases(request: LeaseRequest) -> Deferred[Leases]:
        """Renew the leases that the owner has, and take those that are free or have ended.

        A renewed lease keeps its fencing number; one that is taken gets the next number, even if the owner had it
        before it ended. Runs are recorded only for leases that the owner has then.

        :param LeaseRequest request: owner, tasks and length of the leases.
        :return: Deferred[list[Lease]]: the leases of these tasks by name, whoever has them.
        """

    def release_leases(topic: str, owner: str, tasks: Sequence[str]) -> Deferred[None]:
        """Free leases, so that another process need not wait for their end. Leases of other owners stay.

        :param str topic: topic of the tasks.
        :param str owner: as in the request that took them.
        :param tasks: names of the tasks.
        :return: Deferred[None].
        """

    def list_leases() -> Deferred[Leases]:
        """Read all leases, ordered by topic and task, those that are free included.

        :return: Deferred[list[Lease]].
        """


class IOperationStore(Interface):
    """The operations on a fleet: what an operator does to many nodes, and how far it has come.

    A node belongs to at most one operation that runs, so that two operators do not get in each other's way. Every
    method returns a Deferred that fails with a subclass of DatabaseError, or with OperationNotFoundError. Times and
    ages are by the database's clock.
    """

    def begin(request: OperationRequest) -> Deferred[Operation]:
        """Store a new operation, which runs from now on; delete those that ended KEPT seconds ago.

        :param OperationRequest request: the operation and its nodes.
        :return: Deferred[Operation]; fails with OperationConflictError if another one that runs has some of the nodes.
        """

    def read(operation: int) -> Deferred[Operation]:
        """Read an operation.

        :param int operation: its number.
        :return: Deferred[Operation].
        """

    def nodes(operation: int) -> Deferred[Nodes]:
        """Read the nodes of an operation, in the order of their positions.

        :param int operation: its number.
        :return: Deferred[list[OperationNode]].
        """

    def list(limit: int) -> Deferred[Operations]:
        """Read the latest operations, the latest first.

        :param int limit: the most that are read, > 0.
        :return: Deferred[list[Operation]].
        """

    def resume(operation: int, owner: str, operator: str, skip_failed: bool) -> Deferred[Operation]:
        """Take over an operation that was halted, or of whose command nothing was heard for RUNNER_TIMEOUT.

        Nodes that failed are pending again, or skipped.

        :param int operation: its number.
        :param str owner: random id of the command that takes it over.
        :param str operator: see :class:`novasvc.registry.operation.OperationRequest`.
        :param bool skip_failed: leave out the nodes that failed.
        :return: Deferred[Operation]; fails with OperationStateError if it has ended otherwise, or its command runs;
            with OperationConflictError if another operation has some of its nodes.
        """

    def note(operation: int, owner: str, changes: Sequence[NodeChange]) -> Deferred[None]:
        """Write that the command is there, and how nodes have come on.

        :param int operation: its number.
        :param str owner: as in the request that began or resumed it.
        :param changes: NodeChange each; may be empty.
        :return: Deferred[None]; fails with OperationStateError if the operation has ended, or has another owner.
        """

    def end(operation: int, owner: str, state: OperationState, reason: str | None) -> Deferred[None]:
        """End an operation. Another one may have its nodes from now on.

        :param int operation: its number.
        :param str owner: as for :meth:`note`.
        :param state: "done" or "halted".
        :param reason: str: why it was halted, or None.
        :return: Deferred[None]; fails as :meth:`note`.
        """

    def abort(operation: int, operator: str) -> Deferred[Operation]:
        """End an operation for good, whoever runs it. Nodes that are under way are left to themselves.

        :param int operation: its number.
        :param str operator: who aborts it, for people.
        :return: Deferred[Operation]; fails with OperationStateError if it is done or aborted.
        """


class IServiceObserver(Interface):
    """Code that is told when a service of the fleet goes down, comes back or is suspect.

    Each method may return a value, a Deferred or a coroutine. Changes of one service come one after the other, those of
    several at the same time. A method that fails is called again; see :class:`novasvc.registry.observer.FleetObserver`.
    """

    def on_up(change: StatusChange) -> Any:
        """Handle a service that is alive now: a new one, or one that was suspect or down.

        :param StatusChange change: the service, with what it was before.
        """

    def on_down(change: StatusChange) -> Any:
        """Handle a service that is down now, or whose row was deleted.

        :param StatusChange change: the service, with the reason.
        """

    def on_suspect(change: StatusChange) -> Any:
        """Handle a service of which it is not certain that it is down. Nothing should be done to it yet.

        :param StatusChange change: the service, with the reason.
        """


# -- managers and services -----------------------------------------------------------------------


class IManager(Interface):
    """The code that users write: a node calls its hooks, serves its methods, runs its tasks.

    Each hook may return a value, a Deferred or a coroutine, and is awaited before the next step.
    :class:`novasvc.manager.Manager` is the base class.
    """

    host = Attribute("str: the name of the host this manager serves.")

    def attach(attachments: Any) -> None:
        """Receive the node's resources. Called once, before init_host.

        :param ManagerResources attachments: reactor, RPC client, task runner, registry.
        """

    def init_host() -> Any:
        """Prepare this host. Called when the row is registered; no messages are consumed yet."""

    def pre_start_hook() -> Any:
        """Prepare further. Called after init_host, before the first message can arrive."""

    def post_start_hook() -> Any:
        """Continue once messages can arrive. Called before the first heartbeat."""

    def cleanup_host() -> Any:
        """Clean up. Called on stop, when the calls in flight and the running tasks have ended."""

    def periodic_tasks(context: RequestContext, raise_on_error: bool) -> Deferred[float]:
        """Run the tasks that are due.

        :param RequestContext context: an admin context.
        :param bool raise_on_error: fail with the first exception of a task.
        :return: Deferred[float]: seconds until the next task is due.
        """


class IElection(Interface):
    """Decides which of several processes runs a manager's tasks.

    A process has the lead of a task for one or more terms. A term begins with the call of ``gained``, and ends with the
    call of ``lost``, or with :meth:`resign`.
    """

    def start(tasks: Sequence[str], gained: Callable[[str, Term], object], lost: Callable[[str, str], object]) -> None:
        """Begin to stand for these tasks. Called once.

        :param tasks: names of the tasks.
        :param gained: called with a task's name and the :class:`novasvc.periodic.term.Term` when this process gets the
            lead, maybe before this method returns; never raises.
        :param lost: called with a task's name and the reason, the rest of a sentence, when this process loses the lead;
            the task must stop at once. Never raises.
        """

    def begin(task: str, due: float | None) -> bool:
        """Note that a run of a task begins, unless this process does not lead it, or its time to do so is over.

        :param str task: its name.
        :param due: its due time by its cron line, Unix seconds; None if it has no cron line.
        :return: bool: whether the run may begin.
        """

    def resign(task: str) -> Deferred[None]:
        """Give up the lead of a task for good, or the standing for it. Called when no run of it is under way.

        :param str task: its name. A second call has no effect.
        :return: Deferred[None]; never fails, and waits a second or two at most.
        """

    def leader(task: str) -> str | None:
        """Return who leads a task, for people; None if that is not known.

        :param str task: its name.
        """


class IStartable(Interface):
    """A service whose start takes time and can fail."""

    def when_started() -> Deferred[None]:
        """Wait for the start that is under way.

        :return: a new Deferred[None] each time, fired when the service runs; fails with the reason it does not.
        """


class IHealthy(Interface):
    """A service that reports its health."""

    def health() -> Deferred[dict[str, Any]]:
        """Check whether the service can work. Answers within seconds, even if a dependency hangs.

        :return: Deferred of {"service": its name, "legs": [{"name": of the dependency, "ready": bool, "detail": text
            without secrets, "since": when a check first found this ``ready``, ISO 8601 in UTC}]}; never fails.
        """


class IWebPage(Interface):
    """A service with a web page, whose URL is printed at the start."""

    login_url = Attribute("str: a link that logs one browser in, once; the page itself if it needs no login.")


class IInspectable(Interface):
    """A service whose work its worker reports to the supervisor."""

    waiting_for = Attribute('str | None: what its start waits for, such as "database"; None if it waits for nothing.')

    def running_calls() -> list[dict[str, Any]]:
        """Return the calls under way: [{"method": str, "request_id": str or None, "seconds": float}].

        A call that has reported progress has {"fraction": float, "text": str} as well.
        """

    def operations_under_way() -> set[str]:
        """Return the request ids of the operations under way; see :mod:`novasvc.rpc.server.admission`."""


class IDescribable(Interface):
    """A service that describes itself; the supervisor collects the descriptions by all workers."""

    def describe_process(what: str) -> Deferred[dict[str, Any]]:
        """Return what this process knows of it, as JSON with "host" and "binary".

        :param what: "describe": see :func:`novasvc.node.description.describe_process`; "history": see
            :func:`novasvc.node.description.describe_history`.
        """


class IExitRequester(Interface):
    """A service that may ask for the exit status of its process. Asked after it has stopped."""

    leaving = Attribute("SystemExit | None: what a part raised when it was stopped; None if nothing.")


class IProcessControl(Interface):
    """What a node may ask of the process that it runs in, if the process is novasvc's own and has no supervisor."""

    def reload_report() -> dict[str, Any]:
        """Return how the reloads of this process went; see :meth:`ISupervisor.reload_report`."""

    def begin_reload() -> None:
        """Begin to read the configuration again, and to restart the services in this process.

        Ignored with a warning while the services start or stop.
        """

    def drain() -> None:
        """Begin to drain, and then to exit, as at SIGTERM.

        Ignored with a warning if the process is to exit already: a second SIGTERM would cut its work short.
        """

    def restart() -> None:
        """Begin to drain; then run the same program again in this process, with the code as it is then.

        Ignored with a warning while the process stops.
        """


class IInterruptible(Interface):
    """A service that can cut its work short once it has been told to stop."""

    def hurry() -> None:
        """Cancel what is still running. Called after stopService, maybe more than once; must not raise or block."""


class IWaitable(Interface):
    """A server that tells when it has ended by itself."""

    def when_ended() -> Deferred[None]:
        """Wait for the end.

        :return: a new Deferred[None] each time; fails with the reason if the server failed.
        """


class IDrainable(Interface):
    """A protocol that can end its connection when the work on it is done."""

    def drain() -> None:
        """Finish what is under way, then close. Called once, when its server stops."""


class IPreloading(Interface):
    """A server, or a function that makes one, that names modules for the forkserver to import before it forks."""

    preload = Attribute("iterable of str: dotted names of modules.")


class ISpecification(Interface):
    """A value from which a service, or another part of one, is made. It can be pickled."""

    def build(reactor: Any) -> Any:
        """Make the service. Called in the process that runs it.

        :param reactor: the reactor of that process.
        :raises NovasvcError: it cannot be made.
        """


class ISpecified(Interface):
    """A service, or another part of one, that is made again in a worker from a value, and is not pickled itself."""

    def specification() -> ISpecification:
        """Return what an equal one is made of: what its constructor was given, and no later state.

        :raises SpecificationError: its class does not say how it is made.
        """


class IRebuildable(Interface):
    """A server that can be made again in this process, to follow a changed configuration."""

    by_environment = Attribute("bool: its settings came from the environment, not from its caller.")

    def rebuild() -> Any:
        """Make another server from the same arguments; files are read again.

        :raises NovasvcError: it cannot be made.
        """


# -- servers in workers, and their supervisor ----------------------------------------------------


class IPreforkable(Interface):
    """A server whose listening sockets are opened once, in the supervisor, and shared by all its workers.

    Each worker gets a pickled copy of the supervisor's server and duplicates of its sockets. The pickle
    must not contain the sockets.
    """

    def open_sockets(held: Sequence[socket]) -> Sequence[socket]:
        """Return listening sockets. Called once, with the supervisor's privileges, before any worker exists.

        Called again, on the new server, in a reload.

        :param held: the sockets of the server that this one replaces. A socket that is bound to the right
            address is to be returned: the address cannot be bound a second time.
        :raises NovasvcError: an address cannot be bound.
        """

    def adopt_sockets(sockets: Sequence[socket]) -> None:
        """Use the sockets that open_sockets returned, in the same order. Called in each worker, before startService.

        :param sockets: the worker's own duplicates; close them when they are not needed any more.
        """


class IReplaceable(IPreforkable):
    """A server that another can replace in the same process without a moment when its address is closed."""

    replaceable = Attribute("bool: its sockets can be shared. A UNIX socket belongs to one server, and cannot.")

    def duplicate_sockets() -> Sequence[socket]:
        """Return duplicates of its sockets, as ``held`` of the other server's :meth:`IPreforkable.open_sockets`."""

    def superseded() -> None:
        """Note that another server listens on the same sockets, so that a stop leaves waiting connections to it."""


Rows = Sequence[dict[str, Any]]
"""A type of its own: the interface has methods whose results are lists of JSON objects."""


class ISupervisor(Interface):
    """The commands that an operator gives to a supervisor. Arguments and results are JSON types."""

    def workers() -> Rows:
        """Return a row for each worker slot, by number.

        :return: {"number": int, "server": str, "pid": int or None, "state": "starting", "ready",
            "draining", "hung", "backing off" or "failed", "since": ISO 8601 in UTC, "restarts": int,
            "memory": private bytes or None, "trouble": str or None}.
        """

    def resize(count: int, server: str | None) -> None:
        """Change the number of workers.

        :param count: > 0.
        :param server: the server's name; None if there is only one server.
        :raises ResizeError: the number is not possible, or there are several servers and none is named.
        :raises NoSuchWorkerError: no server has this name.
        """

    def drain(number: int | None) -> Deferred[None]:
        """Drain one worker, which is then replaced; or drain all, and end the supervisor.

        :param number: the worker's number; None for all.
        :return: fired when the worker has ended; for all, when draining has begun.
        :raises NoSuchWorkerError: no worker has this number.
        """

    def reload() -> Deferred[Rows]:
        """Read the configuration again, and replace all workers one after the other.

        :return: fired when the last worker is replaced, with a row for each setting that changed:
            {"setting", "before", "after"}, as text, secrets masked.
        :raises ReloadError: the configuration was refused, or a new worker did not become ready.
        """

    def begin_reload() -> None:
        """Begin a reload, and do not wait for its end; :meth:`reload_report` tells it.

        :raises ReloadError: it cannot begin: the configuration was refused, or another one is under way.
        """

    def reload_report() -> dict[str, Any]:
        """Return how the reloads of this supervisor went.

        :return: {"ended": the number of reloads that have ended, "under_way": bool, "problem": why the last one failed,
            or None}.
        """

    def restart() -> None:
        """Begin to drain all workers; then run the same program again in this process, with the code as it is then."""

    def metrics() -> Deferred[Rows]:
        """Collect the metrics of all workers and of the supervisor.

        A worker that does not answer within a second is left out.

        :return: a :data:`novasvc.telemetry.instruments.Document` for each metric; the label "worker" is added.
        """

    def health() -> Deferred[Rows]:
        """Collect the health of the services of all workers.

        :return: a row for each: number, server, pid, state as in workers(); "services": [{"service": its name,
            "legs": [{"name", "ready": bool, "detail", "since": ISO 8601 in UTC}]}] or None if it does not answer.
        """

    def inspect(what: str) -> Deferred[Rows]:
        """Collect what all workers know of their services.

        A worker that does not answer within a second is told as such.

        :param what: "describe" or "history"; see :class:`IDescribable`.
        :return: a row for each: number, server, pid, state as in workers(); "services": [JSON], or None if
            it does not answer.
        """

    def dump() -> Deferred[Rows]:
        """Collect the stacks, calls and recent events of every worker.

        :return: a row for each: number, server, pid, state as in workers(); "stacks": text;
            "calls": [{"method", "request_id", "seconds"}] or None if it does not answer; "events":
            [{"time": ISO 8601 in UTC, "kind": str, "text": str}], the latest last.
        """
