"""The event listener: has a manager's handlers handle the events that its topic is subscribed to."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from novasvc.context import current_context
from novasvc.errors import add_remedy
from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.middleware import Chain
from novasvc.reactor.coalesce import Waiters
from novasvc.rpc.errors import MessageFormatError
from novasvc.rpc.events.declare import EventHandler
from novasvc.rpc.events.notification import Notification, read_notification
from novasvc.rpc.events.run import HandlerRunner, InvalidPayloadError
from novasvc.rpc.failures.failure import encode_error
from novasvc.rpc.message import NAME_LIMIT, encode_failure, read_reply_to, unwrap
from novasvc.telemetry import metrics
from novasvc.telemetry.flight import note

_log = Logger()

_LONGEST_DELAY = 60.0
"""Seconds between two attempts, at most: the delivery stays unsettled meanwhile."""
_REMEMBERED = 1000
"""Events of which it is known which handlers have succeeded, so that only the others are called again."""


def event_queue(topic: str) -> str:
    """Return the name of the queue with a topic's copy of the events."""
    return f"{topic}_events"


@attrs.define(eq=False)
class _Handling:
    """A delivered event: its handlers run, or it waits for its next delivery.

    :ivar running: the Deferreds of the handlers that have not ended.
    :ivar retry: the timer that gives the event back.
    """

    delivery: IDelivery
    notification: Notification
    running: dict[Deferred[Any], None] = attrs.field(factory=dict, init=False)
    retry: IDelayedCall | None = attrs.field(default=None, init=False)


