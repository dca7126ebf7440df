import re
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import DeferredQueue

from novasvc.context import RequestContext
from novasvc.rpc import Notification, NotificationListener, Notifier
from tests.interop.peer import PATIENCE, InteropCase, Peer

CONTEXT = RequestContext(request_id="req-1", user_id="u1")
PAYLOAD = {"id": 12, "name": "é 漢字 😀", "sizes": [1.5, None, {}]}


class NotificationCase(InteropCase):
    async def we_listen(self, *priorities: str, **options: Any) -> "DeferredQueue[Notification]":
        """Start a listener of ours; return what it takes."""
        taken: DeferredQueue[Notification] = DeferredQueue()
        listener = NotificationListener(
            await self.connect(**options), taken.put, clock=reactor, topics=[self.topic], priorities=priorities
        )
        self.addCleanup(listener.close)
        await listener.start()
        return taken

    async def notifier(self, **options: Any) -> Notifier:
        """Make a notifier of ours."""
        return Notifier(await self.connect(**options), publisher_id="ours.host1", topics=[self.topic])

    async def peer_listens(self, peer: Peer, **given: Any) -> str:
        """Start a listener of the peer's to INFO and ERROR; return its name."""
        name = f"listener of {self.topic}"
        await peer.ask("listen", name=name, topic=self.topic, **given)
        return name

    async def peer_notifies(self, peer: Peer, priority: str, event_type: str, driver: str = "messagingv2") -> None:
        """Have the peer send a notification."""
        await peer.ask(
            "notify",
            topic=self.topic,
            priority=priority,
            event_type=event_type,
            payload=PAYLOAD,
            context={"request_id": "req-7", "user_id": "u7", "project_id": "p7"},
            driver=driver,
        )


class FromPeerTests(NotificationCase):
    """Their notifier, and our listener."""

    async def test_taken(self) -> None:
        """All that it says arrives, whichever priority it has."""
        taken = await self.we_listen("info", "error", "sample")
        peer = await self.peer()
        for priority in ("info", "error", "sample"):
            await self.peer_notifies(peer, priority, f"peer.{priority}")
            notification = await taken.get().addTimeout(PATIENCE, reactor)
            self.assertEqual(
                (notification.priority, notification.event_type, notification.publisher_id, notification.payload),
                (priority, f"peer.{priority}", "peer.host1", PAYLOAD),
            )
            context = notification.context
            # oslo.context says "user" where Nova's context says "user_id", too.
            self.assertEqual((context.request_id, context.project_id, context.extra["user"]), ("req-7", "p7", "u7"))
            self.assertRegex(notification.message_id, r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
            self.assertRegex(notification.timestamp, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")

    async def test_waiting(self) -> None:
        """What was told before anybody listened is taken by who listens then."""
        peer = await self.peer()
        for event_type in ("first", "second"):
            await self.peer_notifies(peer, "info", event_type)
        taken = await self.we_listen("info")
        for event_type in ("first", "second"):
            self.assertEqual((await taken.get().addTimeout(PATIENCE, reactor)).event_type, event_type)

    async def test_without_envelope(self) -> None:
        """Those of the older driver are taken as well."""
        peer = await self.peer()
        await self.peer_notifies(peer, "info", "old", driver="messaging")
        taken = await self.we_listen("info")
        notification = await taken.get().addTimeout(PATIENCE, reactor)
        self.assertEqual((notification.event_type, notification.payload), ("old", PAYLOAD))


class ToPeerTests(NotificationCase):
    """Our notifier, and their listener."""

    async def test_taken(self) -> None:
        """All that ours says arrives, whichever priority it has."""
        notifier = await self.notifier()
        name = await self.peer_listens(await self.peer())
        for priority in ("info", "error"):
            await getattr(notifier, priority)(CONTEXT, f"ours.{priority}", PAYLOAD)
            report = await self.process.report(name)
            metadata = report.pop("metadata")
            context = report.pop("context")
            self.assertEqual(
                report,
                {
                    "priority": priority,
                    "publisher_id": "ours.host1",
                    "event_type": f"ours.{priority}",
                    "payload": PAYLOAD,
                },
            )
            self.assertEqual((context["request_id"], context["user_id"]), ("req-1", "u1"))
            self.assertTrue(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", metadata["timestamp"]), metadata)
            self.assertEqual(len(metadata["message_id"]), 36)

    async def test_waiting(self) -> None:
        """What ours told before anybody listened is taken by who listens then."""
        notifier = await self.notifier()
        for event_type in ("first", "second"):
            await notifier.info(CONTEXT, event_type, None)
        name = await self.peer_listens(await self.peer())
        self.assertEqual([(await self.process.report(name))["event_type"] for _ in range(2)], ["first", "second"])

    async def test_pool(self) -> None:
        """A pool of theirs gets a copy beside our own listener."""
        notifier = await self.notifier()
        name = await self.peer_listens(await self.peer(), pool=f"pool of {self.topic}")
        taken = await self.we_listen("info")
        await notifier.info(CONTEXT, "both", None)
        self.assertEqual((await self.process.report(name))["event_type"], "both")
        self.assertEqual((await taken.get().addTimeout(PATIENCE, reactor)).event_type, "both")

    async def test_given_back(self) -> None:
        """What they give back comes to them again."""
        notifier = await self.notifier()
        name = await self.peer_listens(await self.peer(), refusals=1)
        await notifier.info(CONTEXT, "again", None)
        self.assertEqual([(await self.process.report(name))["event_type"] for _ in range(2)], ["again", "again"])


class QuorumTests(NotificationCase):
    """Both with replicated queues."""

    fleet = "quorum requests"

    async def test_both_ways(self) -> None:
        """Notifications go both ways."""
        peer = await self.peer(rabbit_quorum_queue="true")
        notifier = await self.notifier(quorum_queue=True)
        name = await self.peer_listens(peer)
        await notifier.info(CONTEXT, "to the peer", None)
        self.assertEqual((await self.process.report(name))["event_type"], "to the peer")
        taken = await self.we_listen("warn", quorum_queue=True)
        await self.peer_notifies(peer, "warn", "to us")
        self.assertEqual((await taken.get().addTimeout(PATIENCE, reactor)).event_type, "to us")
