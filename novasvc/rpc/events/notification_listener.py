"""The notification listener: passes notifications to a handler, and acknowledges them afterwards."""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.context import current_context
from novasvc.errors import StateError
from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.rpc.errors import MessageFormatError
from novasvc.rpc.events.notification import PRIORITIES, TOPICS, Notification, read_notification
from novasvc.rpc.message import unwrap

_log = Logger()

Handler = Callable[[Notification], Any]
"""Handle a notification; may return a Deferred or a coroutine. The notification is acknowledged when that fires."""


class NotificationListener:
    """Consume notifications and pass each to a handler, at-least-once.

    A notification is acknowledged when the handler has ended. It is redelivered after a crash or an error of
    the handler, and quarantined after ``max_deliveries`` deliveries.

    :param transport: an open transport.
    :param handler: see Handler; called with the notification's context as the current context.
    :param clock: measures the patience of :meth:`close`.
    :param topics: topics to consume.
    :param priorities: priorities to consume.
    :param concurrency: notifications handled at a time for each queue, > 0; also the prefetch.
    :param max_deliveries: quarantine a notification after this many deliveries without success, > 0.
    :ivar malformed: the number of messages that were dropped because they were malformed.
    """

    def __init__(
        self,
        transport: ITransport,
        handler: Handler,
        *,
        clock: IReactorTime,
        topics: Sequence[str] = TOPICS,
        priorities: Sequence[str] = PRIORITIES,
        concurrency: int = 64,
        max_deliveries: int = 3,
    ) -> None:
        self.malformed = 0
        self._transport = transport
        self._handler = handler
        self._clock = clock
        self._queues = [f"{topic}.{priority}" for topic in topics for priority in priorities]
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries
        self._listeners: list[IListener] = []
        self._handling: dict[Deferred[Any], None] = {}
        self._idle: Deferred[None] | None = None
        self._state = "new"

    @property
    def live(self) -> bool:
        """Whether the consumers of all queues are active."""
        return bool(self._listeners) and all(listener.live for listener in self._listeners)

    def start(self) -> Deferred[None]:
        """Start consuming. Called once.

        :return: Deferred[None], fired when the consumers are active; fails with the transport's error, or
            with StateError if the listener was started before.
        """
        if self._state != "new":
            return fail(StateError("the notification listener", self._state, "start"))
        self._state = "started"
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        try:
            for queue in self._queues:
                self._listeners.append(await self._transport.consume(queue, self._receive, self._concurrency))
                if self._state == "closed":
                    break
            else:
                return
        except BaseException:
            await self._close(0.0)
            raise
        await self._close(0.0)

    def close(self, patience: float = 10.0) -> Deferred[None]:
        """Stop consuming, and wait for the running handlers.

        Handlers that do not end in time are cancelled; their notifications are redelivered elsewhere.

        :param patience: seconds to wait for the handlers, >= 0.
        :return: Deferred[None], fired when the listeners are closed.
        """
        return Deferred.fromCoroutine(self._close(patience))

    async def _close(self, patience: float) -> None:
        self._state = "closed"
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.cancel()
        if self._handling:
            self._idle = Deferred()
            try:
                await self._idle.addTimeout(patience, self._clock)
            except DeferredTimeoutError:
                self._idle = None
                for handling in list(self._handling):
                    handling.cancel()
        for listener in listeners:
            await listener.close()

    def _receive(self, delivery: IDelivery) -> None:
        """Receive a delivery; called by the transport. A malformed message is dropped."""
        if self._state == "closed":
            return  # Closing the listener gives the unsettled delivery back.
        try:
            notification = read_notification(unwrap(delivery.body))
        except MessageFormatError as error:
            self.malformed += 1
            _log.warn("a notification was dropped: {error}", error=error)
            delivery.reject()
            return
        if not delivery.counts_death:
            # Moved to this process's own queue first, so that the transport counts the next delivery: the count must
            # outlive the processes that a poison message kills. A requeue would leave it uncounted, again and again.
            delivery.requeue_here(delivery.deliveries)
            return
        if delivery.deliveries >= self._max_deliveries:
            delivery.quarantine(f"it was delivered {delivery.deliveries} times, and never handled")
            return
        scope = copy_context()
        scope.run(current_context.set, notification.context)
        handling = scope.run(maybeDeferred, self._handler, notification)
        self._handling[handling] = None
        handling.addCallbacks(lambda _: delivery.ack(), self._handler_failed, errbackArgs=(delivery, notification))
        handling.addBoth(self._handler_ended, handling)

    def _handler_failed(self, failure: Failure, delivery: IDelivery, notification: Notification) -> None:
        if self._state == "closed" and failure.check(CancelledError):
            return
        deliveries = delivery.deliveries + 1
        _log.failure(
            "the handler of {notification} failed (delivery {deliveries})",
            failure=failure,
            notification=str(notification),
            deliveries=deliveries,
        )
        if deliveries < self._max_deliveries:
            delivery.requeue(deliveries)
        else:
            delivery.quarantine(f"its handler failed {deliveries} times, at last with: {failure.getErrorMessage()}")

    def _handler_ended(self, _: object, handling: Deferred[Any]) -> None:
        del self._handling[handling]
        if self._idle is not None and not self._handling:
            idle, self._idle = self._idle, None
            idle.callback(None)
