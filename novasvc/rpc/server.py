"""The serving side: take deliveries, run methods, answer."""

from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from types import CoroutineType
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.context import RequestContext, current_context
from novasvc.errors import (
    MessageFormatError,
    MethodTimeoutError,
    RedeliveredError,
    ResultNotSerializableError,
    RPCError,
    ServiceStoppingError,
    StateError,
)
from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.rpc.deadline import Deadlines
from novasvc.rpc.dedup import SeenWindow
from novasvc.rpc.endpoint import Endpoints, Method
from novasvc.rpc.failure import write_failure
from novasvc.rpc.message import (
    Request,
    encode_failure,
    encode_keepalive,
    encode_result,
    read_request,
    unwrap,
    way_back,
)
from novasvc.target import Target

_log = Logger()


@attrs.define(eq=False)
class Counts:
    """What became of the deliveries, since the start.

    :param received: all of them.
    :param completed: the method returned.
    :param failed: the method raised.
    :param timed_out: the method was cancelled at a deadline.
    :param refused: no such method, bad arguments, delivered twice: the method was not begun.
    :param malformed: not a message.
    :param duplicates: seen before.
    :param expired: begun by nobody, for nobody waited any more.
    :param unanswered: replies that could not be published.
    """

    received: int = 0
    completed: int = 0
    failed: int = 0
    timed_out: int = 0
    refused: int = 0
    malformed: int = 0
    duplicates: int = 0
    expired: int = 0
    unanswered: int = 0


@attrs.define(eq=False)
class _Call:
    """A request from its delivery to its end.

    :param deadline: seconds on the clock after which nobody waits for the answer; None if unknown.
    :param began: seconds on the clock.
    :param scope: the context variables in which its method runs.
    :param running: what the method returned, if it takes its time.
    :param answered: it needs no answer any more.
    """

    delivery: IDelivery
    request: Request
    method: Method
    deadline: float | None
    began: float = 0.0
    scope: Context | None = None
    running: Deferred[Any] | None = None
    keepalive: IDelayedCall | None = None
    answered: bool = False


