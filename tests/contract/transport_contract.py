"""What every ITransport does, whatever carries its messages."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from novasvc.errors import TransportClosedError, UndeliverableError
from novasvc.interfaces import IDelivery, IListener, ITransport, Reachability
from novasvc.rpc.target import Target

Connect = Callable[[], Awaitable[Any]]
"""Returns one more open transport to the same broker, and sees to its closing."""

Lose = Callable[[Target], Awaitable[None]]
"""Has the broker lose the way to a target of the control exchange "nova", and leave the queue there."""

Fixture = Callable[[TestCase], Awaitable[tuple[Connect, Lose]]]
"""Takes the running test."""

PATIENCE = 30.0
"""Seconds after which what was to come is missing."""


def make_transport_tests(fixture: Fixture) -> type[TestCase]:  # noqa: C901 - a suite, not a function
    """Make the tests of a provider of ITransport.

    :param fixture: see Fixture.
    :return: a TestCase, to be subclassed under a name that says whose it is.
    """

    class TransportTests(TestCase):
        connect: Connect
        lose: Lose
        transport: Any
        target: Target

        async def setUp(self) -> None:
            self.connect, self.lose = await fixture(self)
            self.transport = await self.connect()
            self.target = Target(f"topic-{uuid4().hex}")

        async def listen(self, target: Target | None = None, prefetch: int = 10) -> tuple[Any, "DeferredQueue[Any]"]:
            """Listen on a connection of its own; return the listener and what it receives."""
            transport = await self.connect()
            inbox: DeferredQueue[Any] = DeferredQueue()
            return await transport.listen(target or self.target, inbox.put, prefetch), inbox

        def next(self, inbox: "DeferredQueue[Any]") -> Deferred[Any]:
            return inbox.get().addTimeout(PATIENCE, reactor)

        def send(self, body: bytes, target: Target | None = None, **given: Any) -> Deferred[None]:
            ttl, mandatory = given.get("ttl"), given.get("mandatory", False)
            return self.transport.send(target or self.target, body, ttl, mandatory)

        def on(self, server: str) -> Target:
            return Target(self.target.topic, server)

        @property
        def everybody(self) -> Target:
            return Target(self.target.topic, fanout=True)

        async def test_interfaces(self) -> None:
            """A transport, its listeners and its deliveries provide the interfaces."""
            listener, inbox = await self.listen()
            await self.send(b"1")
            delivery = await self.next(inbox)
            self.assertTrue(verifyObject(ITransport, self.transport))
            self.assertTrue(verifyObject(IListener, listener))
            self.assertTrue(verifyObject(IDelivery, delivery))

        async def test_problem(self) -> None:
            """Nothing keeps messages from moving as long as it is open, whether somebody listens or not."""
            self.assertIsNone(self.transport.problem())
            await self.transport.listen(self.target, lambda _: None, 1)
            self.assertIsNone(self.transport.problem())
            await self.transport.close()
            self.assertIsNotNone(self.transport.problem())

        async def test_order(self) -> None:
            """Messages arrive as they were sent, in the order they were sent."""
            _, inbox = await self.listen()
            bodies = [b"", b"\x00\xff", b"x" * 400_000]
            for body in bodies:
                await self.send(body)
            self.assertEqual([(await self.next(inbox)).body for _ in bodies], bodies)

        async def test_later(self) -> None:
            """A message is never delivered from within the call that sends it."""
            received: list[str] = []
            arrived: Deferred[None] = Deferred()

            def receive(delivery: Any) -> None:
                received.append("received")
                arrived.callback(None)

            await self.transport.listen(self.target, receive, 1)
            sent = self.send(b"1")
            received.append("sent")
            await sent
            await arrived.addTimeout(PATIENCE, reactor)
            self.assertEqual(received, ["sent", "received"])

        async def test_shared(self) -> None:
            """The listeners of a topic share its messages."""
            inboxes = [(await self.listen(prefetch=1))[1] for _ in range(2)]
            for body in (b"1", b"2"):
                await self.send(body)
            self.assertEqual({(await self.next(inbox)).body for inbox in inboxes}, {b"1", b"2"})

        async def test_server(self) -> None:
            """A message to a server reaches it and no other one of its topic."""
            _, one = await self.listen(self.on("one"))
            _, other = await self.listen(self.on("other"))
            await self.send(b"to one", self.on("one"))
            await self.send(b"to other", self.on("other"))
            self.assertEqual((await self.next(one)).body, b"to one")
            self.assertEqual((await self.next(other)).body, b"to other")

        async def test_topic_of_a_server(self) -> None:
            """A listener with a server's name receives what is sent to its topic, too."""
            _, inbox = await self.listen(self.on("one"))
            await self.send(b"1")
            self.assertEqual((await self.next(inbox)).body, b"1")

        async def test_fanout(self) -> None:
            """A fanout reaches every listener of its topic."""
            inboxes = [(await self.listen(self.on(server)))[1] for server in ("one", "other")]
            await self.send(b"1", self.everybody)
            self.assertEqual([(await self.next(inbox)).body for inbox in inboxes], [b"1", b"1"])

        async def test_internal(self) -> None:
            """An internal message reaches every listener of its topic, and one that has no room as well."""
            for server in ("one", "other"):
                _, inbox = await self.listen(self.on(server), prefetch=1)
                await self.send(b"held", self.on(server))
                self.assertEqual((await self.next(inbox)).body, b"held")
                await self.send(b"to all", Target(self.target.topic, fanout=True, internal=True))
                delivery = await self.next(inbox)
                self.assertEqual((delivery.body, delivery.sent_to), (b"to all", "fanout"))
                await self.send(b"to one", Target(self.target.topic, server, fanout=True, internal=True))
                delivery.ack()
                self.assertEqual((await self.next(inbox)).body, b"to one")

        async def test_internal_nobody(self) -> None:
            """An internal message that nobody receives is no error."""
            await self.send(b"1", Target(self.target.topic, fanout=True, internal=True))
            await self.send(b"1", Target(self.target.topic, "one", fanout=True, internal=True))

        async def test_prefetch(self) -> None:
            """A listener gets no more than its prefetch; the next one gets what is over."""
            _, full = await self.listen(prefetch=2)
            for body in (b"1", b"2", b"3"):
                await self.send(body)
            self.assertEqual([(await self.next(full)).body for _ in range(2)], [b"1", b"2"])
            _, other = await self.listen()
            self.assertEqual((await self.next(other)).body, b"3")

        async def test_acknowledged(self) -> None:
            """An acknowledgement makes room for the next message."""
            _, inbox = await self.listen(prefetch=1)
            for body in (b"1", b"2"):
                await self.send(body)
            (await self.next(inbox)).ack()
            self.assertEqual((await self.next(inbox)).body, b"2")

        async def test_unsettled(self) -> None:
            """What a listener leaves unsettled goes to another one, which is told that it was delivered before."""
            listener, inbox = await self.listen()
            for body in (b"1", b"2", b"3"):
                await self.send(body)
            deliveries = [await self.next(inbox) for _ in range(3)]
            self.assertEqual([(d.deliveries, d.counts_death) for d in deliveries], [(0, True)] * 3)
            deliveries[1].ack()
            await listener.close()
            _, other = await self.listen()
            again = [await self.next(other) for _ in range(2)]
            self.assertEqual([(d.body, d.deliveries) for d in again], [(b"1", 1), (b"3", 1)])

        async def test_requeued(self) -> None:
            """A message that is given back comes again, with the count that it was given back with."""
            _, inbox = await self.listen(prefetch=1)
            await self.send(b"1", ttl=30.0)
            for deliveries in (0, 2, 1):
                (await self.next(inbox)).requeue(deliveries)
                again = await self.next(inbox)
                self.assertEqual((again.body, again.deliveries), (b"1", deliveries))
                self.assertLessEqual(again.expires_in, 30.0)
                again.requeue(0)

        async def test_requeued_elsewhere(self) -> None:
            """What is given back while a listener ends goes to another one, as new, and is there once."""
            listener, inbox = await self.listen()
            await self.send(b"1")
            delivery = await self.next(inbox)
            await listener.cancel()
            delivery.requeue(0)
            await listener.close()
            _, other = await self.listen()
            again = await self.next(other)
            self.assertEqual((again.body, again.deliveries, again.counts_death), (b"1", 0, True))
            again.ack()
            await self.send(b"2")
            self.assertEqual((await self.next(other)).body, b"2")

        async def test_rejected(self) -> None:
            """A message that is rejected does not come again."""
            listener, inbox = await self.listen(prefetch=1)
            await self.send(b"1")
            await self.send(b"2")
            (await self.next(inbox)).reject()
            self.assertEqual((await self.next(inbox)).body, b"2")
            await listener.close()

        async def test_quarantined(self) -> None:
            """A quarantined message is not delivered again."""
            listener, inbox = await self.listen(prefetch=1)
            await self.send(b"1")
            (await self.next(inbox)).quarantine("it took the process down")
            await self.send(b"2")
            self.assertEqual((await self.next(inbox)).body, b"2")
            await listener.close()
            _, other = await self.listen()
            self.assertEqual((await self.next(other)).body, b"2")

        async def test_answered_twice(self) -> None:
            """Only the first answer to a delivery counts."""
            _, inbox = await self.listen(prefetch=1)
            await self.send(b"1")
            delivery = await self.next(inbox)
            delivery.ack()
            delivery.requeue(0)
            delivery.quarantine("no")
            delivery.reject()
            delivery.ack()
            await self.send(b"2")
            self.assertEqual((await self.next(inbox)).body, b"2")

        async def test_cancelled(self) -> None:
            """A cancelled listener gets nothing more, and may acknowledge what it has."""
            listener, inbox = await self.listen()
            await self.send(b"1")
            delivery = await self.next(inbox)
            self.assertTrue(listener.live)
            await listener.cancel()
            self.assertFalse(listener.live)
            delivery.ack()
            await self.send(b"2")
            _, other = await self.listen()
            self.assertEqual((await self.next(other)).body, b"2")
            await listener.close()
            await self.send(b"3")
            self.assertEqual((await self.next(other)).body, b"3")
            self.assertEqual(inbox.pending, [])

        async def test_sent_to(self) -> None:
            """A delivery says what its sender addressed."""
            _, inbox = await self.listen(self.on("one"))
            for target in (self.target, self.on("one"), self.everybody):
                await self.send(b"1", target)
            said = [(await self.next(inbox)).sent_to for _ in range(3)]
            self.assertEqual(sorted(said), ["fanout", "server", "topic"])

        async def test_narrowed(self) -> None:
            """After cancel_topic a listener receives messages to its server, but none to the topic and no fanout."""
            listener, inbox = await self.listen(self.on("one"), prefetch=1)
            await self.send(b"before")
            before = await self.next(inbox)
            await listener.cancel_topic(10)
            before.ack()
            _, other = await self.listen(self.on("other"))
            await self.send(b"to the topic")
            await self.send(b"to all", self.everybody)
            for body in (b"1", b"2"):  # the prefetch is the new one
                await self.send(body, self.on("one"))
            self.assertEqual([(await self.next(inbox)).body for _ in range(2)], [b"1", b"2"])
            self.assertEqual({(await self.next(other)).body for _ in range(2)}, {b"to the topic", b"to all"})
            await listener.cancel()
            await self.send(b"3", self.on("one"))
            await listener.close()
            _, successor = await self.listen(self.on("one"))
            self.assertEqual({(await self.next(successor)).body for _ in range(3)}, {b"1", b"2", b"3"})
            self.assertEqual(inbox.pending, [])

        async def test_narrowed_and_given_back(self) -> None:
            """A topic message that is requeued after cancel_topic goes to another listener."""
            listener, inbox = await self.listen(self.on("one"))
            await self.send(b"1")
            delivery = await self.next(inbox)
            await listener.cancel_topic(10)
            delivery.requeue(0)
            _, other = await self.listen(self.on("other"))
            self.assertEqual((await self.next(other)).body, b"1")
            self.assertEqual(inbox.pending, [])

        async def test_narrowed_without_a_server(self) -> None:
            """A listener without a server receives nothing after cancel_topic."""
            listener, inbox = await self.listen()
            await listener.cancel_topic(10)
            await self.send(b"1")
            _, other = await self.listen()
            self.assertEqual((await self.next(other)).body, b"1")
            self.assertEqual(inbox.pending, [])

        async def test_reply_in_time(self) -> None:
            """A reply that can be sent is sent, even if its timeout is 0."""
            inbox: DeferredQueue[bytes] = DeferredQueue()
            address = await self.transport.open_replies(inbox.put)
            await (await self.connect()).reply(address, b"1", 0.0)
            self.assertEqual(await self.next(inbox), b"1")

        async def test_closed_twice(self) -> None:
            """A listener can be cancelled and closed again."""
            listener, _ = await self.listen()
            await listener.close()
            await listener.cancel()
            await listener.close()

        async def test_waiting(self) -> None:
            """A message to a topic that had a listener waits for the next one."""
            listener, _ = await self.listen()
            await listener.close()
            await self.send(b"1")
            _, inbox = await self.listen()
            self.assertEqual((await self.next(inbox)).body, b"1")

        async def test_nobody(self) -> None:
            """A message that must find somebody fails at once if there never was anybody."""
            await self.listen(self.on("one"))
            for target in (Target(uuid4().hex), self.on("nobody"), Target(self.target.topic, exchange=uuid4().hex)):
                error = await self.assertFailure(self.send(b"1", target, mandatory=True), UndeliverableError)
                assert isinstance(error, UndeliverableError)
                self.assertEqual(error.target, str(target))
            await self.send(b"1", self.on("one"), mandatory=True)

        async def test_sent_again(self) -> None:
            """A message that is sent twice comes twice, as new each time: only the server knows it again, by its id."""
            _, inbox = await self.listen()
            for _ in range(2):
                await self.send(b"1", mandatory=True)
            both = [await self.next(inbox) for _ in range(2)]
            self.assertEqual([(one.body, one.deliveries) for one in both], [(b"1", 0)] * 2)

        async def test_nobody_wanted(self) -> None:
            """A message or a fanout that need not find anybody is no error without."""
            await self.send(b"1")
            await self.send(b"1", self.everybody)

        async def test_ttl(self) -> None:
            """A delivery says how long its sender still waits, or that nobody said."""
            _, inbox = await self.listen()
            await self.send(b"1", ttl=30.0)
            await self.send(b"2")
            expires_in = (await self.next(inbox)).expires_in
            self.assertTrue(0 < expires_in <= 30.0, expires_in)
            self.assertIsNone((await self.next(inbox)).expires_in)

        async def test_waited(self) -> None:
            """What a message has waited for its receiver to have room, its sender does not wait any more."""
            _, inbox = await self.listen(prefetch=1)
            await self.send(b"1")
            await self.send(b"2", ttl=30.0)
            before = await self.next(inbox)
            await deferLater(reactor, 1.0)
            before.ack()
            self.assertLess((await self.next(inbox)).expires_in, 29.1)

        async def test_expired(self) -> None:
            """A message that nobody took in its time is not delivered."""
            listener, _ = await self.listen()
            await listener.close()
            await self.send(b"late", ttl=0.02)
            await self.send(b"lasting")
            await deferLater(reactor, 0.1)
            _, inbox = await self.listen()
            self.assertEqual((await self.next(inbox)).body, b"lasting")

        async def test_post(self) -> None:
            """What is posted to a queue waits there for who consumes from it, and comes to that one alone."""
            queue = f"{self.target.topic}.info"
            for body in (b"1", b"2"):
                await self.transport.post(queue, body)
            transport = await self.connect()
            inbox: DeferredQueue[Any] = DeferredQueue()
            listener = await transport.consume(queue, inbox.put, 10)
            self.assertTrue(verifyObject(IListener, listener))
            for body in (b"1", b"2"):
                delivery = await self.next(inbox)
                self.assertEqual(delivery.body, body)
                delivery.ack()
            await self.send(b"to all", Target(queue, fanout=True))
            await self.transport.post(queue, b"3")
            self.assertEqual((await self.next(inbox)).body, b"3")
            await listener.close()
            await (await self.connect()).consume(queue, inbox.put, 10)
            self.assertEqual((await self.next(inbox)).body, b"3")

        async def test_published(self) -> None:
            """Each queue that is subscribed to a key gets a copy of what is published to it; its listeners share it."""
            key, name = f"{self.target.topic}.info", self.target.topic
            inboxes: dict[str, DeferredQueue[Any]] = {"one": DeferredQueue(), "other": DeferredQueue()}
            for queue in ("one", "other", "other"):
                transport = await self.connect()
                listener = await transport.subscribe(f"{name}_{queue}", [key, f"{key}2"], inboxes[queue].put, 1)
                self.assertTrue(verifyObject(IListener, listener))
            for to, body in ((key, b"1"), (f"{key}2", b"2")):
                await self.transport.publish(to, body)
            for inbox in inboxes.values():
                deliveries = [await self.next(inbox)]
                deliveries[0].ack()
                deliveries.append(await self.next(inbox))
                self.assertEqual({delivery.body for delivery in deliveries}, {b"1", b"2"})

        async def test_published_before(self) -> None:
            """What is published while no listener of a subscribed queue is there waits for the next one."""
            key, queue = f"{self.target.topic}.info", f"{self.target.topic}_events"
            transport, inbox = await self.connect(), DeferredQueue()
            listener = await transport.subscribe(queue, [key], inbox.put, 1)
            await listener.close()
            await self.transport.publish(key, b"1")
            await transport.subscribe(queue, [key], inbox.put, 1)
            self.assertEqual((await self.next(inbox)).body, b"1")

        async def test_published_for_nobody(self) -> None:
            """What is published to a key without a subscription is refused."""
            key = f"{self.target.topic}.info"
            await self.assertFailure(self.transport.publish(key, b"1"), UndeliverableError)
            # A queue of the key's name is one.
            await self.transport.post(key, b"2")
            await self.transport.publish(key, b"3")

        async def test_posted_to_subscribers(self) -> None:
            """What is posted to a key goes to its subscribers, and to the queue of its name if there is one."""
            key, queue = f"{self.target.topic}.info", f"{self.target.topic}_events"
            inbox: DeferredQueue[Any] = DeferredQueue()
            await (await self.connect()).subscribe(queue, [key], inbox.put, 1)
            await self.transport.post(key, b"1")
            self.assertEqual((await self.next(inbox)).body, b"1")

        async def verify(self, listener: Any, patience: float = PATIENCE) -> Reachability:
            """Have a listener verify with calls; see WriteProbe."""
            found = await listener.verify(lambda token, address: f"{token} {address}".encode(), patience)
            assert isinstance(found, Reachability)
            return found

        async def test_verified(self) -> None:
            """A listener proves, again and again, that it is reached; its receiver gets nothing of that."""
            listener, inbox = await self.listen(self.on("one"))
            for _ in range(4):
                self.assertEqual(await self.verify(listener), Reachability())
            await self.send(b"1", self.on("one"))
            self.assertEqual((await self.next(inbox)).body, b"1")
            self.assertEqual(inbox.pending, [])

        async def test_verified_with_siblings(self) -> None:
            """Listeners that share a server's name prove each for itself that it is reached."""
            listeners = [await self.listen(self.on("one")) for _ in range(3)]
            for _ in range(3):
                for listener, _inbox in listeners:
                    self.assertEqual(await self.verify(listener), Reachability())
            self.assertEqual([inbox.pending for _, inbox in listeners], [[], [], []])

        async def test_verified_among_others(self) -> None:
            """Listeners of a topic that have other names get nothing of it."""
            listener, _ = await self.listen(self.on("one"))
            _, other = await self.listen(self.on("other"))
            for _ in range(4):
                self.assertEqual(await self.verify(listener), Reachability())
            self.assertEqual(other.pending, [])

        async def test_lost_way(self) -> None:
            """A way that the broker has lost is found, said, and made again: to the server, and to the topic."""
            listener, inbox = await self.listen(self.on("one"))
            for lost in (self.on("one"), self.target):
                await self.lose(lost)
                await self.assertFailure(self.send(b"1", lost, mandatory=True), UndeliverableError)
                found = [await self.verify(listener) for _ in range(2)]
                self.assertEqual([each.problem for each in found], [None, None])
                (repaired,) = found[0].repaired + found[1].repaired
                self.assertIn(f"{lost.topic}.one" if lost.server else lost.topic, repaired)
                await self.send(b"2", lost, mandatory=True)
                self.assertEqual((await self.next(inbox)).body, b"2")
            self.assertEqual(await self.verify(listener), Reachability())

        async def test_verified_when_full(self) -> None:
            """A listener that has as much as it may take in is reached, as far as can be told."""
            listener, inbox = await self.listen(self.on("one"), prefetch=1)
            await self.send(b"1", self.on("one"))
            delivery = await self.next(inbox)
            self.assertEqual(await self.verify(listener, 1.0), Reachability())
            delivery.ack()
            self.assertEqual(await self.verify(listener), Reachability())

        async def test_verified_when_cancelled(self) -> None:
            """A listener that was cancelled is not reached."""
            listener, _ = await self.listen(self.on("one"))
            await listener.cancel()
            self.assertIsNotNone((await self.verify(listener, 0.5)).problem)

        async def test_replies(self) -> None:
            """A reply reaches the address that it is sent to, from wherever it is sent."""
            inboxes: list[DeferredQueue[bytes]] = [DeferredQueue(), DeferredQueue()]
            addresses = [await self.transport.open_replies(inbox.put) for inbox in inboxes]
            other = await self.connect()
            for address in addresses:
                await other.reply(address, address.encode())
            for address, inbox in zip(addresses, inboxes, strict=True):
                self.assertEqual(await self.next(inbox), address.encode())

        async def test_caller_gone(self) -> None:
            """A reply to an address that is gone, or never was, is no error."""
            gone = await self.connect()
            address = await gone.open_replies(lambda body: None)
            await gone.close()
            await self.transport.reply(address, b"1")
            await self.transport.reply(f"reply_{uuid4().hex}", b"1")

        async def test_closed(self) -> None:
            """A closed transport does nothing more and says so; closing it again is no error."""
            await self.transport.close()
            await self.transport.close()
            for refused in (
                self.send(b"1"),
                self.transport.listen(self.target, lambda delivery: None, 1),
                self.transport.consume(self.target.topic, lambda delivery: None, 1),
                self.transport.post(self.target.topic, b"1"),
                self.transport.publish(self.target.topic, b"1"),
                self.transport.subscribe(self.target.topic, ["key"], lambda delivery: None, 1),
                self.transport.open_replies(lambda body: None),
                self.transport.reply("reply_x", b"1"),
            ):
                await self.assertFailure(refused, TransportClosedError)

        async def test_closed_with_deliveries(self) -> None:
            """What a closed transport's listeners had not acknowledged goes to others."""
            transport = await self.connect()
            inbox: DeferredQueue[Any] = DeferredQueue()
            await transport.listen(self.target, inbox.put, 1)
            await self.send(b"1")
            await self.next(inbox)
            await transport.close()
            _, other = await self.listen()
            again = await self.next(other)
            self.assertEqual((again.body, again.deliveries), (b"1", 1))

        async def test_close_replies(self) -> None:
            """Replies to an address that was given up reach nobody, and other addresses go on."""
            transport = await self.connect()
            inbox: DeferredQueue[Any] = DeferredQueue()
            gone, there = [await transport.open_replies(inbox.put) for _ in range(2)]
            await transport.close_replies(gone)
            await transport.close_replies(gone)
            await self.transport.reply(gone, b"1")
            await self.transport.reply(there, b"2")
            self.assertEqual(await self.next(inbox), b"2")

    return TransportTests
