"""The RPC server: receives deliveries, decides about each, and runs the methods they call."""

from collections import deque
from collections.abc import Callable, Collection
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from novasvc.context import RequestContext, current_context
from novasvc.errors import StateError
from novasvc.interfaces import IDelivery, IListener, ITransport, Reachability
from novasvc.reactor.coalesce import Waiters
from novasvc.rpc.admission import ROOM, Admission, Arrival, Siblings
from novasvc.rpc.backlog import Backlog
from novasvc.rpc.baseapi import write_ping
from novasvc.rpc.call import Call
from novasvc.rpc.counts import Counts
from novasvc.rpc.endpoint import Endpoints
from novasvc.rpc.errors import MessageFormatError, QuarantinedError, RedeliveredError, RPCError
from novasvc.rpc.execution import Execution
from novasvc.rpc.holding import Holding
from novasvc.rpc.ledger import Ledger
from novasvc.rpc.message import Request, read_request, unwrap
from novasvc.rpc.parking import Parking
from novasvc.rpc.redelivery import RedeliveredCalls
from novasvc.rpc.takeover import Takeover
from novasvc.rpc.target import Target
from novasvc.telemetry.metrics import MethodMetrics

_log = Logger()


class Server:
    """Serve one target: run the exposed method that each request names, and publish its reply.

    :param transport: an open transport.
    :param target: topic and server to serve; the topic's fanout is served too.
    :param endpoints: the methods that can be called.
    :param clock: measures deadlines.
    :param concurrency: calls in flight at a time, > 0; also the prefetch. Prefetched deliveries wait here
        unacknowledged until a call ends; all other messages wait in the broker.
    :param run_blocking: runs a function in a thread and returns a Deferred of its result.
    :param max_deliveries: quarantine an idempotent call after this many processes died while running it, > 0.
    :param send_tracebacks: send callers the whole traceback of an error, not only its last line.
    :param backlog: the record of requests that dead siblings received and did not begin; None without siblings.
    :param operations: returns the request ids of this node's other operations: periodic tasks and outgoing calls.
    :param siblings: asks this node's other workers during a drain; see :mod:`novasvc.rpc.admission`.
    :ivar counts: outcomes of the deliveries.
    :ivar figures: metrics by method.
    """

    # Note [When a message is acknowledged]
    #
    # By default the server acknowledges a message when its method begins: at-most-once. A crash does
    # not run the method again. The broker may still redeliver the message, if the crash lost the
    # acknowledgement. The server refuses such a redelivery with RedeliveredError: a method that ran
    # twice cannot be undone, and a caller can handle a typed error. There is one exception: if only
    # dead siblings of this process received the message, and none of them had begun it, the server
    # runs it. See novasvc.rpc.backlog.
    #
    # The server acknowledges a message for an idempotent method when the method has ended and its
    # reply is published: at-least-once. After a crash the method runs again elsewhere. A poison
    # message, which kills its process each time, is quarantined. The count of deaths must outlive
    # the process, and must not include calls that only ran beside the poison message. See Note
    # [Finding the poison message] in novasvc.rpc.redelivery. A lost channel is not a death.
    #
    # When the server drains, it gives back messages that were delivered and not begun, as new ones.
    # It refuses calls to this very server and holds casts to it. See Note [Which operation a request
    # belongs to] in novasvc.rpc.admission.
    #
    # A process recognises a redelivery of a message that it received before by the unique id,
    # whatever caused the redelivery: see Note [Deduplication of redeliveries] in novasvc.rpc.ledger.
    # A call that runs for longer than the broker waits for an acknowledgement is held: see
    # novasvc.rpc.holding.

    def __init__(
        self,
        transport: ITransport,
        target: Target,
        endpoints: Endpoints,
        *,
        clock: IReactorTime,
        concurrency: int = 64,
        run_blocking: Callable[..., Deferred[Any]],
        max_deliveries: int = 3,
        send_tracebacks: bool = False,
        backlog: Backlog | None = None,
        operations: Callable[[], Collection[str]] = frozenset,
        siblings: Siblings | None = None,
    ) -> None:
        self.counts = Counts(target.topic)
        self._transport = transport
        self._target = target
        self._endpoints = endpoints
        self._clock = clock
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries
        self.figures = {
            method: MethodMetrics.of(target.topic, method.exposure.namespace, method.name) for method in endpoints
        }
        self._parking = Parking(clock, consuming=self._is_consuming, missed=self._missed)
        self._ledger = Ledger(clock, self._parking, remembered=8 * concurrency)
        self._execution = Execution(
            transport,
            self._ledger,
            clock,
            run_blocking=run_blocking,
            send_tracebacks=send_tracebacks,
            counts=self.counts,
            figures=self.figures,
            ended=self._go_on,
        )
        self._redelivered = RedeliveredCalls(
            clock,
            self._execution,
            concurrency=concurrency,
            max_deliveries=max_deliveries,
            retain=self._retain,
            give_back=self._give_back,
            go_on=self._go_on,
        )
        self._holding = Holding(clock, self._ledger, hold_after=self._hold_after, give_back=self._give_back_waiting)
        self._takeover = Takeover(backlog, clock)
        self._operations = operations
        self._siblings = siblings
        self._admission: Admission | None = None
        self._listener: IListener | None = None
        self._waiting: deque[Call] = deque()
        self._late: list[IDelivery] = []
        self._drainers: Waiters[None] = Waiters()
        self._publishers: Waiters[None] = Waiters()
        self._going_on = self._stopping = self._given_up = False
        self._scope = copy_context()
        self._state = "new"

    # -- lifecycle -----------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether the server consumes from all its queues; false during a drain."""
        return self._admission is None and self._listener is not None and bool(self._listener.live)

    def verify(self, timeout: float) -> Deferred[Reachability]:
        """Verify that messages reach this server; see :meth:`novasvc.interfaces.IListener.verify`.

        :param timeout: seconds, > 0.
        :return: Deferred of the Reachability, which holds a problem if the server does not consume yet.
        """
        if self._listener is None:
            return succeed(Reachability("it does not consume yet"))
        verifying: Deferred[Reachability] = self._listener.verify(write_ping, timeout)
        return verifying

    @property
    def in_flight(self) -> int:
        """The number of running methods and of replies being published."""
        return len(self._execution)

    def running_calls(self) -> list[dict[str, Any]]:
        """Return the running calls, oldest first, including calls that were cut short and have not ended.

        :return: one mapping per call: {"method": str, "request_id": str, "seconds": float since it began}.
        """
        return self._execution.running_calls()

    def operations(self) -> set[str]:
        """Return the request ids of this node's operations: running methods, periodic tasks and outgoing calls."""
        return {*self._execution.operations(), *self._operations()}

    def start(self) -> Deferred[None]:
        """Start consuming. Called once.

        :return: Deferred[None], fired when the consumers are active; fails with the transport's error, or
            with StateError if the server was started before.
        """
        if self._state != "new":
            return fail(StateError(f"the RPC server of {self._target}", self._state, "start"))
        self._state = "started"
        # Methods run in a copy of the context in which the server was started, so that their log events
        # carry the fields of this node.
        self._scope = copy_context()
        listening: Deferred[IListener] = self._transport.listen(self._target, self._receive, self._concurrency)
        return listening.addCallback(self._started)

    def _started(self, listener: IListener) -> Deferred[None] | None:
        self._listener = listener
        self._holding.start()
        return None if self._admission is None else self._narrow(self._admission)

    def _hold_after(self) -> float | None:
        seconds: float | None = None if self._listener is None else self._listener.hold_after
        return seconds

    def _is_consuming(self) -> bool:
        return self._stopping or (self._listener is not None and bool(self._listener.live))

    def drain(self) -> Deferred[None]:
        """Begin a graceful shutdown: from now on, run only calls that belong to operations under way.

        Other waiting requests are settled by the rules of :mod:`novasvc.rpc.admission`. Has no effect if the
        server drains already or is not started.

        :return: Deferred[None], fired when no message to the topic and no fanout will be delivered any more.
        """
        if self._state != "started":
            return succeed(None)
        self._state = "draining"
        admission = self._admission = Admission(
            str(self._target), self, self._clock, operations=self.operations, siblings=self._siblings
        )
        self._parking.wait_no_longer()
        waiting, self._waiting = [*self._redelivered.withdraw(), *self._waiting], deque()
        for call in waiting:
            if admission.belongs(call.request):
                self._enqueue(call)
            else:
                admission.add(self._withdraw(call))
        self._go_on()
        return self._narrow(admission)

    def _narrow(self, admission: Admission) -> Deferred[None]:
        if self._listener is None:
            return succeed(None)  # _started() narrows the listener when it exists.
        narrowed: Deferred[None] = self._listener.narrow(self._concurrency + ROOM)
        return narrowed.addBoth(lambda _: admission.narrowed())

    def stop_consuming(self) -> Deferred[None]:
        """Stop consuming; calls that were delivered still run.

        Redelivered calls that are not counted yet are given back: counting them needs another delivery.

        :return: Deferred[None], fired when no further delivery will arrive.
        """
        if self._listener is None:
            return succeed(None)
        cancelled: Deferred[None] = self._listener.cancel()
        self._stopping = True
        self._redelivered.stop()
        if self._state != "closed":
            self._go_on()  # Calls that waited behind the given-back ones may begin now.
        return cancelled

    def drained(self) -> Deferred[None]:
        """Wait until no call waits or runs, and all replies are published.

        :return: a new Deferred[None] each time; cancelling it stops only this wait.
        """
        return succeed(None) if self._idle() else self._drainers.wait()

    def close(self) -> Deferred[None]:
        """Cut short the running calls, publish their replies, and close the listener.

        :return: Deferred[None], fired when the listener is closed.
        """
        self._state = "closed"
        stopped = self.stop_consuming()
        self.cut_short(f"the RPC server of {self._target} was closed; see what the method did before calling again")
        self._execution.close()
        self._holding.stop()
        self._parking.close()
        published = self._publishers.wait() if self._execution.publishing else succeed(None)
        return stopped.addBoth(lambda _: published).addBoth(self._give_up_queues)

    def cut_short(self, reason: str) -> None:
        """Cancel the running methods, and give the waiting calls back.

        A caller whose method was cut short gets a MethodTimeoutError. An idempotent call is given back
        to the transport instead, to run again elsewhere.

        :param reason: text of the MethodTimeoutError: why, and what the caller can do; not "".
        """
        if self._admission is not None:
            self._admission.end_operations()
        self._takeover.give_back()
        self._parking.wait_no_longer()
        waiting, self._waiting = [*self._redelivered.withdraw(), *self._waiting], deque()
        self._execution.cut_short(reason)
        for call in waiting:
            if not self._execution.drop_stale(call):
                self._give_back(call)

    def _give_back(self, call: Call) -> None:
        """Requeue a call that was not begun, for any server of its target."""
        self.counts.unserved("given_back")
        self._takeover.forget(call)
        self._ledger.give_back(call)

    def _retain(self, call: Call) -> None:
        """Requeue a call to this process, so that the next delivery is counted before the call begins."""
        self._ledger.give_back(call, here=True)

    def _give_back_waiting(self, call: Call) -> bool:
        """Give a call back if it waits to begin; return whether it waited."""
        if call in self._waiting:
            self._waiting.remove(call)
        elif not self._redelivered.remove(call):
            return False
        if not self._execution.drop_stale(call):
            self._give_back(call)
        return True

    def _missed(self, call: Call) -> None:
        """Run or refuse a call whose message the broker seems to have lost.

        See Note [Void deliveries] in novasvc.rpc.parking.
        """
        admission = self._admission
        if admission is not None and not admission.belongs(call.request):
            return  # A draining server begins no new operation.
        if call.method.exposure.idempotent:
            call.missed = True
            self._ledger.take(call)
            self._waiting.append(call)
            self._go_on()
            return
        self.counts.unserved("refused")
        error = RedeliveredError(call.request.method)
        call.scope.run(_log.info, "a request to {target} was refused: {error}", target=self._target, error=error)
        if call.request.back is not None:
            self._execution.refuse(call.request.back, error, None)
        self._go_on()

    def _give_back_late(self) -> None:
        late, self._late = self._late, []
        for delivery in late:
            delivery.requeue(delivery.deliveries)

    def _give_up_queues(self, _: object) -> Deferred[None]:
        # Not before the consumers are cancelled: the broker would redeliver the messages to this server.
        self._given_up = True
        if self._admission is not None:
            self._admission.close()
        self._give_back_late()
        closed: Deferred[None] = succeed(None) if self._listener is None else self._listener.close()
        return closed

    # -- deliveries ----------------------------------------------------------------------------

    def _receive(self, delivery: IDelivery) -> None:
        """Receive a delivery; called by the transport. A malformed message is dropped."""
        self.counts.received += 1
        try:
            request = read_request(unwrap(delivery.body))
        except MessageFormatError as error:
            self.counts.unserved("malformed")
            scope = self._scope.copy()
            scope.run(_log.warn, "a message to {target} was dropped: {error}", target=self._target, error=error)
            delivery.reject()
            return
        if self._admission is None:
            self._take(delivery, request)
        else:
            self._take_in_drain(self._admission, delivery, request)

    def _take(self, delivery: IDelivery, request: Request, looks: int = 0) -> None:
        """Run a request, now or when there is room, or settle it.

        :param looks: how often its fate was looked up already, because a process that may be dying holds it.
        """
        new = not delivery.deliveries and self._state != "closed"
        if new and self._take_new(delivery, request):
            return
        handled, call = (False, None) if request.problem else self._recognise(delivery, request)
        if handled:
            self._run(call)
            return
        if delivery.deliveries and self._takeover.decide_later(
            delivery, request, looks, lambda looks: self._look_again(delivery, request, looks)
        ):
            return
        try:
            call = self._admit(delivery, request)
        except RPCError as error:
            self._refuse(delivery, request, error)
        else:
            self._ledger.take(call)
            self._run(call)

    def _take_new(self, delivery: IDelivery, request: Request) -> bool:
        """Run a request that this process has not seen before (the fast path); return whether it is one."""
        try:
            call = self._admit(delivery, request)
        except RPCError:
            return False  # This may be a second copy of a refused request: look for duplicates first.
        if not self._ledger.take_new(call):
            return False
        self._enqueue(call)
        self._go_on()
        return True

    def _look_again(self, delivery: IDelivery, request: Request, looks: int) -> None:
        if self._admission is None or self._admission.belongs(request):
            self._take(delivery, request, looks)
        else:
            self._turn_away(self._admission, delivery, request)
        self._tell_idle()

    def _take_in_drain(self, admission: Admission, delivery: IDelivery, request: Request) -> None:
        """Run a request that belongs to an operation under way; turn any other request away."""
        if admission.belongs(request):
            if not admission.replace(request.unique_id, delivery):
                self._take(delivery, request)
        else:
            self._turn_away(admission, delivery, request)

    def _turn_away(self, admission: Admission, delivery: IDelivery, request: Request) -> None:
        """Settle a request that belongs to no operation under way, or leave it to the admission."""
        if admission.replace(request.unique_id, delivery):
            return
        handled, call = (False, None) if request.problem else self._recognise(delivery, request)
        if handled:
            if call is not None:
                admission.add(self._withdraw(call))
        elif request.problem or (delivery.deliveries and delivery.sent_to == "server"):
            # A process that died may have begun this request, so it needs the checks of a redelivery:
            # ServiceDrainingError would tell its caller that it never ran.
            try:
                admission.add(self._withdraw(self._admit(delivery, request)))
            except RPCError as error:
                self._refuse(delivery, request, error)
        else:
            admission.add(Arrival(delivery, delivery.deliveries, request))

    def _withdraw(self, call: Call) -> Arrival:
        """Release a call that has not begun, and return it as an arrival for the admission to decide about."""
        self._ledger.release(call)
        return Arrival(call.delivery, call.deliveries, call.request, call)

    def _run(self, call: Call | None) -> None:
        """Begin a call now, or when there is room; None has no effect."""
        if call is not None:
            self._enqueue(call)
            self._go_on()

    def _enqueue(self, call: Call) -> None:
        if call.deliveries:
            self._redelivered.add(call)
            return
        if self._takeover.records and not self._has_room:
            self._takeover.record(call)
        self._waiting.append(call)

    # -- the admission's decisions -------------------------------------------------------------

    def take_in(self, arrival: Arrival) -> None:
        """Run a request; see :class:`novasvc.rpc.admission.Decisions`."""
        call = arrival.call
        if call is None:
            self._take(arrival.delivery, arrival.request)
            return
        call.delivery = arrival.delivery
        self._ledger.take(call)
        self._run(call)

    def give_back(self, arrival: Arrival) -> None:
        """Requeue a request; see :class:`novasvc.rpc.admission.Decisions`."""
        if arrival.call is None:
            self.counts.unserved("given_back")
            arrival.delivery.requeue(arrival.deliveries)
            return
        arrival.call.delivery = arrival.delivery
        self._give_back(arrival.call)

    def refuse(self, arrival: Arrival, error: RPCError) -> None:
        """Refuse a request; see :class:`novasvc.rpc.admission.Decisions`."""
        if arrival.call is not None:
            self._takeover.forget(arrival.call)
        self._refuse(arrival.delivery, arrival.request, error)

    # -- settling and admitting ----------------------------------------------------------------

    def _refuse(self, delivery: IDelivery, request: Request, error: RPCError) -> None:
        """Settle a request that does not become a call, and reply with the error."""
        # Log events about the request carry its request id.
        scope = self._scope.copy()
        scope.run(current_context.set, RequestContext.from_wire(request.context))
        if isinstance(error, QuarantinedError):
            self.counts.unserved("quarantined")
            scope.run(_log.error, "a request to {target} was put aside: {error}", target=self._target, error=error)
            self._ledger.quarantine(delivery, request.unique_id, str(error))
        else:
            self.counts.unserved("refused")
            scope.run(_log.info, "a request to {target} was refused: {error}", target=self._target, error=error)
            self._ledger.acknowledge(delivery, request.unique_id)
        if request.back is not None:
            self._execution.refuse(request.back, error, delivery.expires_in)

    def _recognise(self, delivery: IDelivery, request: Request) -> tuple[bool, Call | None]:
        """Handle a redelivery or duplicate; see Note [Deduplication of redeliveries] in novasvc.rpc.ledger.

        :return: whether the delivery was handled, and the call that has to be queued again, if any.
        """
        known = self._ledger.find(request.unique_id)
        if known is not None:
            if self._state != "closed":
                # The redelivery may mean that the broker's acknowledgement timeout has changed: read it again.
                self._holding.start()
            parked = self._ledger.take_over(known, delivery)
            if not parked:
                self._go_on()  # The call may have waited for this delivery.
            return True, known if parked else None
        if self._ledger.settle_again(delivery, request.unique_id):
            self.counts.unserved("duplicates")
            self._execution.answer_again(request, delivery.expires_in)
            return True, None
        if self._state == "closed":
            self._late.append(delivery)
            if self._given_up:
                self._give_back_late()
            return True, None
        return False, None

    def _admit(self, delivery: IDelivery, request: Request) -> Call:
        """Make a Call of a request; see Note [When a message is acknowledged].

        :raises RPCError: the request has to be refused: no such method, invalid arguments, redelivered, poison.
        """
        if request.problem is not None:
            raise MessageFormatError(request.problem)
        key = request.namespace, request.method, request.version
        method = self._endpoints.found.get(key) or self._endpoints.find(*key)
        exposure, deliveries = method.exposure, delivery.deliveries
        taken_over = bool(deliveries) and not exposure.idempotent
        if taken_over and not self._takeover.may_run(request):
            raise RedeliveredError(request.method)
        if exposure.idempotent and delivery.deaths >= self._max_deliveries:
            raise QuarantinedError(request.method, delivery.deaths)
        if request.args.keys() != exposure.required:
            exposure.check(request.method, request.args)
        now, keepalive = self._clock.seconds(), request.keepalive
        expires_at = deadline = delivery.expires_at
        # A caller with a keepalive waits for as long as keepalives arrive. It sets the message's TTL to at most
        # one keepalive interval, so a TTL that short says when to stop waiting for the start, not for the reply.
        # A longer TTL is the caller's real deadline.
        if deadline is not None and keepalive is not None and deadline - now <= keepalive:
            deadline = None
        call = Call(delivery, request, method, self._scope.copy(), deliveries, expires_at, deadline, now)
        if taken_over:
            self._takeover.record(call)
            call.deliveries = 0  # No process began it, so a requeue may call it new.
        return call

    def _go_on(self) -> None:
        """Begin waiting calls while there is room; then fire the Deferreds of drained() and close() that are due."""
        if self._going_on:
            return  # Re-entered from a method that returned at once: the loop below continues by itself.
        self._going_on = True
        try:
            while (self._waiting or self._redelivered.waiting) and self._has_room:
                begun = self._redelivered.waiting and self._redelivered.begin()
                if self._waiting:
                    call = self._waiting.popleft()
                    if call.backlog_slot is not None:
                        self._takeover.forget(call)
                    self._execution.begin(call)
                elif not begun:
                    break
        finally:
            self._going_on = False
        if self._publishers.waiting and not self._execution.publishing:
            self._publishers.fire(None)
        if self._drainers.waiting:
            self._tell_idle()

    @property
    def _has_room(self) -> bool:
        # During a drain, running methods wait for the calls that are admitted. To make these calls wait for
        # the running methods would be a deadlock, so they get extra room.
        limit = self._concurrency if self._admission is None else self._concurrency + ROOM
        execution = self._execution
        return len(execution.running) + len(execution.publishing) + len(self._redelivered.retained) < limit

    def _tell_idle(self) -> None:
        if self._drainers.waiting and self._idle():
            self._drainers.fire(None)

    def _idle(self) -> bool:
        redelivered = self._redelivered
        waiting = self._waiting or len(self._takeover) or redelivered.waiting or len(self._parking)
        return not (waiting or redelivered.retained or len(self._execution))
