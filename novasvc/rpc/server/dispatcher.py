"""The dispatcher: decides about each delivery, queues the calls, and begins them while there is room."""

from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from msgspec import convert
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from novasvc.interfaces import IDelivery, ITransport
from novasvc.middleware import Chain
from novasvc.reactor.coalesce import Waiters
from novasvc.rpc.cancellation import Cancellations
from novasvc.rpc.endpoint import Endpoints
from novasvc.rpc.errors import MessageFormatError, QuarantinedError, RedeliveredError, RPCError
from novasvc.rpc.exposure import INTERNAL_NAMESPACE
from novasvc.rpc.failures.origin import Origin
from novasvc.rpc.identity.authorization import Authorizer, RefusalLog
from novasvc.rpc.message import Request, read_request, unwrap
from novasvc.rpc.server.admission import EXTRA_ROOM, Admission, UnstartedRequest
from novasvc.rpc.server.awaiting_redelivery import AwaitingRedelivery
from novasvc.rpc.server.call import Call
from novasvc.rpc.server.execution import Execution
from novasvc.rpc.server.hold_timer import HoldTimer
from novasvc.rpc.server.ledger import Ledger
from novasvc.rpc.server.redelivery import RedeliveredCalls
from novasvc.rpc.server.settlement import Settlement
from novasvc.rpc.server.takeover import Takeover
from novasvc.rpc.server.unstarted_record import UnstartedRecord
from novasvc.rpc.target import Target
from novasvc.telemetry.metrics import DeliveryMetrics, MethodMetrics

_log = Logger()

_LONGEST_TIMEOUT = 31_536_000.0
"""Seconds, a year: a longer timeout of a caller with keepalives is none."""