class EventListener:
    """Consume the events of one topic, and call the handlers that match, at least once.

    Its queue is a pool as oslo.messaging has it: shared by all listeners of the topic, and bound to the notification
    topic's routing keys. So each topic gets its own copy of an event.

    :param transport: an open transport.
    :param topic: of the node.
    :param handlers: not empty.
    :param clock: measures delays and timeouts.
    :param run_blocking: runs a function in a thread and returns a Deferred of its result.
    :param notification_topic: the topic that events are published to.
    :param concurrency: events handled at a time, > 0; also the prefetch.
    :param attempts: quarantine an event after this many, > 0. A process that dies with an event makes one, too.
    :param retry_delay: seconds before the second attempt; twice as many before each further one, at most 60.
    :param chain: the middleware around handlers; None without any.
    :ivar malformed: the number of messages that were dropped because they were malformed.
    """

    def __init__(
        self,
        transport: ITransport,
        topic: str,
        handlers: Sequence[EventHandler],
        *,
        clock: IReactorTime,
        run_blocking: Callable[..., Deferred[Any]],
        notification_topic: str = "notifications",
        concurrency: int = 64,
        attempts: int = 5,
        retry_delay: float = 1.0,
        chain: Chain | None = None,
    ) -> None:
        self.malformed = 0
        self._transport = transport
        self._topic = topic
        self._handlers = handlers
        self._clock = clock
        self._runner = HandlerRunner(topic, clock, run_blocking, chain)
        priorities = dict.fromkeys(name for each in handlers for name in each.subscription.priorities)
        self._keys = [f"{notification_topic}.{priority}" for priority in priorities]
        self._concurrency = concurrency
        self._attempts = attempts
        self._retry_delay = retry_delay
        self._listener: IListener | None = None
        self._handling: dict[_Handling, None] = {}
        self._done: OrderedDict[str, set[EventHandler]] = OrderedDict()
        self._idle: Waiters[None] = Waiters()
        self._stopping = False
        self._paused: list[IDelivery] | None = None
        self._scope: Context = copy_context()
        for each in handlers:
            for outcome in ("done", "failed", "invalid", "quarantined"):
                metrics.events_handled.at(topic, each.name, outcome)

    # -- start and stop ------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether the consumer is active."""
        return self._listener is not None and bool(self._listener.live)

    def pause(self) -> None:
        """Handle no event until :meth:`resume`. Events wait unsettled meanwhile. Called before :meth:`start`."""
        self._paused = []

    def resume(self) -> None:
        """Handle the events that have arrived, and all later ones. Has no effect unless paused."""
        deliveries, self._paused = self._paused or (), None
        for delivery in deliveries:
            session = delivery.session
            if not (session.ended and session.redelivers):  # otherwise it has been delivered again
                self._receive(delivery)

    def start(self) -> Deferred[None]:
        """Subscribe and consume. Called once.

        :return: Deferred[None], fired when the consumer is active; fails with the transport's error.
        """
        self._scope = copy_context()
        queue = event_queue(self._topic)
        subscribing: Deferred[IListener] = self._transport.subscribe(
            queue, self._keys, self._receive, self._concurrency
        )
        return subscribing.addCallback(self._started)

    def _started(self, listener: IListener) -> Deferred[None] | None:
        self._listener = listener
        return self._stop_consuming() if self._stopping else None

    def operations(self) -> set[str]:
        """Return the request ids of the running handlers."""
        return {each.notification.context.request_id for each in self._handling if each.running}

    def running_calls(self) -> int:
        """Return the number of running handlers."""
        return sum(len(each.running) for each in self._handling)

    def drain(self) -> Deferred[None]:
        """Receive no more events, and give back those that wait for another attempt.

        :return: Deferred[None], fired when no further event will be delivered.
        """
        self._stopping = True
        self.resume()
        for each in list(self._handling):
            if each.retry is not None:
                each.retry.reset(0)
        return self._stop_consuming()

    def _stop_consuming(self) -> Deferred[None]:
        stopped: Deferred[None] = succeed(None) if self._listener is None else self._listener.cancel()
        return stopped

    def drained(self) -> Deferred[None]:
        """Wait until no handler runs.

        :return: a new Deferred[None] each time; cancelling it stops only this wait.
        """
        return self._idle.wait() if self._handling else succeed(None)

    def cut_short(self) -> None:
        """Cancel the running handlers; their events are delivered again, elsewhere or after the restart."""
        self._stopping = True
        for each in list(self._handling):
            for running in list(each.running):
                running.cancel()

    def close(self) -> Deferred[None]:
        """Stop at once: what is not settled is delivered again.

        :return: Deferred[None], fired when the listener is closed.
        """
        stopped = self.drain()
        self.cut_short()
        for each in list(self._handling):
            self._end(each)

        def close(_: object) -> Deferred[None] | None:
            listener, self._listener = self._listener, None
            return None if listener is None else listener.close()

        return stopped.addBoth(close)

    # -- from a delivery to the handlers ---------------------------------------------------------

    def _receive(self, delivery: IDelivery) -> None:
        """Receive a delivery; called by the transport. A malformed message is dropped, and a call refused."""
        if self._stopping:
            delivery.requeue(delivery.deliveries)
            return
        if self._paused is not None:
            self._paused.append(delivery)
            return
        try:
            fields = unwrap(delivery.body)
            self._check_is_no_call(fields)
            notification = read_notification(fields)
        except MessageFormatError as error:
            self.malformed += 1
            self._scope.copy().run(
                _log.warn, "an event for {topic} was dropped: {error}", topic=self._topic, error=error
            )
            delivery.reject()
            return
        handlers = [each for each in self._handlers if each.handles(notification)]
        if not handlers:
            delivery.ack()  # The queue gets all events of its priorities.
        elif delivery.deliveries and not delivery.counts_death:
            # Moved to this process's own queue first: the count must outlive the processes that a poison message kills.
            delivery.requeue_here(delivery.deliveries)
        elif delivery.deliveries >= self._attempts:
            reason = f"{delivery.deliveries} attempts did not end; the process may have died each time"
            self._quarantine(_Handling(delivery, notification), handlers, reason)
        else:
            done = self._done.get(notification.message_id, ())
            self._begin(_Handling(delivery, notification), [each for each in handlers if each not in done])

    def _check_is_no_call(self, fields: Mapping[str, Any]) -> None:
        """Refuse a call, which has reached this queue because its caller has taken the queue for a topic.

        :raises MessageFormatError: the message is a call.
        """
        if (reply_to := read_reply_to(fields)) is None:
            return
        queue = event_queue(self._topic)
        error = MessageFormatError(f"{queue!r} takes events, and no calls; the methods have the topic {self._topic!r}")
        replying = self._transport.reply(reply_to.address, encode_failure(reply_to.msg_id, encode_error(error)))
        replying.addErrback(lambda _: None)  # the caller waits until its time is up
        raise error

    def _begin(self, handling: _Handling, handlers: Sequence[EventHandler]) -> None:
        self._handling[handling] = None
        scope = self._scope.copy()
        scope.run(current_context.set, handling.notification.context)
        runs = [self._runner.run(each, handling.notification, scope.copy()) for each in handlers]
        for run in runs:
            handling.running[run] = None
            run.addBoth(self._ended_one, handling, run)
        # consumeErrors: _ended() sees to them, and logs them.
        ended = DeferredList(runs, consumeErrors=True)
        ended.addCallback(lambda results: self._ended(handling, handlers, [result for _, result in results], scope))
        ended.addErrback(self._not_settled, handling, scope)

    @staticmethod
    def _ended_one(result: Any, handling: _Handling, run: Deferred[Any]) -> Any:
        handling.running.pop(run, None)
        return result

    # -- the end of the handlers -----------------------------------------------------------------

    def _ended(
        self, handling: _Handling, handlers: Sequence[EventHandler], results: Sequence[Any], scope: Context
    ) -> None:
        if handling not in self._handling:
            return  # The listener was closed meanwhile, and the event is delivered again.
        failed = [(each, result) for each, result in zip(handlers, results, strict=True) if isinstance(result, Failure)]
        for each, result in zip(handlers, results, strict=True):
            if not isinstance(result, Failure):
                metrics.events_handled.at(self._topic, each.name, "done").value += 1
        if not failed:
            self._done.pop(handling.notification.message_id, None)
            handling.delivery.ack()
            self._end(handling)
            return
        if self._stopping and all(result.check(CancelledError) for _, result in failed):
            handling.delivery.requeue(handling.delivery.deliveries)  # A shutdown is no failed attempt.
            self._end(handling)
            return
        self._remember_done(handling.notification, {*handlers} - {each for each, _ in failed})
        scope.run(self._failed, handling, failed)

    def _failed(self, handling: _Handling, failed: Sequence[tuple[EventHandler, Failure]]) -> None:
        """Have an event delivered again after a delay, or quarantine it. Called in the event's scope."""
        attempt = handling.delivery.deliveries + 1
        invalid = [each for each, failure in failed if failure.check(InvalidPayloadError)]
        for each, failure in failed:
            outcome = "invalid" if each in invalid else "failed"
            metrics.events_handled.at(self._topic, each.name, outcome).value += 1
            note("event", f"{each.name} failed {type(failure.value).__name__}")
            add_remedy(failure.value)
        names, last = [each for each, _ in failed], failed[-1][1]
        what = f"{type(last.value).__name__}: {last.getErrorMessage()}"
        if len(invalid) == len(failed):
            self._quarantine(handling, names, what, last)  # No further attempt would end otherwise.
            return
        if attempt >= self._attempts:
            self._quarantine(handling, names, f"attempt {attempt} of {self._attempts} failed with {what}", last)
            return
        # Far below 2 ** 1024, which no float can hold.
        delay = 0.0 if self._stopping else min(_LONGEST_DELAY, self._retry_delay * 2 ** min(attempt - 1, 30))
        _log.failure(
            "{handler} failed to handle {event} (attempt {attempt} of {attempts}); the next one follows in {delay:g} s",
            failure=last,
            level=LogLevel.warn,
            handler=_names(names),
            event=str(handling.notification),
            attempt=attempt,
            attempts=self._attempts,
            delay=delay,
        )
        handling.retry = self._clock.callLater(delay, self._give_back, handling, attempt)

    def _not_settled(self, failure: Failure, handling: _Handling, scope: Context) -> None:
        """Have an event delivered again after an error of this listener; otherwise it would stay unsettled for ever."""
        scope.run(_log.failure, "{event} was not settled", failure, event=str(handling.notification))
        if handling in self._handling:
            delay = 0.0 if self._stopping else _LONGEST_DELAY
            handling.retry = self._clock.callLater(delay, self._give_back, handling, handling.delivery.deliveries + 1)

    def _give_back(self, handling: _Handling, attempts: int) -> None:
        handling.retry = None
        handling.delivery.requeue(attempts)
        self._end(handling)

    def _quarantine(
        self, handling: _Handling, handlers: Sequence[EventHandler], reason: str, failure: Failure | None = None
    ) -> None:
        self._done.pop(handling.notification.message_id, None)
        for each in handlers:
            metrics.events_handled.at(self._topic, each.name, "quarantined").value += 1
        if failure is not None:
            # Tests look for it too: of a payload that no handler accepts, this is the only failure in the log.
            _log.failure("the last error of {handler}", failure, level=LogLevel.debug, handler=_names(handlers))
        _log.error(
            "quarantined {event} in {queue}_quarantine: {handler}: {reason}",
            event=str(handling.notification),
            queue=event_queue(self._topic),
            handler=_names(handlers),
            reason=reason,
        )
        handling.delivery.quarantine(f"{_names(handlers)}: {reason}")
        self._end(handling)

    def _remember_done(self, notification: Notification, handlers: set[EventHandler]) -> None:
        if handlers and 0 < len(notification.message_id) <= NAME_LIMIT:
            self._done.setdefault(notification.message_id, set()).update(handlers)
            while len(self._done) > _REMEMBERED:
                self._done.popitem(last=False)

    def _end(self, handling: _Handling) -> None:
        if handling.retry is not None:
            handling.retry.cancel()
            handling.retry = None
        self._handling.pop(handling, None)
        if not self._handling and self._idle.waiting:
            self._idle.fire(None)


def _names(handlers: Sequence[EventHandler]) -> str:
    return ", ".join(each.name for each in handlers)
