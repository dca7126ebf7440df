"""Runs calls: each from the start of its method to its published reply."""

from collections.abc import Callable, Mapping
from functools import partial, wraps
from types import CoroutineType
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr, safe_str

from novasvc.context import RequestContext, current_context
from novasvc.errors import add_remedy
from novasvc.interfaces import ITransport
from novasvc.middleware import Chain, Invocation
from novasvc.middleware.invocation import SERVE
from novasvc.rpc.around import run_in_current_context
from novasvc.rpc.endpoint import Method
from novasvc.rpc.errors import MethodTimeoutError, ResultNotSerializableError, TransportClosedError
from novasvc.rpc.failures.failure import encode_error
from novasvc.rpc.failures.origin import Origin, origin_of
from novasvc.rpc.message import ReplyTo, Request, encode_failure, encode_keepalive, encode_result
from novasvc.rpc.progress import ProgressReports, Reporter
from novasvc.rpc.server.call import Call
from novasvc.rpc.server.deadline import Deadlines
from novasvc.rpc.server.gather_claims import GatherClaims
from novasvc.rpc.server.ledger import Ledger
from novasvc.rpc.server.recent import RecentReplies
from novasvc.rpc.server.recent_errors import RecentErrors
from novasvc.rpc.target import Target
from novasvc.telemetry.flight import note
from novasvc.telemetry.metrics import DeliveryMetrics, MethodMetrics

_log = Logger()

REQUEUE_DELAY = 1.0
"""Seconds from the refusal of the reply to an idempotent call until the call is requeued, to run again."""

RunBlocking = Callable[[Callable[[], Any]], Deferred[Any]]
"""Runs a function in a thread and returns a Deferred of its result."""


@attrs.define(eq=False)
class _Reply:
    """A reply being published.

    :param reply_to: the caller's message id and reply address.
    :param timeout: seconds for which the caller still waits; None if unknown.
    :param call: the call that it answers; None for a refused request, which never became a call.
    :param settles: the call to settle when the reply is published; None if it is settled already (at-most-once).
    """

    reply_to: ReplyTo
    body: bytes
    timeout: float | None
    call: Call | None = None
    settles: Call | None = None

    def log(self, text: str, **fields: Any) -> None:
        """Log a warning about this reply, with the caller's request id."""
        if self.call is None:
            _log.warn(text, method="a refused request", **fields)
        else:
            self.call.scope.copy().run(_log.warn, text, method=self.call.method.name, **fields)


