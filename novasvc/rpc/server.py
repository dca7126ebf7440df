"""The serving side: takes deliveries in, as many at a time as it may, and has them run."""

from collections import deque
from collections.abc import Callable, Collection
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from novasvc.context import RequestContext, current_context
from novasvc.errors import MessageFormatError, QuarantinedError, RedeliveredError, RPCError, StateError
from novasvc.interfaces import IDelivery, IListener, ITransport, Reachability
from novasvc.rpc.admission import ROOM, Admission, Arrival, Siblings
from novasvc.rpc.backlog import Backlog
from novasvc.rpc.baseapi import write_ping
from novasvc.rpc.call import Call
from novasvc.rpc.counts import Counts
from novasvc.rpc.endpoint import Endpoints
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
    """Runs the exposed methods that the messages for a target ask for.

    :param transport: open.
    :param target: topic and server; the topic's fanout is served too.
    :param endpoints: what can be called.
    :param clock: measures deadlines.
    :param concurrency: calls in flight at a time, > 0. As many more may wait here, delivered and
        not acknowledged; all others wait in the transport.
    :param run_blocking: takes a function, runs it in a thread, returns a Deferred of its result.
    :param max_deliveries: an idempotent call that was running at as many deaths of a process is quarantined, > 0.
    :param send_tracebacks: callers get the traceback of an error, not only its last line.
    :param backlog: tells which requests dead siblings of this process had not begun; None without siblings.
    :param operations: returns the request ids of what else is under way in this node: periodic tasks, calls to others.
    :param siblings: asks the other workers of this node, while it drains; see :mod:`novasvc.rpc.admission`.
    :ivar counts: what became of the deliveries.
    :ivar figures: how each method fares.
    """

    # Note [When a message is acknowledged]
    #
    # A method is acknowledged when it begins, so it runs at most once: after a crash it is not run
    # again. A broker may still deliver it again, if the crash took the acknowledgement with it. So
    # a message that was delivered before is not run but refused, unless its method is
    # idempotent: "may have run" cannot be undone, and a typed error can be dealt with. It is run
    # if this process's siblings had it, are dead, and are known not to have begun it: see
    # novasvc.rpc.backlog.
    #
    # An idempotent method is acknowledged when it is done and its reply is published, so it runs
    # at least once, and after a crash it runs again elsewhere. One that takes its process down
    # each time is put into quarantine; for that the deaths have to be counted by who outlives the
    # process, and those that were only near it are not to be counted with it. See Note [Finding the
    # poison message] in novasvc.rpc.redelivery. A lost channel is no death.
    #
    # What was delivered and not begun when the server drains is given back as new, or refused if it is a call
    # to this very server; see Note [Which operation a request belongs to] in novasvc.rpc.admission.
    #
    # A message that comes again to the process that had it is recognised by its unique id, however
    # often and whyever it comes: see Note [What comes again] in novasvc.rpc.ledger. What runs for
    # longer than the broker waits for an acknowledgement is held: see novasvc.rpc.holding.

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
        self._drainers: list[Deferred[None]] = []
        self._publishers: list[Deferred[None]] = []
        self._going_on = self._stopping = self._given_up = False
        self._scope = copy_context()
        self._state = "new"

    # -- life ----------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether messages reach the server now, any of them."""
        return self._admission is None and self._listener is not None and bool(self._listener.live)

    def verify(self, timeout: float) -> Deferred[Reachability]:
        """Prove that messages reach this server; see :meth:`novasvc.interfaces.IListener.verify`.

        :param timeout: seconds, > 0.
        """
        if self._listener is None:
            return succeed(Reachability("it does not consume yet"))
        verifying: Deferred[Reachability] = self._listener.verify(write_ping, timeout)
        return verifying

    @property
    def in_flight(self) -> int:
        """Methods that run, and replies that are being published."""
        return len(self._execution)

    def running_calls(self) -> list[dict[str, Any]]:
        """Tell which methods run, the one that began first, first.

        :return: a mapping each: {"method": str, "request_id": str, "seconds": float, since it began}.
        """
        return self._execution.running_calls()

    def operations(self) -> set[str]:
        """Return the request ids of the operations under way in this node."""
        return {*self._execution.operations(), *self._operations()}

    def start(self) -> Deferred[None]:
        """Begin to consume. Called once.

        :return: Deferred[None], fired when the first message could arrive; fails as the transport does.
        """
        if self._state != "new":
            return fail(StateError(f"the RPC server of {self._target}", self._state, "start"))
        self._state = "started"
        # What deliveries bring runs where the server was started: what is logged of it is its node's.
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
        """Begin nothing new from now on, but for the calls of operations under way.

        What waits here and belongs to none of them is given back for others, or refused. Nothing happens if that was
        done, or the server does not run.

        :return: Deferred[None], fired when no message to the topic, and no fanout, will come any more.
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
            return succeed(None)  # It is done when there is one.
        narrowed: Deferred[None] = self._listener.narrow(self._concurrency + ROOM)
        return narrowed.addBoth(lambda _: admission.narrowed())

    def stop_consuming(self) -> Deferred[None]:
        """Take in nothing more; what was delivered is still run.

        :return: Deferred[None], fired when no further delivery will come.
        """
        if self._listener is None:
            return succeed(None)
        cancelled: Deferred[None] = self._listener.cancel()
        self._stopping = True
        self._redelivered.stop()
        if self._state != "closed":
            self._go_on()  # What waited for one that was given back has its turn.
        return cancelled

    def drained(self) -> Deferred[None]:
        """Wait until nothing waits or runs, and all replies are published.

        :return: a new Deferred[None] each time; cancelling it ends only the waiting.
        """
        return _wait_in(self._drainers, done=self._idle())

    def close(self) -> Deferred[None]:
        """Cut short what still runs, publish what is to be said of it, give up the queues.

        :return: Deferred[None].
        """
        self._state = "closed"
        stopped = self.stop_consuming()
        self.cut_short(f"the RPC server of {self._target} was closed; see what the method did before calling again")
        self._execution.close()
        self._holding.stop()
        self._parking.close()
        published = _wait_in(self._publishers, done=not self._execution.publishing)
        return stopped.addBoth(lambda _: published).addBoth(self._give_up_queues)

    def cut_short(self, reason: str) -> None:
        """Cancel what runs, and begin nothing that waits.

        Callers of methods that were cut short get a MethodTimeoutError. Idempotent ones go back to
        the transport instead, and so does what was not begun.

        :param reason: of the MethodTimeoutError: why, and what to do.
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
        """Have a request delivered again, here or elsewhere: it was not begun."""
        self.counts.unserved("given_back")
        self._takeover.forget(call)
        self._ledger.give_back(call)

    def _retain(self, call: Call) -> None:
        """Have a request delivered again, counted, to this process: it is about to begin."""
        self._ledger.give_back(call, here=True)

    def _give_back_waiting(self, call: Call) -> bool:
        """Give a request back if it only waits for room; return whether it does."""
        if call in self._waiting:
            self._waiting.remove(call)
        elif not self._redelivered.remove(call):
            return False
        if not self._execution.drop_stale(call):
            self._give_back(call)
        return True

    def _missed(self, call: Call) -> None:
        """Decide about a call whose message seems to be lost; see Note [Void deliveries] in novasvc.rpc.parking."""
        admission = self._admission
        if admission is not None and not admission.belongs(call.request):
            return  # Nothing new begins.
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
        # Not before: it would come here again.
        self._given_up = True
        if self._admission is not None:
            self._admission.close()
        self._give_back_late()
        closed: Deferred[None] = succeed(None) if self._listener is None else self._listener.close()
        return closed

    # -- deliveries ----------------------------------------------------------------------------

    def _receive(self, delivery: IDelivery) -> None:
        """Take a delivery; the transport's receiver."""
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
        """Have a request run, now or in its turn, or settle it.

        :param looks: how often it was left undecided because a process that may be dying had it before.
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
        """Have a request run that was never here before, as nearly all; return whether it is one."""
        try:
            call = self._admit(delivery, request)
        except RPCError:
            return False  # It may have been refused before.
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
        """Have a request run that belongs to an operation under way, and settle any other one."""
        if admission.belongs(request):
            if not admission.replace(request.unique_id, delivery):
                self._take(delivery, request)
        else:
            self._turn_away(admission, delivery, request)

    def _turn_away(self, admission: Admission, delivery: IDelivery, request: Request) -> None:
        """Have a request settled that belongs to no operation under way."""
        if admission.replace(request.unique_id, delivery):
            return
        handled, call = (False, None) if request.problem else self._recognise(delivery, request)
        if handled:
            if call is not None:
                admission.add(self._withdraw(call))
        elif request.problem or (delivery.deliveries and delivery.sent_to == "server"):
            # It may have begun before, in a process that died: then it is not to be called new.
            try:
                admission.add(self._withdraw(self._admit(delivery, request)))
            except RPCError as error:
                self._refuse(delivery, request, error)
        else:
            admission.add(Arrival(delivery, delivery.deliveries, request))

    def _withdraw(self, call: Call) -> Arrival:
        """Let go of a call that has not begun; the admission decides about it."""
        self._ledger.release(call)
        return Arrival(call.delivery, call.deliveries, call.request, call)

    def _run(self, call: Call | None) -> None:
        """Begin a call now, or in its turn; do nothing with None."""
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

    # -- Decisions -----------------------------------------------------------------------------

    def take_in(self, arrival: Arrival) -> None:
        """Run a request; see Decisions."""
        call = arrival.call
        if call is None:
            self._take(arrival.delivery, arrival.request)
            return
        call.delivery = arrival.delivery
        self._ledger.take(call)
        self._run(call)

    def give_back(self, arrival: Arrival) -> None:
        """Have a request delivered again; see Decisions."""
        if arrival.call is None:
            self.counts.unserved("given_back")
            arrival.delivery.requeue(arrival.deliveries)
            return
        arrival.call.delivery = arrival.delivery
        self._give_back(arrival.call)

    def refuse(self, arrival: Arrival, error: RPCError) -> None:
        """Refuse a request; see Decisions."""
        if arrival.call is not None:
            self._takeover.forget(arrival.call)
        self._refuse(arrival.delivery, arrival.request, error)

    # -- what becomes of them ------------------------------------------------------------------

    def _refuse(self, delivery: IDelivery, request: Request, error: RPCError) -> None:
        """Settle a request that does not become a call, and tell the caller why."""
        # What is logged of it bears its request id.
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
        """See what is known here of a message; see Note [What comes again] in novasvc.rpc.ledger.

        :return: whether it was dealt with, and a call that is to wait for its turn again.
        """
        known = self._ledger.find(request.unique_id)
        if known is not None:
            if self._state != "closed":
                self._holding.start()  # It may come again because the limit is not what we were told.
            parked = self._ledger.take_over(known, delivery)
            if not parked:
                self._go_on()  # It may have its turn by that.
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
        """Make a call of a request; see Note [When a message is acknowledged].

        :raises RPCError: it is to be refused.
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
        # Who wants signs of life waits as long as they come, and lets its request expire when none can have come;
        # unless it says that it waits longer than that, and how long.
        if deadline is not None and keepalive is not None and deadline - now <= keepalive:
            deadline = None
        call = Call(delivery, request, method, self._scope.copy(), deliveries, expires_at, deadline, now)
        if taken_over:
            self._takeover.record(call)
            call.deliveries = 0  # Nobody began it: if it is given back, it is as good as new.
        return call

    def _go_on(self) -> None:
        """Begin what waits, as far as there is room; tell those who wait for the end of it."""
        if self._going_on:
            return  # A method that returned at once; the loop below goes on by itself.
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
        if self._publishers and not self._execution.publishing:
            _fire(self._publishers)
        if self._drainers:
            self._tell_idle()

    @property
    def _has_room(self) -> bool:
        # In a drain only calls come that others wait for here, and they must not wait for these in turn.
        limit = self._concurrency if self._admission is None else self._concurrency + ROOM
        execution = self._execution
        return len(execution.running) + len(execution.publishing) + len(self._redelivered.retained) < limit

    def _tell_idle(self) -> None:
        if self._drainers and self._idle():
            _fire(self._drainers)

    def _idle(self) -> bool:
        redelivered = self._redelivered
        waiting = self._waiting or len(self._takeover) or redelivered.waiting or len(self._parking)
        return not (waiting or redelivered.retained or len(self._execution))


def _wait_in(waiters: list[Deferred[None]], *, done: bool) -> Deferred[None]:
    if done:
        return succeed(None)
    waiter: Deferred[None] = Deferred(waiters.remove)
    waiters.append(waiter)
    return waiter


def _fire(waiters: list[Deferred[None]]) -> None:
    # One at a time: a callback may cancel another that waits.
    while waiters:
        waiters.pop(0).callback(None)