class Dispatcher:
    """Turn one server's deliveries into calls, and begin the calls; or settle what cannot be run.

    :param transport: publishes the replies.
    :param target: the server's target, for logs and metrics.
    :param endpoints: the methods that can be called.
    :param clock: measures deadlines.
    :param concurrency: calls that run at a time, > 0.
    :param run_blocking: runs a function in a thread and returns a Deferred of its result.
    :param max_deliveries: quarantine an idempotent call after this many processes died while running it, > 0.
    :param send_tracebacks: send callers the whole traceback of an error, not only its last line.
    :param unstarted_record: requests that dead siblings received and did not begin; None without siblings.
    :param consuming: whether a redelivery would reach this server now.
    :param hold_after: see :class:`novasvc.rpc.server.hold_timer.HoldTimer`.
    :param worker: the number of this worker process, told to callers with an error; None without workers.
    :param chain: the middleware around methods; None without any.
    :param authorizer: decides about the callers of methods with ``allow=``; None allows nobody.
    :ivar execution: runs the calls.
    :ivar delivery_metrics: metrics of the messages that are not run, or whose replies are lost.
    :ivar method_metrics: metrics by method.
    """

    # Note [When a message is acknowledged]
    #
    # By default the server acknowledges a message when its method begins: at-most-once. A crash does
    # not run the method again. The broker may still redeliver the message, if the crash lost the
    # acknowledgement. The server refuses such a redelivery with RedeliveredError: a method that ran
    # twice cannot be undone, and a caller can handle a typed error. There is one exception: if only
    # dead siblings of this process received the message, and none of them had begun it, the server
    # runs it. See novasvc.rpc.server.unstarted_record.
    #
    # The server acknowledges a message for an idempotent method when the method has ended and its
    # reply is published: at-least-once. After a crash the method runs again elsewhere. A poison
    # message, which kills its process each time, is quarantined. The count of deaths must outlive
    # the process, and must not include calls that only ran beside the poison message. See Note
    # [Finding the poison message] in novasvc.rpc.server.redelivery. A lost channel is not a death.
    #
    # When the server drains, it requeues messages that were delivered and not begun, as new ones.
    # It refuses calls to this very server and defers casts to it. See Note [Which operation a request
    # belongs to] in novasvc.rpc.server.admission.
    #
    # A process recognises a redelivery of a message that it received before by the unique id,
    # whatever caused the redelivery: see Note [Deduplication of redeliveries] in novasvc.rpc.server.ledger.
    # A call that runs for longer than the broker waits for an acknowledgement is held: see
    # novasvc.rpc.server.hold_timer.

    def __init__(
        self,
        transport: ITransport,
        target: Target,
        endpoints: Endpoints,
        clock: IReactorTime,
        *,
        concurrency: int,
        run_blocking: Callable[..., Deferred[Any]],
        max_deliveries: int,
        send_tracebacks: bool,
        unstarted_record: UnstartedRecord | None,
        consuming: Callable[[], bool],
        hold_after: Callable[[], float | None],
        worker: int | None = None,
        chain: Chain | None = None,
        authorizer: Authorizer | None = None,
    ) -> None:
        self.delivery_metrics = DeliveryMetrics.of(target.topic)
        self.method_metrics = {
            method: MethodMetrics.of(target.topic, method.exposure.namespace, method.name)
            if method.exposure.counted
            else MethodMetrics.uncounted()
            for method in endpoints
        }
        self._endpoints = endpoints
        self._clock = clock
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries
        self._awaiting = AwaitingRedelivery(
            clock, consuming=consuming, lost=self._message_lost, checked=self._check_idle
        )
        self._ledger = Ledger(clock, self._awaiting, remembered=8 * concurrency)
        self.execution = Execution(
            transport,
            target,
            self._ledger,
            clock,
            run_blocking=run_blocking,
            send_tracebacks=send_tracebacks,
            here=Origin(topic=target.topic, host=target.server, worker=worker),
            delivery_metrics=self.delivery_metrics,
            method_metrics=self.method_metrics,
            chain=chain,
            ended=self._begin_calls,
        )
        self._takeover = Takeover(unstarted_record, clock)
        self._target = target
        self._authorizer = authorizer or Authorizer()
        self._settlement = Settlement(
            target,
            self._ledger,
            self._takeover,
            self.execution,
            self.delivery_metrics,
            RefusalLog(target.topic, clock),
        )
        self._redelivered = RedeliveredCalls(
            clock,
            self.execution,
            concurrency=concurrency,
            max_deliveries=max_deliveries,
            requeue_here=self._settlement.requeue_here,
            requeue=self._settlement.requeue,
            begin_calls=self._begin_calls,
        )
        self._cancellations = Cancellations(
            clock,
            self._ledger,
            self._awaiting,
            self.execution,
            withdraw=self._withdraw_cancelled,
            metrics=self.delivery_metrics,
            changed=self._begin_calls,
        )
        self._cancelled = self._cancellations.cancelled
        self._hold_timer = HoldTimer(clock, self._ledger, hold_after=hold_after, requeue=self._requeue_waiting)
        self._admission: Admission | None = None
        self._waiting: deque[Call] = deque()
        self._after_close: list[IDelivery] = []
        self._idle: Waiters[None] = Waiters()
        self._published: Waiters[None] = Waiters()
        self._beginning = self._closed = self._released = False
        self._scope = copy_context()

    # -- lifecycle -----------------------------------------------------------------------------

    def use_scope(self, scope: Context) -> None:
        """Run the methods in copies of these context variables, so that their log events carry the node's fields."""
        self._scope = self._settlement.scope = scope

    def start_holding(self) -> None:
        """Keep deliveries valid for longer than ``hold_after``. Called when that is known, or has changed."""
        self._hold_timer.start()

    def limit(self, concurrency: int) -> None:
        """Run at most so many calls at a time from now on.

        :param concurrency: >= 0; with 0 none begins.
        """
        self._concurrency = concurrency
        self._begin_calls()

    def drain(self, admission: Admission) -> None:
        """Run only the waiting calls that the admission admits, and let it decide about all others.

        :param admission: decides about every later request, too.
        """
        self._admission = admission
        self._awaiting.stop_checks()
        for call in self._withdraw_waiting():
            if admission.belongs(call.request):
                self._enqueue(call)
            else:
                self._ledger.release(call)
                admission.add(UnstartedRequest(call.delivery, call.request, call))
        self._begin_calls()

    def stop_moving(self) -> None:
        """Requeue the redelivered calls that would have to be moved first. Called when the server stops consuming."""
        self._redelivered.stop()
        self._begin_calls()  # Calls that waited behind the requeued ones may begin now.

    def when_idle(self) -> Deferred[None]:
        """Wait until no call waits or runs, and all replies are published.

        :return: a new Deferred[None] each time; cancelling it stops only this wait.
        """
        return succeed(None) if self._is_idle() else self._idle.wait()

    def cut_short(self, reason: str) -> None:
        """Cancel the running methods and requeue the waiting calls; see :meth:`novasvc.rpc.Server.cut_short`."""
        if self._admission is not None:
            self._admission.end_operations()
        self._takeover.requeue()
        waiting = self._withdraw_waiting()
        self.execution.cut_short(reason)
        for call in waiting:
            if not self.execution.drop_stale(call):
                self._settlement.requeue(call)
        self._awaiting.stop_checks()  # Last: a call whose delivery is void was added just now.
        self._check_idle()

    def close(self, reason: str) -> Deferred[None]:
        """Cut the calls short, and begin no more.

        :param reason: as for :meth:`cut_short`.
        :return: Deferred[None], fired when the replies are published.
        """
        self._closed = True
        self._redelivered.stop()
        self.cut_short(reason)
        self.execution.close()
        self._cancellations.close()
        self._hold_timer.stop()
        self._awaiting.close()
        return self._published.wait() if self.execution.publishing else succeed(None)

    def release(self) -> None:
        """Requeue what was received after :meth:`close` or deferred by the admission.

        Called when the consumers are cancelled; earlier, the broker would redeliver the messages to this server.
        """
        self._released = True
        if self._admission is not None:
            self._admission.close()
        self._requeue_after_close()

    def _withdraw_waiting(self) -> list[Call]:
        waiting, self._waiting = [*self._redelivered.withdraw(), *self._waiting], deque()
        return waiting

    def _requeue_after_close(self) -> None:
        deliveries, self._after_close = self._after_close, []
        for delivery in deliveries:
            delivery.requeue(delivery.deliveries)

    # -- from a delivery to a call -------------------------------------------------------------

    def receive(self, delivery: IDelivery) -> None:
        """Receive a delivery; called by the transport. A malformed message is dropped."""
        try:
            request = read_request(unwrap(delivery.body))
        except MessageFormatError as error:
            self._settlement.drop(delivery, error)
        else:
            self._dispatch(delivery, request)

    def _dispatch(self, delivery: IDelivery, request: Request, lookups: int = 0) -> None:
        """Accept a request; or, during a drain, leave it to the admission unless its operation is under way.

        :param lookups: how often its progress was looked up already, because a process that may be dying had it.
        """
        admission = self._admission
        if request.namespace == INTERNAL_NAMESPACE:
            self._cancellations.receive(delivery, request)
        elif self._cancelled and self._cancellations.drop(delivery, request):
            return
        elif admission is None:
            self._accept(delivery, request, None, lookups)
        elif not admission.replace_delivery(request.unique_id, delivery):
            self._accept(delivery, request, None if admission.belongs(request) else admission, lookups)

    def _accept(self, delivery: IDelivery, request: Request, admission: Admission | None, lookups: int = 0) -> None:
        """Queue a request as a call, or settle it.

        :param admission: decides about the request in place of the queue; None to run it.
        """
        if admission is None and not delivery.deliveries and not self._closed:
            # The fast path: a message that nobody received before.
            try:
                call = self._admit(delivery, request)
            except RPCError:
                pass  # It may be a second copy of a request that was refused: look for duplicates first.
            else:
                if self._ledger.add_new(call):
                    self._enqueue(call)
                    self._begin_calls()
                    return
        found = None if request.problem else self._ledger.get(request.unique_id)
        if found is not None:
            if not self._resume(found, delivery):
                return
        elif request.problem is None and self._settle_duplicate(delivery, request):
            return
        else:
            found = self._admit_or_settle(delivery, request, admission, lookups)
            if found is None:
                return
        if admission is None:
            self._ledger.add(found)
            self._enqueue(found)
            self._begin_calls()
        else:
            self._ledger.release(found)
            admission.add(UnstartedRequest(found.delivery, found.request, found))

    def _resume(self, call: Call, delivery: IDelivery) -> bool:
        """Give an unsettled call a new delivery; return whether it awaited that, and has to be queued again.

        See Note [Deduplication of redeliveries] in novasvc.rpc.server.ledger.
        """
        if not self._closed:
            # The redelivery may mean that the broker's acknowledgement timeout has changed: read it again.
            self._hold_timer.start()
        if self._ledger.replace_delivery(call, delivery):
            return True
        self._begin_calls()  # The call may have waited for this delivery.
        return False

    def _settle_duplicate(self, delivery: IDelivery, request: Request) -> bool:
        """Settle a message that was settled before, or that arrived after the close; return whether it was one."""
        if self._ledger.acknowledge_duplicate(delivery, request.unique_id):
            self.delivery_metrics.duplicates.value += 1
            self.execution.resend_reply(request, delivery.expires_in)
            return True
        if self._closed:
            self._after_close.append(delivery)
            if self._released:
                self._requeue_after_close()
            return True
        return False

    def _admit_or_settle(
        self, delivery: IDelivery, request: Request, admission: Admission | None, lookups: int
    ) -> Call | None:
        """Make a Call of a request that this process does not know; None if something else decides about it."""
        if admission is not None:
            # A process that died may have begun a redelivered request to this server, so it needs the checks of
            # _admit: ServiceDrainingError would tell its caller that it never ran.
            if request.problem is None and not (delivery.deliveries and delivery.sent_to == "server"):
                admission.add(UnstartedRequest(delivery, request))
                return None
        elif delivery.deliveries and self._takeover.decide_later(delivery, request, lookups, self._decide_again):
            return None
        try:
            return self._admit(delivery, request)
        except RPCError as error:
            self._settlement.refuse(delivery, request, error)
            return None

    def _decide_again(self, delivery: IDelivery, request: Request, lookups: int) -> None:
        self._dispatch(delivery, request, lookups)
        self._check_idle()

    def _admit(self, delivery: IDelivery, request: Request) -> Call:
        """Make a Call of a request; see Note [When a message is acknowledged].

        :raises RPCError: the request has to be refused: no such method, invalid arguments, redelivered, poison.
        """
        if request.problem is not None:
            raise MessageFormatError(request.problem)
        key = request.namespace, request.method, request.version
        method = self._endpoints.cache.get(key) or self._endpoints.find(*key)
        exposure, deliveries = method.exposure, delivery.deliveries
        # At most once: what another process may have begun is not run, unless the record proves that none has.
        taken_over = bool(deliveries) and not exposure.idempotent
        if taken_over and not self._takeover.may_run(request):
            raise RedeliveredError(request.method)
        if exposure.idempotent and delivery.deaths >= self._max_deliveries:
            raise QuarantinedError(request.method, delivery.deaths)
        if request.args.keys() != exposure.required:
            exposure.check(request.method, request.args)
        args, contract = request.args, method.contract
        if contract is not None and contract.arguments is not None:
            # Inlined: every call passes here.
            try:
                fitting = args if contract.shape is None else contract.shape.fit(args)
                converted = convert(fitting, contract.arguments, str_keys=True)
            except Exception as error:  # noqa: BLE001 - users' classes may raise anything when they are made
                raise contract.invalid_arguments(error) from None
            # msgspec leaves out the arguments without annotations.
            args = converted if len(converted) == len(args) else {**args, **converted}
        now, keepalive = self._clock.seconds(), request.keepalive
        expires_at = deadline = delivery.expires_at
        # A caller with a keepalive waits for as long as keepalives arrive. It sets the message's TTL to at most
        # one keepalive interval, so a TTL that short says when to stop waiting for the start, not for the reply.
        # A longer TTL is the caller's real deadline. Our clients send that, too.
        if deadline is not None and keepalive is not None and deadline - now <= keepalive:
            timeout = None if request.options is None else request.options.get("timeout")
            known = isinstance(timeout, int | float) and 0 < timeout <= _LONGEST_TIMEOUT
            # Counted from the message's expiry, which its time in a queue has brought nearer.
            deadline = deadline + max(0.0, timeout - keepalive) if known and timeout is not None else None
        call = Call(delivery, request, method, self._scope.copy(), deliveries, expires_at, deadline, now)
        call.args = args
        if exposure.allow is not None:
            self._authorizer.check(exposure.allow, delivery, request, args, self._target, call.scope)
        if taken_over:
            self._takeover.record(call)
            call.deliveries = 0  # No process began it, so a requeue may call it new.
        return call

    def _message_lost(self, call: Call) -> None:
        """Run or refuse a call whose message the broker seems to have lost.

        See Note [Void deliveries] in novasvc.rpc.server.awaiting_redelivery.
        """
        admission = self._admission
        if admission is not None and not admission.belongs(call.request):
            return  # A draining server begins no new operation.
        if call.method.exposure.idempotent:
            call.message_lost = True
            self._ledger.add(call)
            self._waiting.append(call)
        else:
            self._settlement.refuse_lost(call, RedeliveredError(call.request.method))
        self._begin_calls()

    # -- decisions of the admission; see novasvc.rpc.server.admission.Decisions -----------------------

    def run(self, unstarted: UnstartedRequest) -> None:
        """Run a request that a draining server received."""
        call = unstarted.call
        if call is None:
            self._accept(unstarted.delivery, unstarted.request, None)
            return
        call.delivery = unstarted.delivery
        self._ledger.add(call)
        self._enqueue(call)
        self._begin_calls()

    def requeue(self, unstarted: UnstartedRequest) -> None:
        """Requeue a request that a draining server received."""
        self._settlement.requeue_request(unstarted.delivery, unstarted.deliveries, unstarted.call)

    def refuse(self, unstarted: UnstartedRequest, error: RPCError) -> None:
        """Refuse a request that a draining server received."""
        if unstarted.call is not None:
            self._takeover.remove(unstarted.call)
        self._settlement.refuse(unstarted.delivery, unstarted.request, error)

    # -- the queue -----------------------------------------------------------------------------

    def _enqueue(self, call: Call) -> None:
        if call.deliveries:
            self._redelivered.add(call)
            return
        if self._takeover.enabled and not self._has_room:
            self._takeover.record(call)
        self._waiting.append(call)

    def _requeue_waiting(self, call: Call) -> bool:
        """Requeue a call if it waits to begin; return whether it waited."""
        if not self._withdraw(call):
            return False
        if not self.execution.drop_stale(call):
            self._settlement.requeue(call)
        return True

    def _withdraw_cancelled(self, call: Call) -> bool:
        if not self._withdraw(call):
            return False
        self._takeover.remove(call)
        return True

    def _withdraw(self, call: Call) -> bool:
        """Take a call out of the queue; return whether it waited there."""
        if call in self._waiting:
            self._waiting.remove(call)
        elif not self._redelivered.remove(call):
            return False
        return True

    def _begin_calls(self) -> None:
        """Begin waiting calls while there is room; then fire the Deferreds of when_idle() and close() that are due."""
        if self._beginning:
            return  # Re-entered from a method that returned at once: the loop below continues by itself.
        self._beginning = True
        try:
            while (self._waiting or self._redelivered.waiting) and self._has_room:
                # Redelivered and new calls begin in turn, so that neither kind starves the other.
                begun = self._redelivered.waiting and self._redelivered.begin_next()
                if self._waiting:
                    call = self._waiting.popleft()
                    if call.record_slot is not None:
                        self._takeover.remove(call)
                    self.execution.begin(call)
                elif not begun:
                    break
        finally:
            self._beginning = False
        if self._published.waiting and not self.execution.publishing:
            self._published.fire(None)
        if self._idle.waiting:
            self._check_idle()

    @property
    def _has_room(self) -> bool:
        # During a drain, running methods wait for the calls that are admitted. To make these calls wait for
        # the running methods would be a deadlock, so they get extra room.
        limit = self._concurrency if self._admission is None else self._concurrency + EXTRA_ROOM
        execution = self.execution
        return len(execution.running) + len(execution.publishing) + len(self._redelivered.moving) < limit

    def _check_idle(self) -> None:
        if self._idle.waiting and self._is_idle():
            self._idle.fire(None)

    def _is_idle(self) -> bool:
        redelivered = self._redelivered
        waiting = self._waiting or len(self._takeover) or redelivered.waiting
        # A draining server waits for no redelivery, which may take as long as the broker is away. Where an operation
        # needs such a call, the operation itself is waited for.
        awaiting = self._admission is None and len(self._awaiting)
        return not (waiting or awaiting or redelivered.moving or len(self.execution))