class Execution:
    """Run methods and publish their replies.

    :param transport: publishes the replies.
    :param target: the server's target: its host is named in replies to a gather, and the middleware is given it.
    :param ledger: settles the calls.
    :param clock: measures deadlines.
    :param run_blocking: runs blocking methods in a thread.
    :param send_tracebacks: send callers the whole traceback of an error.
    :param here: topic, host and worker of this server, sent with each error.
    :param delivery_metrics: counts the messages that are not run, or whose replies are lost.
    :param method_metrics: metrics of every method that can be called.
    :param chain: the middleware around methods; None without any.
    :param ended: called when a method or the publishing of a reply has ended, or a method has timed out.
    :ivar running: calls whose methods have not ended, oldest first; includes calls that were cut short.
    :ivar recent_errors: the last errors that methods raised.
    :ivar publishing: Deferreds of replies that the transport has not confirmed.
    """

    def __init__(
        self,
        transport: ITransport,
        target: Target,
        ledger: Ledger,
        clock: IReactorTime,
        *,
        run_blocking: RunBlocking,
        send_tracebacks: bool,
        here: Origin,
        delivery_metrics: DeliveryMetrics,
        method_metrics: Mapping[Method, MethodMetrics],
        chain: Chain | None,
        ended: Callable[[], None],
    ) -> None:
        self.publishing: dict[Deferred[None], None] = {}
        self.running: dict[Call, None] = {}
        self.recent_errors = RecentErrors()
        self._recent_replies = RecentReplies()
        self._transport = transport
        self._ledger = ledger
        self._clock = clock
        self._target = target
        self._run_blocking = run_blocking
        self._send_tracebacks = send_tracebacks
        self._here = here
        self._delivery_metrics = delivery_metrics
        self._method_metrics = method_metrics
        self._chain = chain
        self._ended = ended
        self._deadlines = Deadlines[Call](clock, self._timed_out)
        self._claims = GatherClaims(target, clock)
        self._progress = ProgressReports(transport, clock, self.running)

    def __len__(self) -> int:
        return len(self.running) + len(self.publishing)

    def operations(self) -> set[str]:
        """Return the request ids of the running calls, without calls that were cut short."""
        return {call.request_id for call in self.running if not call.answered}

    def running_calls(self) -> list[dict[str, Any]]:
        """Return the running calls; see :meth:`novasvc.rpc.Server.running_calls`."""
        now = self._clock.seconds()
        return [
            {
                "method": call.method.name,
                "request_id": call.request_id,
                "seconds": round(now - call.began, 3),
                **({} if call.progress is None else call.progress._asdict()),
            }
            for call in self.running
            if call.method.exposure.counted
        ]

    def drop_stale(self, call: Call) -> bool:
        """Drop a call that must not begin now; return whether it was dropped.

        An expired call is settled: its caller has stopped waiting. A call whose session has ended waits
        for its redelivery: its delivery is void, and the server that receives the redelivery decides
        about it. That may be this server.
        """
        if call.expires_at is not None and call.expires_at <= self._clock.seconds():
            self._delivery_metrics.expired.value += 1
            self._ledger.settle(call)
            return True
        if call.delivery.session.ended and not call.message_lost:
            self._ledger.await_redelivery(call)
            return True
        return False

    # -- the method ----------------------------------------------------------------------------

    def begin(self, call: Call) -> None:
        """Run a call's method, unless :meth:`drop_stale` drops the call.

        See Note [When a message is acknowledged] in novasvc.rpc.server.dispatcher. ``ended`` is not called for a
        method that has ended when this returns.
        """
        if self.drop_stale(call):
            return
        if call.request.options is not None and not self._claims.claim(call):
            call.answered = True  # Another worker of this host answers.
            self._ledger.settle(call)
            return
        call.began = self._clock.seconds()
        if not call.method.exposure.idempotent:
            # At most once: acknowledged (AMQP 0-9-1 1.8.3.13, basic.ack) before the method can have an effect, as
            # oslo.messaging's servers do.
            self._ledger.settle(call)
        timeout = call.method.exposure.timeout
        deadline = call.deadline if timeout is None else _earlier(call.deadline, call.began + timeout)
        reporter = Reporter()
        reporter.call, reporter.method, reporter.reports = call, call.method.name, self._progress
        call.reporter = reporter
        context = RequestContext.from_wire(call.request.context, deadline, reporter)
        call.scope.run(current_context.set, context)
        call.request_id = context.request_id
        if call.method.exposure.counted:
            note("call", f"{call.method.name} began {call.request_id}")
        self.running[call] = None
        self._method_metrics[call.method].now.value += 1
        try:
            result = self._run(call)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - even SystemExit in a method must not end the server
            self._method_ended(Failure(), call)
            return
        if not isinstance(result, Deferred):
            self._method_ended(result, call)
            return
        result.addBoth(self._method_ended, call)
        # Not "if not result.called": a Deferred that has fired may still wait for another one it is chained to.
        if call in self.running:
            call.running = result
            if deadline is not None:
                self._deadlines.add(call, deadline)
            self._schedule_keepalive(call)

    def _run(self, call: Call) -> Any:
        scope, method = call.scope, call.method
        context = scope[current_context]
        if self._chain is not None:
            assert context is not None  # begin() has set it
            return scope.run(self._run_through, self._chain, call, context)
        if method.exposure.blocking:
            # A function without parameters: the method's argument names must not clash with those of run_blocking.
            return self._run_blocking(partial(scope.run, partial(_unless_ended(call), context, **call.args)))
        result = scope.run(method.function, context, **call.args)
        return scope.run(Deferred.fromCoroutine, result) if isinstance(result, CoroutineType) else result

    def _run_through(self, chain: Chain, call: Call, context: RequestContext) -> Deferred[Any]:
        """Run a call's method through the middleware, in the call's scope."""
        request, method = call.request, call.method
        run_blocking = self._run_blocking if method.exposure.blocking else None
        function = _unless_ended(call)  # a middleware may pass on what its caller no longer waits for
        return chain.run(
            Invocation(
                kind=SERVE,
                name=method.name,
                context=context,
                args=call.args,
                topic=self._target.topic,
                server=self._target.server,
                namespace=request.namespace,
                message_id=None if request.reply_to is None else request.reply_to.msg_id,
            ),
            partial(run_in_current_context, function, run_blocking),
        )

    def _method_ended(self, result: object, call: Call) -> None:
        """Handle the end of a method: count it, and reply with its result or its error.

        :param result: the method's result, or a Failure.
        """
        metrics = self._method_metrics[call.method]
        try:
            if isinstance(result, Failure):
                self._method_failed(result, call, metrics)
                return
            if not call.answered:
                metrics.done.value += 1
            if call.method.exposure.counted:
                note("call", f"{call.method.name} done {call.request_id}")
            if call.request.reply_to is None or call.answered:
                self._finish(call, None)
                return
            try:
                contract = call.method.contract
                if contract is not None and contract.result is not Any and type(result) is not contract.plain_result:
                    result = contract.convert_result(result)
                extra = None if call.request.options is None else self._claims.reply_extra(call.request)
                body = encode_result(call.request.reply_to.msg_id, result, call.method.name, extra=extra)
            except Exception as error:  # noqa: BLE001 - without a reply, the request is never settled
                call.scope.copy().run(_log.error, "{error}", error=error)
                self.reply_error(call, error)
            else:
                self._finish(call, body)
        finally:
            self.running.pop(call, None)
            metrics.now.value -= 1
            metrics.seconds.observe(self._clock.seconds() - call.began)
            # The context refers to the call, which refers to the context: that would be left to the garbage collector.
            call.reporter.call = None
            if call.progress is not None:
                self._progress.ended(call)
            if call.running is not None:
                # The slot is free now, so a waiting call may begin.
                self._deadlines.live.pop(call, None)
                self._ended()  # Not for a method that ended at once: the caller of begin() continues by itself.

    def _method_failed(self, failure: Failure, call: Call, metrics: MethodMetrics) -> None:
        error = cast(BaseException, failure.value)
        add_remedy(error)
        note("call", f"{call.method.name} failed {call.request_id} {type(error).__name__}")
        if not call.answered:
            outcome = metrics.expected if failure.check(*call.method.exposure.expected) else metrics.failed
            outcome.value += 1
            metrics.raised(error)
            if outcome is metrics.failed:
                self._note_error(call, error)
        if not (call.answered and failure.check(CancelledError)):
            # A copy: a Context cannot be entered twice, and the method's thread may still be in the scope.
            call.scope.copy().run(_log_failure, call.method, failure)
        self.reply_error(call, error, failure)

    def _note_error(self, call: Call, error: BaseException) -> None:
        method = call.method
        seconds = self._clock.seconds() - call.began
        self.recent_errors.add(method.name, method.exposure.namespace, call.request_id, error, seconds)

    # -- cancellation --------------------------------------------------------------------------

    def _timed_out(self, call: Call) -> None:
        self._cancel_method(call)
        self._ended()

    def _cancel_method(self, call: Call, reason: str = "") -> None:
        """Reply with MethodTimeoutError and cancel the method.

        The call keeps its slot until the method has really ended. A blocking method cannot be
        cancelled: its thread runs on.

        :param reason: why it was cut short; "" means that its deadline has passed.
        """
        if not call.answered:
            note("call", f"{call.method.name} {'was cut short' if reason else 'timed out'} {call.request_id}")
            self._method_metrics[call.method].timed_out.value += 1
            error = MethodTimeoutError(call.method.name, round(self._clock.seconds() - call.began, 3), reason)
            self._note_error(call, error)
            call.scope.copy().run(_log.warn, "{error}", error=error)
            self.reply_error(call, error)
        self._cancel_running(call)

    def cancel(self, call: Call) -> None:
        """Cancel a running method whose caller has cancelled the call; it gets no reply.

        As at a deadline, the call keeps its slot until the method has really ended.
        """
        if not call.answered:
            note("call", f"{call.method.name} was cancelled by its caller {call.request_id}")
            self._method_metrics[call.method].cancelled.value += 1
            self._finish(call, None)
            self._deadlines.live.pop(call, None)  # It would cancel the method's cleanup.
        self._cancel_running(call)

    def _cancel_running(self, call: Call) -> None:
        # Around a blocking method there may be middleware that waits for something else than the thread.
        if call.running is not None and (self._chain is not None or not call.method.exposure.blocking):
            try:
                call.running.cancel()
            except Exception:  # noqa: BLE001 - a user's canceller raised; the other calls must still be cancelled
                call.scope.copy().run(_log.failure, "the canceller of {method} failed", method=call.method.name)

    def close(self) -> None:
        """Stop the timers. Called after :meth:`cut_short`."""
        self._deadlines.close()
        self._claims.close()
        for call in self.running:
            self._progress.ended(call)

    def cut_short(self, reason: str) -> None:
        """Cut all running calls short.

        Idempotent calls get no reply: they are requeued and run again elsewhere. If the transport has a
        problem, pending replies are dropped: it would buffer them until their callers give up.

        :param reason: text of the MethodTimeoutError; not "".
        """
        # Before any method is cancelled: a method that ends now must not reply to a call that will run again.
        for call in list(self.running):
            if call.method.exposure.idempotent and not call.answered:
                call.answered = True
                self._cancel_keepalive(call)
                self._ledger.requeue(call)  # With its old count: a shutdown is not a death.
        for call in list(self.running):
            self._cancel_method(call, reason)
        if self._transport.problem() is not None:
            # The transport buffers an unsent reply for as long as its caller waits, and this process ends now.
            for publishing in list(self.publishing):
                publishing.cancel()

    # -- the reply -----------------------------------------------------------------------------

    def reply_error(self, call: Call, error: BaseException, failure: Failure | None = None) -> None:
        """Reply to a call with an error, unless it is answered or a cast.

        :param error: the error to send.
        :param failure: the Failure that the method raised, whose traceback is sent if ``send_tracebacks`` is set; None
            if the error is the server's.
        """
        reply_to = call.request.reply_to
        if reply_to is None or call.answered:
            self._finish(call, None)
            return
        lines = failure.getTraceback().splitlines() if failure and self._send_tracebacks else ()
        name, extra = call.method.name, self._claims.reply_extra(call.request)
        here = attrs.evolve(self._here, method=name, request_id=call.request_id)
        try:
            text = encode_error(error, lines, here, method=None if failure is None else name)
            body = encode_failure(reply_to.msg_id, text, extra)
        except Exception as problem:  # noqa: BLE001 - over the size limit, or what a user's class raises
            substitute = ResultNotSerializableError(name, f"it raised {type(error).__name__}; {safe_str(problem)}")
            body = encode_failure(reply_to.msg_id, encode_error(substitute, here=here), extra)
        self._finish(call, body)

    def refuse(self, request: Request, request_id: str, error: Exception, timeout: float | None) -> None:
        """Reply with an error to a request that did not become a call, unless it is a cast.

        :param timeout: seconds for which the caller still waits; None if unknown.
        """
        reply_to = request.reply_to
        if reply_to is not None:
            here = attrs.evolve(self._here, method=request.method, request_id=request_id)
            text = encode_error(error, here=here)
            self._publish(
                _Reply(reply_to, encode_failure(reply_to.msg_id, text, self._claims.reply_extra(request)), timeout)
            )

    def resend_reply(self, request: Request, timeout: float | None) -> None:
        """Publish the reply to a duplicate request again, if the reply is remembered.

        :param timeout: seconds for which the caller still waits; None if unknown.
        """
        found = self._recent_replies.get(request.unique_id)
        if found is not None:
            self._publish(_Reply(*found, timeout))

    def _finish(self, call: Call, body: bytes | None) -> None:
        """Publish the reply to a call, once; acknowledge an idempotent call after that.

        :param body: the encoded reply; None publishes none.
        """
        if call.answered:
            return
        call.answered = True
        if call.keepalive is not None:
            self._cancel_keepalive(call)
        settles = call if call.method.exposure.idempotent else None
        if body is not None and call.request.reply_to is not None:
            # A caller with keepalives and without a deadline gives up one interval after the last keepalive.
            timeout = call.request.keepalive if call.deadline is None else call.deadline - self._clock.seconds()
            if settles is not None and call.request.unique_id is not None:
                # Callers may send any request again that they say is idempotent. But a broker rarely loses a reply,
                # and all calls of the other methods would have to pass here.
                self._recent_replies.add(call.request.unique_id, call.request.reply_to, body)
            self._publish(_Reply(call.request.reply_to, body, timeout, call, settles))
        elif settles is not None:
            self._ledger.settle(settles)

    def _cancel_keepalive(self, call: Call) -> None:
        if call.keepalive is not None:
            call.keepalive.cancel()
            call.keepalive = None

    def _publish(self, reply: _Reply) -> None:
        """Publish a reply; then settle its call, or requeue the call if publishing fails.

        This keeps the call, not its delivery: a redelivery may have replaced the delivery by then.
        """
        timeout = None if reply.timeout is None else max(0.0, reply.timeout)
        until = None if timeout is None else self._clock.seconds() + timeout
        publishing: Deferred[None] = self._transport.reply(reply.reply_to.address, reply.body, timeout)
        if publishing.called and publishing.result is None:
            # Published synchronously, as by the in-memory transport: save the cost of two callbacks per call.
            if reply.settles is not None:
                self._ledger.settle(reply.settles)
            return
        self.publishing[publishing] = None
        publishing.addCallbacks(
            self._published, self._unpublished, callbackArgs=(publishing, reply), errbackArgs=(publishing, reply, until)
        )

    def _published(self, _: None, publishing: Deferred[None], reply: _Reply) -> None:
        if reply.settles is not None:
            self._ledger.settle(reply.settles)
        del self.publishing[publishing]
        self._ended()

    def _unpublished(self, failure: Failure, publishing: Deferred[None], reply: _Reply, until: float | None) -> None:
        self._delivery_metrics.unanswered.value += 1
        too_late = until is not None and until <= self._clock.seconds()
        reply.log(
            "the reply to {method} was dropped: {why} ({reason})",
            why="its caller has stopped waiting" if too_late else "it could not be published",
            reason="the service is shutting down" if failure.check(CancelledError) else failure.value,
        )
        if reply.settles is not None:
            if too_late:
                self._ledger.settle(reply.settles)  # The method has run, and nobody waits for its result.
            elif failure.check(CancelledError, TransportClosedError):
                self._ledger.requeue(reply.settles)
            else:
                self._requeue_later(reply.settles)
        del self.publishing[publishing]
        self._ended()

    def _requeue_later(self, call: Call) -> None:
        """Requeue an idempotent call, which may run again to answer its caller, after REQUEUE_DELAY."""
        # At once it would run, and its reply would be refused, hundreds of times a second while a broker rejects
        # messages. Meanwhile it counts as a reply that is being published, so that the server's end waits for it.
        waiting: Deferred[None] = deferLater(self._clock, REQUEUE_DELAY, lambda: None)
        self.publishing[waiting] = None

        def requeue(_: object) -> None:
            self._ledger.requeue(call)
            del self.publishing[waiting]
            self._ended()

        waiting.addBoth(requeue)

    # -- keepalives ----------------------------------------------------------------------------

    def _schedule_keepalive(self, call: Call) -> None:
        """Schedule the next keepalive, if the caller asked for keepalives.

        At half the caller's interval, as oslo.messaging's call-monitor heartbeat, so that one may be late.
        """
        seconds, reply_to = call.request.keepalive, call.request.reply_to
        if seconds is not None and reply_to is not None and not call.answered:
            call.keepalive = self._clock.callLater(seconds / 2, self._send_keepalive, call, reply_to)

    def _send_keepalive(self, call: Call, reply_to: ReplyTo) -> None:
        call.keepalive = None
        sending: Deferred[None] = self._transport.reply(reply_to.address, encode_keepalive(reply_to.msg_id))
        # A caller that cannot be reached gets no further keepalives.
        sending.addCallbacks(lambda _: self._schedule_keepalive(call), lambda _: None)


def _earlier(caller: float | None, own: float) -> float:
    """Return the earlier of the caller's deadline and the method's own."""
    return own if caller is None else min(own, caller)


def _unless_ended(call: Call) -> Callable[..., Any]:
    """Return a call's method, which raises CancelledError if the call has ended while it waited, as for a thread."""

    @wraps(call.method.function)  # logs name it as the method
    def run(context: RequestContext | None, /, **args: Any) -> Any:
        if call.answered:
            raise CancelledError
        return call.method.function(context, **args)

    return run


def _log_failure(method: Method, failure: Failure) -> None:
    if failure.check(*method.exposure.expected):
        _log.debug("{method} raised {error}, as its author expects", method=method.name, error=safe_repr(failure.value))
    else:
        # Of an error that another service raised, the traceback shows only where it arrived.
        origin = None if failure.value is None else origin_of(failure.value)
        where = method.where if origin is None else f"{method.where}; raised by {origin}"
        _log.failure("{method} failed ({where})", failure, level=LogLevel.error, method=method.name, where=where)
