"""The serving side: takes deliveries in, as many at a time as it may, and has them run."""

from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from novasvc.context import RequestContext, current_context
from novasvc.errors import MessageFormatError, QuarantinedError, RedeliveredError, RPCError, StateError
from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.metrics import MethodFigures
from novasvc.rpc.counts import Counts
from novasvc.rpc.endpoint import Endpoints
from novasvc.rpc.execution import Call, Execution
from novasvc.rpc.holding import Holding
from novasvc.rpc.ledger import Ledger
from novasvc.rpc.message import Request, read_context, read_request, unwrap, way_back
from novasvc.rpc.parking import Parking
from novasvc.rpc.suspects import Suspects
from novasvc.target import Target

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
    :param max_deliveries: a request of an idempotent method that as many processes died of, or near,
        is put into quarantine.
    :param send_tracebacks: callers get the traceback of an error, not only its last line.
    :ivar counts: what became of the deliveries.
    :ivar figures: how each method fares.
    """

    # Note [When a message is acknowledged]
    #
    # A method is acknowledged when it begins, so it runs at most once: after a crash it is not run
    # again. A broker may still deliver it again, if the crash took the acknowledgement with it. So
    # a message that was delivered before is not run but refused, unless its method is
    # idempotent: "may have run" cannot be undone, and a typed error can be dealt with.
    #
    # An idempotent method is acknowledged when it is done and its reply is published, so it runs
    # at least once, and after a crash it runs again elsewhere. One that takes its process down
    # each time is put into quarantine; for that the deaths have to be counted by who outlives the
    # process, and those that were only near it are not to be counted with it. See Note [Who is to
    # blame] in novasvc.rpc.suspects. A lost channel is no death.
    #
    # What was delivered and not begun is given back as new when the server closes: no call and no
    # cast is lost for a restart, and none is refused for it.
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
    ) -> None:
        self.counts = Counts(target.topic)
        self._transport = transport
        self._target = target
        self._endpoints = endpoints
        self._clock = clock
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries
        self.figures = {
            method: MethodFigures.of(target.topic, method.exposure.namespace, method.name) for method in endpoints
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
        self._suspects = Suspects(clock, self._execution, give_back=self._give_back, go_on=self._go_on)
        self._holding = Holding(clock, self._ledger, hold_after=self._hold_after, give_back=self._give_back_waiting)
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
        """Whether messages reach the server now."""
        return self._listener is not None and bool(self._listener.live)

    @property
    def in_flight(self) -> int:
        """Methods that run, and replies that are being published."""
        return len(self._execution)

    def running_calls(self) -> list[dict[str, Any]]:
        """Tell which methods run, the one that began first, first.

        :return: a mapping each: {"method": str, "request_id": str, "seconds": float, since it began}.
        """
        return self._execution.running_calls()

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

    def _started(self, listener: IListener) -> None:
        self._listener = listener
        self._holding.start()

    def _hold_after(self) -> float | None:
        seconds: float | None = None if self._listener is None else self._listener.hold_after
        return seconds

    def _is_consuming(self) -> bool:
        return self.live or self._stopping

    def stop_consuming(self) -> Deferred[None]:
        """Take in nothing more; what was delivered is still run.

        :return: Deferred[None], fired when no further delivery will come.
        """
        if self._listener is None:
            return succeed(None)
        cancelled: Deferred[None] = self._listener.cancel()
        self._stopping = True
        self._suspects.stop()
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
        self.cut_short()
        self._execution.close()
        self._holding.stop()
        self._parking.close()
        published = _wait_in(self._publishers, done=not self._execution.publishing)
        return stopped.addBoth(lambda _: published).addBoth(self._give_up_queues)

    def cut_short(self) -> None:
        """Cancel what runs, and begin nothing that waits.

        Callers of methods that were cut short get a MethodTimeoutError. Idempotent ones go back to
        the transport instead, and so does what was not begun.
        """
        waiting, self._waiting = [*self._suspects.withdraw(), *self._waiting], deque()
        self._execution.cut_short()
        for call in waiting:
            if not self._execution.drop_stale(call):
                self._give_back(call)

    def _give_back(self, call: Call) -> None:
        """Have a request delivered again, here or elsewhere: it was not begun."""
        self.counts.unserved("given_back")
        # What has its turn to run comes back to us, to be counted.
        self._ledger.give_back(call, here=not call.delivery.counted and not self._stopping)

    def _give_back_waiting(self, call: Call) -> bool:
        """Give a request back if it only waits for room; return whether it does."""
        if call not in self._waiting:
            return False
        self._waiting.remove(call)
        if not self._execution.drop_stale(call):
            self._give_back(call)
        return True

    def _missed(self, call: Call) -> None:
        """Decide about a call whose message seems to be lost; see Note [Void deliveries] in novasvc.rpc.parking."""
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
            self._execution.refuse(call.request.back, error)
        self._go_on()

    def _give_back_late(self) -> None:
        late, self._late = self._late, []
        for delivery in late:
            delivery.requeue(delivery.deliveries)

    def _give_up_queues(self, _: object) -> Deferred[None]:
        # Not before: it would come here again.
        self._given_up = True
        self._give_back_late()
        closed: Deferred[None] = succeed(None) if self._listener is None else self._listener.close()
        return closed

    # -- deliveries ----------------------------------------------------------------------------

    def _receive(self, delivery: IDelivery) -> None:
        """Take a delivery; the transport's receiver."""
        self.counts.received += 1
        try:
            fields = unwrap(delivery.body)
        except MessageFormatError as error:
            self.counts.unserved("malformed")
            scope = self._scope.copy()
            scope.run(_log.warn, "a message to {target} was dropped: {error}", target=self._target, error=error)
            delivery.reject()
            return
        request = None
        try:
            request = read_request(fields)
            call = self._admit(delivery, request)
        except RPCError as error:
            self._refuse(delivery, fields, error, request and request.unique_id)
            return
        if call is None:
            return
        if call.deliveries:
            self._suspects.add(call)
        else:
            self._waiting.append(call)
        self._go_on()

    def _refuse(self, delivery: IDelivery, fields: Mapping[str, Any], error: RPCError, unique_id: str | None) -> None:
        """Settle a request that does not become a call, and tell the caller why."""
        # What is logged of it bears its request id.
        scope = self._scope.copy()
        scope.run(current_context.set, RequestContext.from_wire(read_context(fields)))
        if isinstance(error, QuarantinedError):
            self.counts.unserved("quarantined")
            scope.run(_log.error, "a request to {target} was put aside: {error}", target=self._target, error=error)
            delivery.quarantine(str(error))
        else:
            self.counts.unserved("refused")
            scope.run(_log.info, "a request to {target} was refused: {error}", target=self._target, error=error)
            self._ledger.acknowledge(delivery, unique_id)
        back = way_back(fields)
        if back is not None:
            self._execution.refuse(back, error)

    def _admit(self, delivery: IDelivery, request: Request) -> Call | None:
        """Make a call of a request, or settle it; see Note [When a message is acknowledged].

        :raises RPCError: it is to be refused.
        """
        known = self._ledger.find(request.unique_id)
        if known is not None:
            self._holding.start()  # It may come again because the limit is not what we were told.
            parked = self._ledger.take_over(known, delivery)
            if not parked:
                self._go_on()  # It may have its turn by that.
            return known if parked else None
        if self._ledger.is_settled(request.unique_id):
            self.counts.unserved("duplicates")
            self._ledger.acknowledge(delivery, request.unique_id)
            return None
        if self._state == "closed":
            self._late.append(delivery)
            if self._given_up:
                self._give_back_late()
            return None
        method = self._endpoints.find(request.namespace, request.method, request.version)
        if delivery.deliveries:
            if not method.exposure.idempotent:
                raise RedeliveredError(request.method)
            if delivery.deaths >= self._max_deliveries:
                raise QuarantinedError(request.method, delivery.deaths)
        method.exposure.check(request.method, request.args)
        call = Call(delivery, request, method, self._clock.seconds(), self._scope.copy())
        self._ledger.take(call)
        return call

    def _go_on(self) -> None:
        """Begin what waits, as far as there is room; tell those who wait for the end of it."""
        if self._going_on:
            return  # A method that returned at once; the loop below goes on by itself.
        self._going_on = True
        try:
            while len(self._execution) < self._concurrency:
                self._suspects.begin()
                if not self._waiting:
                    break
                self._execution.begin(self._waiting.popleft())
        finally:
            self._going_on = False
        if self._publishers and not self._execution.publishing:
            _fire(self._publishers)
        if self._drainers and self._idle():
            _fire(self._drainers)

    def _idle(self) -> bool:
        return not (self._waiting or len(self._suspects) or len(self._execution) or len(self._parking))


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
