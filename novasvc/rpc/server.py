"""The serving side: takes deliveries in, as many at a time as it may, and has them run."""

from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from itertools import chain
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from novasvc.context import RequestContext, current_context
from novasvc.errors import MessageFormatError, QuarantinedError, RedeliveredError, RPCError, StateError
from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.metrics import MethodFigures
from novasvc.reachability import Reachability
from novasvc.rpc.baseapi import write_ping
from novasvc.rpc.counts import Counts
from novasvc.rpc.dedup import SeenWindow
from novasvc.rpc.endpoint import Endpoints
from novasvc.rpc.execution import Call, Execution
from novasvc.rpc.message import Request, read_context, read_request, unwrap, way_back
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
    :param max_deliveries: a request of an idempotent method that was delivered as often before is put
        into quarantine.
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
    # at least once, and a redelivery runs again even if this server saw the message before. One
    # that takes its process down each time is put into quarantine; for that the deliveries have
    # to be counted by who outlives the process, before the method runs, and those that were only
    # near it are not to be counted with it. See Note [Who is to blame] in novasvc.rpc.suspects.
    #
    # What was delivered and not begun is given back as new when the server closes: no call and no
    # cast is lost for a restart, and none is refused for it.
    #
    # A connection that is lost takes back what was not acknowledged, and the broker delivers it
    # again, to us perhaps. What still waits here, or runs and is idempotent, is then not taken in
    # twice: the new delivery takes the place of the one that has become void.
    #
    # All other repetitions (same unique id) are acknowledged and ignored, within the bounds of
    # SeenWindow.

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
        self._execution = Execution(
            transport,
            clock,
            run_blocking=run_blocking,
            send_tracebacks=send_tracebacks,
            counts=self.counts,
            figures=self.figures,
            ended=self._go_on,
        )
        self._suspects = Suspects(clock, self._execution, give_back=self._give_back, go_on=self._go_on)
        self._seen = SeenWindow(clock)
        self._listener: IListener | None = None
        self._waiting: deque[Call] = deque()
        self._late: list[IDelivery] = []
        self._drainers: list[Deferred[None]] = []
        self._publishers: list[Deferred[None]] = []
        self._going_on = False
        self._scope = copy_context()
        self._state = "new"

    # -- life ----------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether messages reach the server now."""
        return self._listener is not None and bool(self._listener.live)

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

    def stop_consuming(self) -> Deferred[None]:
        """Take in nothing more; what was delivered is still run.

        :return: Deferred[None], fired when no further delivery will come.
        """
        if self._listener is None:
            return succeed(None)
        cancelled: Deferred[None] = self._listener.cancel()
        self._suspects.stop()
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
            if not self._execution.drop_expired(call):
                self._give_back(call)

    def _give_back(self, call: Call) -> None:
        """Have a request delivered again, here or elsewhere: it was not begun."""
        self.counts.unserved("given_back")
        if call.request.unique_id is not None:
            self._seen.forget(call.request.unique_id)
        call.delivery.requeue(call.deliveries)

    def _give_up_queues(self, _: object) -> Deferred[None]:
        # Not before: it would come here again.
        for delivery in self._late:
            delivery.requeue(delivery.deliveries)
        listener, self._late = self._listener, []
        closed: Deferred[None] = succeed(None) if listener is None else listener.close()
        return closed

    # -- deliveries ----------------------------------------------------------------------------

    def _receive(self, delivery: IDelivery) -> None:
        """Take a delivery; the transport's receiver."""
        if self._state == "closed":
            self._late.append(delivery)
            return
        self.counts.received += 1
        try:
            fields = unwrap(delivery.body)
        except MessageFormatError as error:
            self.counts.unserved("malformed")
            scope = self._scope.copy()
            scope.run(_log.warn, "a message to {target} was dropped: {error}", target=self._target, error=error)
            delivery.reject()
            return
        try:
            call = self._admit(delivery, read_request(fields))
        except RPCError as error:
            self._refuse(delivery, fields, error)
            return
        if call is None:
            return
        if call.deliveries:
            self._suspects.add(call)
        else:
            self._waiting.append(call)
        self._go_on()

    def _refuse(self, delivery: IDelivery, fields: Mapping[str, Any], error: RPCError) -> None:
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
            delivery.ack()
        back = way_back(fields)
        if back is not None:
            self._execution.refuse(back, error)

    def _admit(self, delivery: IDelivery, request: Request) -> Call | None:
        """Make a call of a request, or settle it; see Note [When a message is acknowledged].

        :raises RPCError: it is to be refused.
        """
        method = self._endpoints.find(request.namespace, request.method, request.version)
        idempotent, deliveries = method.exposure.idempotent, delivery.deliveries
        seen = request.unique_id is not None and self._seen.add(request.unique_id)
        if seen:
            if deliveries and self._replace(delivery, request):
                return None
            if not (idempotent and deliveries):
                self.counts.unserved("duplicates")
                delivery.ack()
                return None
        if deliveries:
            if not idempotent:
                raise RedeliveredError(request.method)
            if deliveries >= self._max_deliveries:
                raise QuarantinedError(request.method, deliveries)
        method.exposure.check(request.method, request.args)
        return Call(delivery, request, method, self._clock.seconds(), self._scope.copy())

    def _replace(self, delivery: IDelivery, request: Request) -> bool:
        """Let a delivery take the place of the one by which a call came that is not settled yet, if there is one."""
        for call in chain(self._waiting, self._suspects, self._execution.unsettled()):
            if call.request.unique_id == request.unique_id:
                call.delivery.ack()  # It may be a second message with the same id.
                call.delivery = delivery
                return True
        return False

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
        return not self._waiting and not len(self._suspects) and not len(self._execution)


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