class Server:
    """Runs the exposed methods that the messages for a target ask for.

    :param transport: open.
    :param target: topic and server; the topic's fanout is served too.
    :param endpoints: what can be called.
    :param clock: measures deadlines.
    :param concurrency: calls in flight at a time, > 0. As many more may wait here, delivered and
        not acknowledged; all others wait in the transport.
    :param run_blocking: takes a function, runs it in a thread, returns a Deferred of its result.
    :param send_tracebacks: callers get the traceback of an error, not only its last line.
    """

    # Note [Acknowledgement]
    #
    # A method is acknowledged when it begins, so it runs at most once: after a crash it is not run
    # again. A broker may still deliver it again, if the crash took the acknowledgement with it. So
    # a message that comes marked as redelivered is not run but refused, unless its method is
    # idempotent: "may have run" cannot be undone, and a typed error can be dealt with.
    #
    # An idempotent method is acknowledged when it is done and its reply is published, so it runs
    # at least once, and a redelivery runs again even if this server saw the message before.
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
        send_tracebacks: bool = False,
    ) -> None:
        self.counts = Counts()
        self._transport = transport
        self._target = target
        self._endpoints = endpoints
        self._clock = clock
        self._concurrency = concurrency
        self._run_blocking = run_blocking
        self._send_tracebacks = send_tracebacks
        self._seen = SeenWindow(clock)
        self._deadlines = Deadlines[_Call](clock, self._overdue)
        self._listener: IListener | None = None
        self._waiting: deque[_Call] = deque()
        self._running: set[_Call] = set()
        self._publishing: set[Deferred[None]] = set()
        self._drainers: list[Deferred[None]] = []
        self._beginning = False
        self._closed = False

    # -- life ----------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether messages reach the server now."""
        return self._listener is not None and bool(self._listener.live)

    @property
    def in_flight(self) -> int:
        """Methods that run, and replies that are being published."""
        return len(self._running) + len(self._publishing)

    def start(self) -> Deferred[None]:
        """Begin to consume. Called once.

        :return: Deferred[None], fired when the first message could arrive; fails as the transport does.
        """
        if self._listener is not None or self._closed:
            raise StateError(f"the RPC server of {self._target}", "closed" if self._closed else "started", "start")
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
        return cancelled

    def drained(self) -> Deferred[None]:
        """Wait until nothing waits or runs, and all replies are published.

        :return: a new Deferred[None] each time; cancelling it ends only the waiting.
        """
        if self._idle():
            return succeed(None)
        drainer: Deferred[None] = Deferred(self._drainers.remove)
        self._drainers.append(drainer)
        return drainer

    def close(self) -> Deferred[None]:
        """Cancel what still runs, publish what is to be said of it, give up the queues.

        Callers of methods that were cut short get a MethodTimeoutError, those of methods that
        were not begun a ServiceStoppingError. Idempotent ones go back to the transport instead.

        :return: Deferred[None].
        """
        self._closed = True
        self._deadlines.close()
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.method.exposure.idempotent and call.request.reply_to is not None:
                call.delivery.ack()
                self._answer(call, ServiceStoppingError(call.method.name))
        for call in list(self._running):
            if call.method.exposure.idempotent:
                self._mark_answered(call)
            self._cut_short(call)
        return DeferredList(list(self._publishing)).addCallback(self._give_up_queues)

    def _give_up_queues(self, _: object) -> Deferred[None]:
        listener = self._listener
        closed: Deferred[None] = succeed(None) if listener is None else listener.close()
        return closed

    # -- from the delivery to the method -------------------------------------------------------

    def _receive(self, delivery: IDelivery) -> None:
        """Take a delivery; the transport's receiver."""
        if self._closed:
            return  # The transport gets it back with the listener's queues.
        self.counts.received += 1
        try:
            fields = unwrap(delivery.body)
        except MessageFormatError as error:
            self.counts.malformed += 1
            _log.warn("a message to {target} was dropped: {error}", target=self._target, error=error)
            delivery.reject(False)  # noqa: FBT003 - the interface's signature
            return
        try:
            call = self._admit(delivery, read_request(fields))
        except RPCError as error:
            self.counts.refused += 1
            _log.info("a request to {target} was refused: {error}", target=self._target, error=error)
            delivery.ack()
            back = way_back(fields)
            if back is not None:
                msg_id, reply_to = back
                self._publish(reply_to, encode_failure(msg_id, write_failure(error)))
            return
        if call is None:
            self.counts.duplicates += 1
            delivery.ack()
            return
        self._waiting.append(call)
        self._go_on()

    def _admit(self, delivery: IDelivery, request: Request) -> _Call | None:
        """Make a call of a request; None if it is a duplicate."""
        method = self._endpoints.find(request.namespace, request.method, request.version)
        seen = request.unique_id is not None and self._seen.add(request.unique_id)
        if not (method.exposure.idempotent and delivery.redelivered):
            if seen:
                return None
            if delivery.redelivered:
                raise RedeliveredError(request.method)
        method.exposure.check(request.method, request.args)
        expires_in = delivery.expires_in
        return _Call(
            delivery, request, method, deadline=None if expires_in is None else self._clock.seconds() + expires_in
        )

    def _go_on(self) -> None:
        """Begin what waits, as far as there is room; tell those who wait for the end of it."""
        if self._beginning:
            return  # A method that returned at once; the loop below goes on by itself.
        self._beginning = True
        try:
            while self._waiting and self.in_flight < self._concurrency:
                self._begin(self._waiting.popleft())
        finally:
            self._beginning = False
        if self._drainers and self._idle():
            drainers, self._drainers = self._drainers, []
            for drainer in drainers:
                drainer.callback(None)

    def _idle(self) -> bool:
        return not (self._waiting or self._running or self._publishing)

    def _begin(self, call: _Call) -> None:
        now = call.began = self._clock.seconds()
        method, request, deadline = call.method, call.request, call.deadline
        exposure = method.exposure
        if deadline is not None and deadline <= now:
            self.counts.expired += 1
            call.delivery.ack()
            return
        if not exposure.idempotent:
            call.delivery.ack()
        if exposure.timeout is not None and (deadline is None or now + exposure.timeout < deadline):
            deadline = now + exposure.timeout
        context = RequestContext.from_wire(request.context, deadline)
        scope = call.scope = copy_context()
        scope.run(current_context.set, context)
        self._running.add(call)
        try:
            if exposure.blocking:
                # A partial keeps the arguments' names apart from those of run_blocking.
                result = self._run_blocking(partial(scope.run, method.function, context, **request.args))
            else:
                result = scope.run(method.function, context, **request.args)
                if isinstance(result, CoroutineType):
                    result = scope.run(Deferred.fromCoroutine, result)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - not even SystemExit in a method ends the server
            self._failed(Failure(), call)
            return
        if not isinstance(result, Deferred):
            self._done(result, call)
            return
        if not result.called:
            call.running = result
            if deadline is not None:
                self._deadlines.add(call, deadline)
            self._keep_alive(call)
        result.addCallbacks(self._done, self._failed, callbackArgs=(call,), errbackArgs=(call,))

    # -- from the method to the reply ----------------------------------------------------------

    def _done(self, result: object, call: _Call) -> None:
        self.counts.completed += 1
        if call.request.reply_to is None or call.answered:
            self._conclude(call, None)
        else:
            assert call.request.msg_id is not None
            try:
                body = encode_result(call.request.msg_id, result, call.method.name)
            except ResultNotSerializableError as error:
                _log.error("{error}", error=error)
                self._answer(call, error)
            else:
                self._conclude(call, body)
        self._leave(call)

    def _failed(self, failure: Failure, call: _Call) -> None:
        if not (call.answered and failure.check(CancelledError)):
            self.counts.failed += 1
            assert call.scope is not None
            # A copy, because a thread that runs the method may still be in the scope itself.
            call.scope.copy().run(self._log_failure, call.method, failure)
        self._answer(call, failure.value, failure)
        self._leave(call)

    def _log_failure(self, method: Method, failure: Failure) -> None:
        if failure.check(*method.exposure.expected):
            _log.info("{method} ended with {error}", method=method.name, error=repr(failure.value))
        else:
            _log.failure("{method} failed ({where})", failure=failure, method=method.name, where=method.where)

    def _leave(self, call: _Call) -> None:
        self._running.discard(call)
        self._deadlines.discard(call)
        self._go_on()

    def _overdue(self, call: _Call) -> None:
        self.counts.timed_out += 1
        self._cut_short(call)

    def _cut_short(self, call: _Call) -> None:
        """Answer for a method that is not waited for any longer, and cancel it.

        It holds its place until it has really ended; a thread ends when it wants to.
        """
        if not call.answered:
            error = MethodTimeoutError(call.method.name, round(self._clock.seconds() - call.began, 3))
            assert call.scope is not None
            call.scope.copy().run(_log.warn, "{error}", error=error)
            self._answer(call, error)
        if call.running is not None and not call.method.exposure.blocking:
            call.running.cancel()

    def _answer(self, call: _Call, error: BaseException, failure: Failure | None = None) -> None:
        """Conclude a call with an error."""
        if call.answered or call.request.msg_id is None:
            self._conclude(call, None)
            return
        lines = failure.getTraceback().splitlines(keepends=True) if failure and self._send_tracebacks else ()
        try:
            body = encode_failure(call.request.msg_id, write_failure(error, lines))
        except ValueError as problem:
            substitute = ResultNotSerializableError(call.method.name, f"it raised {type(error).__name__}; {problem}")
            body = encode_failure(call.request.msg_id, write_failure(substitute))
        self._conclude(call, body)

    def _conclude(self, call: _Call, body: bytes | None) -> None:
        """Publish the one reply to a call, or None; then an idempotent one is acknowledged."""
        if call.answered:
            return
        self._mark_answered(call)
        acknowledge = call.delivery if call.method.exposure.idempotent else None
        if body is not None:
            assert call.request.reply_to is not None
            self._publish(call.request.reply_to, body, acknowledge)
        elif acknowledge is not None:
            acknowledge.ack()

    def _mark_answered(self, call: _Call) -> None:
        call.answered = True
        if call.keepalive is not None:
            call.keepalive.cancel()
            call.keepalive = None

    def _publish(self, reply_to: str, body: bytes, delivery: IDelivery | None = None) -> None:
        """Publish a reply; a delivery is acknowledged when that is done, and goes back if it fails."""
        publishing: Deferred[None] = self._transport.reply(reply_to, body)
        if not publishing.called:
            self._publishing.add(publishing)

        def published(_: None) -> None:
            if delivery is not None:
                delivery.ack()

        def unpublished(failure: Failure) -> None:
            self.counts.unanswered += 1
            _log.warn("a reply could not be published: {reason}", reason=failure.value)
            if delivery is not None:
                delivery.reject(True)  # noqa: FBT003 - the interface's signature

        def settled(_: None) -> None:
            self._publishing.discard(publishing)
            self._go_on()

        publishing.addCallbacks(published, unpublished).addCallback(settled)

    def _keep_alive(self, call: _Call) -> None:
        """Tell a caller who asked for it that the method still runs."""
        seconds = call.request.keepalive
        if seconds is not None and call.request.reply_to is not None:
            call.keepalive = self._clock.callLater(seconds / 2, self._show_life, call)

    def _show_life(self, call: _Call) -> None:
        call.keepalive = None
        assert call.request.msg_id is not None
        showing: Deferred[None] = self._transport.reply(call.request.reply_to, encode_keepalive(call.request.msg_id))
        # Tried once: a caller who cannot be reached gets no more of them.
        showing.addCallbacks(lambda _: None if call.answered else self._keep_alive(call), lambda _: None)
