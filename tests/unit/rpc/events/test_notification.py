import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, current_context
from novasvc.errors import InvalidArgumentsError, MessageFormatError, StateError, TransportClosedError
from novasvc.rpc import Notification, NotificationListener, Notifier
from novasvc.rpc.events.notification import PRIORITIES, encode_notification, read_notification
from novasvc.rpc.message import unwrap
from novasvc.transport.memory import MemoryBroker, MemoryTransport

CONTEXT = RequestContext(request_id="req-1", user_id="u1")
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone(timedelta(hours=2)))


class NotificationTests(SynchronousTestCase):
    def test_fields(self) -> None:
        """A notification is encoded with the field names and formats of OpenStack's services."""
        notification = Notification(
            event_type="compute.create",
            payload={"id": 12},
            publisher_id="compute.h1",
            priority="info",
            context=CONTEXT,
            message_id="m1",
            timestamp="now",
        )
        fields = unwrap(encode_notification(notification))
        self.assertRegex(fields.pop("_unique_id"), "^[0-9a-f]{32}$")
        self.assertEqual(
            fields,
            {
                "message_id": "m1",
                "publisher_id": "compute.h1",
                "event_type": "compute.create",
                "priority": "INFO",
                "payload": {"id": 12},
                "timestamp": "now",
                "_context_request_id": "req-1",
                "_context_user_id": "u1",
                "_context_project_id": None,
                "_context_is_admin": False,
            },
        )
        self.assertEqual(read_notification(unwrap(encode_notification(notification))), notification)

    def test_incomplete(self) -> None:
        """Every field but the priority may be missing, or have another type."""
        read = read_notification({"priority": "Error", "event_type": 1})
        self.assertEqual(
            (read.priority, read.event_type, read.publisher_id, read.payload, read.message_id, read.timestamp),
            ("error", "", "", None, "", ""),
        )

    def test_priorities(self) -> None:
        """An unknown priority is refused, whatever its type."""
        for fields in ({}, {"priority": None}, {"priority": ["info"]}, {"priority": "urgent"}):
            self.assertRaises(MessageFormatError, read_notification, fields)


class NotifierTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.transport = MemoryTransport(self.broker, clock=self.clock)
        self.notifier = Notifier(
            self.transport, publisher_id="compute.h1", topics=["notifications", "audit"], now=lambda: NOON
        )

    def taken(self, queue: str) -> list[dict[str, Any]]:
        """Take the bodies that wait in a queue."""
        bodies: list[dict[str, Any]] = []
        self.successResultOf(self.transport.consume(queue, lambda delivery: bodies.append(unwrap(delivery.body)), 10))
        self.clock.advance(0)
        return bodies

    def test_topics(self) -> None:
        """Each topic gets a copy, in the queue of the priority, under one id; its time is in UTC."""
        self.successResultOf(self.notifier.warn(CONTEXT, "disk.full", {"free": 0}))
        copies = [body for topic in self.notifier.topics for body in self.taken(f"{topic}.warn")]
        self.assertEqual([copy["payload"] for copy in copies], [{"free": 0}] * 2)
        self.assertEqual(len({copy["message_id"] for copy in copies}), 1)
        self.assertEqual({copy["timestamp"] for copy in copies}, {"2026-11-22 10:00:00.000000"})

    def test_methods(self) -> None:
        """The notifier has a method for each priority."""
        for priority in PRIORITIES:
            self.successResultOf(getattr(self.notifier, priority)(CONTEXT, "x", None))
            self.assertEqual(self.taken(f"audit.{priority}")[0]["priority"], priority.upper())

    def test_unknown_priority(self) -> None:
        """Another priority raises ValueError."""
        self.assertRaises(ValueError, self.notifier.notify, "urgent", CONTEXT, "x", None)

    def test_payload(self) -> None:
        """A payload that JSON cannot hold, or that is too large, is refused."""
        for payload in (object(), "x" * 17 * 2**20):
            self.failureResultOf(self.notifier.info(CONTEXT, "x", payload), InvalidArgumentsError)

    def test_closed(self) -> None:
        """A message that the transport refuses fails the Deferred."""
        self.transport.close()
        self.failureResultOf(self.notifier.info(CONTEXT, "x", None), TransportClosedError)

    def test_now(self) -> None:
        """The timestamp is the host's time by default."""
        self.successResultOf(Notifier(self.transport, publisher_id="x").info(CONTEXT, "x", None))
        (body,) = self.taken("notifications.info")
        told = datetime.strptime(body["timestamp"], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
        self.assertLess(abs((datetime.now(UTC) - told).total_seconds()), 60)


class NotificationListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.transport = MemoryTransport(self.broker, clock=self.clock)
        self.notifier = Notifier(self.transport, publisher_id="compute.h1")
        self.taken: list[Notification] = []
        self.answer: Any = None

    def take(self, notification: Notification) -> Any:
        self.taken.append(notification)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def listen(self, **given: Any) -> NotificationListener:
        listener = NotificationListener(self.transport, self.take, clock=self.clock, **given)
        self.successResultOf(listener.start())
        return listener

    def tell(self, *event_types: str) -> None:
        for event_type in event_types:
            self.successResultOf(self.notifier.info(CONTEXT, event_type, None))
        self.clock.pump([0] * 10)

    def told(self) -> list[str]:
        """Return the event types handled since the previous call."""
        taken, self.taken = self.taken, []
        return [notification.event_type for notification in taken]

    def test_life(self) -> None:
        """The listener is live from its start to its close, and starts once."""
        listener = NotificationListener(self.transport, self.take, clock=self.clock)
        self.assertFalse(listener.live)
        self.successResultOf(listener.start())
        self.assertTrue(listener.live)
        self.failureResultOf(listener.start(), StateError)
        self.successResultOf(listener.close())
        self.assertFalse(listener.live)
        self.tell("late")
        self.assertEqual(self.told(), [])

    def test_priorities(self) -> None:
        """The listener consumes its topics and priorities, and leaves other queues alone."""
        self.listen(priorities=["error"])
        self.tell("info")
        self.assertEqual(self.told(), [])
        self.listen()
        self.clock.advance(0)
        self.assertEqual(self.told(), ["info"])

    def test_context(self) -> None:
        """The handler runs with the notification's context as the current context."""
        seen: list[Any] = []

        async def take(notification: Notification) -> None:
            seen.append((current_context.get(), notification.context))

        listener = NotificationListener(self.transport, take, clock=self.clock)
        self.successResultOf(listener.start())
        self.tell("x")
        self.assertEqual(seen, [(CONTEXT, CONTEXT)])
        self.assertIsNone(current_context.get())

    def test_acknowledged(self) -> None:
        """A notification is acknowledged when its handler has ended, not before."""
        self.answer = Deferred()
        self.listen(concurrency=1)
        self.tell("first", "second")
        self.assertEqual(self.told(), ["first"])
        self.answer.callback(None)
        self.clock.advance(0)
        self.assertEqual(self.told(), ["second"])

    def test_error(self) -> None:
        """A notification whose handler fails is redelivered, then quarantined; each failure is logged."""
        self.answer = ValueError("no place")
        self.listen(max_deliveries=2)
        self.tell("x")
        self.assertEqual(self.told(), ["x", "x"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        ((_, reason),) = self.broker.quarantine
        self.assertIn("no place", reason)

    def test_logged(self) -> None:
        """What a publisher may choose takes a bounded part of a line in the log, and begins no line of its own."""
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.answer = ValueError("no place")
        self.listen(max_deliveries=1)
        odd = "x\n" * 10_000
        notification = Notification(
            event_type=odd, payload=1, publisher_id=odd, priority="info", context=CONTEXT, message_id=odd
        )
        self.successResultOf(self.transport.post("notifications.info", encode_notification(notification)))
        self.clock.advance(0)
        (line,) = lines
        self.assertIn("failed (delivery 1)", line)
        self.assertLess(len(line), 600)
        self.assertNotIn("\n", line)
        self.flushLoggedErrors(ValueError)

    def test_poison(self) -> None:
        """A poison notification, which kills its listeners, is quarantined and not handled again."""
        self.answer = Deferred()
        for _ in range(2):
            transport = self.transport = MemoryTransport(self.broker, clock=self.clock)
            self.listen(max_deliveries=2)
            self.tell()
            if not self.taken:
                self.notifier = Notifier(transport, publisher_id="x")
                self.tell("x")
            self.assertEqual(self.told(), ["x"])
            transport.close()
        self.transport = MemoryTransport(self.broker, clock=self.clock)
        self.listen(max_deliveries=2)
        self.tell()
        self.assertEqual(self.told(), [])
        self.assertEqual(len(self.broker.quarantine), 1)

    def test_uncounted(self) -> None:
        """A notification whose delivery is not counted is moved to the process's own queue first, to be counted."""
        listener = NotificationListener(self.transport, self.take, clock=self.clock)
        requeued: list[int] = []

        class Uncounted:
            body = encode_notification(
                Notification(event_type="x", payload=None, publisher_id="", priority="info", context=CONTEXT)
            )
            deliveries, counts_death = 1, False
            requeue_here = staticmethod(requeued.append)

        listener._receive(Uncounted())  # type: ignore[arg-type]
        self.assertEqual((requeued, self.taken), ([1], []))

    def test_malformed(self) -> None:
        """A malformed notification is dropped and counted, and the next one is handled."""
        listener = self.listen()
        for body in (b"", b"{}", json.dumps({"priority": "urgent"}).encode()):
            self.successResultOf(self.transport.post("notifications.info", body))
        self.tell("x")
        self.assertEqual((listener.malformed, self.told()), (3, ["x"]))

    def test_close_waits(self) -> None:
        """Closing waits for the running handlers, and their notifications are acknowledged."""
        self.answer = Deferred()
        listener = self.listen()
        self.tell("x")
        closing = listener.close()
        self.assertNoResult(closing)
        self.answer.callback(None)
        self.successResultOf(closing)
        self.listen()
        self.clock.advance(0)
        self.assertEqual(self.told(), ["x"])

    def test_close_in_time(self) -> None:
        """A handler that does not end in time is cancelled, and its notification goes to the next listener."""
        self.answer = Deferred()
        listener = self.listen()
        self.tell("x")
        closing = listener.close(patience=5.0)
        self.clock.advance(5.0)
        self.successResultOf(closing)
        self.answer = None
        self.listen()
        self.clock.advance(0)
        self.assertEqual(self.told(), ["x", "x"])

    def test_close_while_starting(self) -> None:
        """A listener that is closed while it starts consumes nothing afterwards."""
        opening: Deferred[None] = Deferred()

        class Slow(MemoryTransport):
            def consume(self, *given: Any) -> Deferred[Any]:
                return opening.addCallback(lambda _: MemoryTransport.consume(self, *given))

        self.transport = Slow(self.broker, clock=self.clock)
        listener = NotificationListener(self.transport, self.take, clock=self.clock, priorities=["info"])
        starting = listener.start()
        self.successResultOf(listener.close())
        opening.callback(None)
        self.successResultOf(starting)
        self.assertFalse(listener.live)
        self.tell("x")
        self.assertEqual(self.told(), [])

    def test_refused(self) -> None:
        """A start that fails leaves no consumer behind."""
        self.transport.close()
        listener = NotificationListener(self.transport, self.take, clock=self.clock)
        self.failureResultOf(listener.start(), TransportClosedError)
        self.assertFalse(listener.live)
