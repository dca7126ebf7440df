"""Tests for novasvc.transport.memory, beyond the contract: time, bounds, fairness."""

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import TransportFullError, UndeliverableError
from novasvc.interfaces import Reachability
from novasvc.rpc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from novasvc.transport.memory.broker import QUARANTINE_BOUND

TARGET = Target("compute")


class MemoryTransportTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(bound=3)
        self.transport = MemoryTransport(self.broker, clock=self.clock)
        self.received: list[Any] = []

    def listen(self, target: Target = TARGET, prefetch: int = 100, receiver: Any = None) -> Any:
        return self.successResultOf(self.transport.listen(target, receiver or self.received.append, prefetch))

    def send(self, body: bytes, target: Target = TARGET, ttl: float | None = None) -> None:
        self.successResultOf(self.transport.send(target, body, ttl, False))

    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.received]

    def lose_connection(self, listener: Any) -> None:
        """Deliver what is due, lose the connection, and connect again."""
        self.clock.advance(0)
        listener.disconnect()
        listener.reconnect()

    def test_is_delivering(self) -> None:
        """The broker is delivering until the turns are over in which requests and internal messages arrive."""
        self.listen()
        self.clock.advance(0)
        for target in (TARGET, Target("compute", fanout=True, internal=True)):
            self.send(b"1", target)
            self.assertTrue(self.broker.is_delivering)
            self.clock.advance(0)
            self.assertFalse(self.broker.is_delivering)
        self.assertEqual(self.bodies(), [b"1", b"1"])

    def test_round_robin(self) -> None:
        """Listeners with room take turns."""
        others: list[Any] = []
        self.listen()
        self.listen(receiver=others.append)
        for body in (b"1", b"2", b"3"):
            self.send(body)
        self.clock.advance(0)
        self.assertEqual((self.bodies(), [d.body for d in others]), ([b"1", b"3"], [b"2"]))

    def test_lost_connections(self) -> None:
        """A message whose consumers lose their connections one after the other has been lost once; none has died."""
        listener = self.listen()
        self.send(b"1")
        for _ in range(5):
            self.lose_connection(listener)
        self.clock.advance(0)
        counts = [(delivery.deliveries, delivery.deaths) for delivery in self.received]
        self.assertEqual(counts, [(0, 0), *[(1, 0)] * 5])

    def test_lost_again(self) -> None:
        """When a server has given a message back with a count, its next loss is counted again."""
        listener = self.listen()
        self.send(b"1")
        for _ in range(2):
            self.lose_connection(listener)
        self.clock.advance(0)
        self.received[-1].requeue(2)
        self.lose_connection(listener)
        self.clock.advance(0)
        self.assertEqual([each.deliveries for each in self.received], [0, 1, 1, 2, 3])

    def test_ended_servers(self) -> None:
        """Each server that ends with a message is counted."""
        for count in range(3):
            listener = self.listen()
            if not count:
                self.send(b"1")
            self.clock.advance(0)
            self.successResultOf(listener.close())
        self.assertEqual([(each.deliveries, each.deaths) for each in self.received], [(0, 0), (1, 1), (2, 2)])

    def test_full(self) -> None:
        """A queue at its bound refuses messages until one is delivered."""
        self.listen(prefetch=1)
        for body in (b"1", b"2", b"3"):
            self.send(body)
        self.failureResultOf(self.transport.send(TARGET, b"4", None, False), TransportFullError)
        self.clock.advance(0)
        self.send(b"4")
        while len(self.received) < 4:
            self.received[-1].ack()
            self.clock.advance(0)
        self.assertEqual(self.bodies(), [b"1", b"2", b"3", b"4"])

    def test_full_of_expired(self) -> None:
        """Expired messages at a queue's head make room for new ones."""
        self.successResultOf(self.listen().close())
        for body in (b"1", b"2", b"3"):
            self.send(body, ttl=5)
        self.clock.advance(5)
        self.send(b"4")
        self.listen()
        self.clock.advance(0)
        self.assertEqual(self.bodies(), [b"4"])

    def test_full_fanout(self) -> None:
        """A fanout reaches the queues that have room, and fails because one had none."""
        stuck: list[Any] = []
        self.listen(receiver=stuck.append, prefetch=1)
        self.listen()
        everybody = Target("compute", fanout=True)
        for number in range(4):
            self.send(b"%d" % number, everybody)
            self.clock.advance(0)
        self.failureResultOf(self.transport.send(everybody, b"4", None, False), TransportFullError)
        self.clock.advance(0)
        self.assertEqual((len(stuck), len(self.received)), (1, 5))

    def test_expires_in(self) -> None:
        """expires_in decreases as time passes."""
        self.listen()
        self.send(b"1", ttl=5)
        self.clock.advance(2)
        self.assertEqual(self.received[0].expires_in, 3)
        self.clock.advance(4)
        self.assertEqual(self.received[0].expires_in, -1)

    def test_expired(self) -> None:
        """A message expires at the moment its TTL is over."""
        self.listen(prefetch=1)
        for ttl in (None, 5, 6):
            self.send(str(ttl).encode(), ttl=ttl)
        self.clock.advance(5)
        self.received[0].ack()
        self.clock.advance(0)
        self.assertEqual(self.bodies(), [b"None", b"6"])

    def test_nobody_any_more(self) -> None:
        """A mandatory message fails after the last listener was cancelled."""
        listener = self.listen()
        self.successResultOf(self.transport.send(TARGET, b"1", None, True))
        listener.cancel()
        self.failureResultOf(self.transport.send(TARGET, b"2", None, True), UndeliverableError)

    def test_nobody_for_a_fanout(self) -> None:
        """A mandatory fanout fails without listeners."""
        self.failureResultOf(self.transport.send(Target("compute", fanout=True), b"1", None, True), UndeliverableError)

    def test_fanout_queue_goes(self) -> None:
        """A closed listener's fanout queue is deleted with its messages."""
        listener = self.listen(prefetch=1)
        for body in (b"1", b"2"):
            self.send(body, Target("compute", fanout=True))
        self.clock.advance(0)
        self.successResultOf(listener.close())
        self.listen()
        self.clock.advance(0)
        self.assertEqual(self.bodies(), [b"1"])

    def test_given_back_to_full_queue(self) -> None:
        """A message that is requeued to a full queue is kept, and comes first."""
        listener = self.listen(prefetch=2)
        for body in (b"1", b"2"):
            self.send(body)
        self.clock.advance(0)
        for body in (b"3", b"4", b"5"):
            self.send(body)
        self.successResultOf(listener.close())
        self.received.clear()
        self.listen()
        self.clock.advance(0)
        self.assertEqual(self.bodies(), [b"1", b"2", b"3", b"4", b"5"])

    def test_acknowledged_late(self) -> None:
        """Acknowledging a message that its closed listener returned has no effect."""
        listener = self.listen()
        self.send(b"1")
        self.clock.advance(0)
        self.successResultOf(listener.close())
        self.received[0].ack()
        self.listen()
        self.clock.advance(0)
        self.assertEqual(self.bodies(), [b"1", b"1"])

    def test_quarantine(self) -> None:
        """Quarantined messages can be read with their reasons, within a bound."""
        self.listen()
        for number in range(QUARANTINE_BOUND + 1):
            self.send(b"%d" % number)
            self.clock.advance(0)
            self.received[-1].quarantine("it kills")
        quarantine = list(self.broker.quarantine)
        self.assertEqual((len(quarantine), quarantine[0]), (QUARANTINE_BOUND, (b"1", "it kills")))

    def test_receiver_raises(self) -> None:
        """An exception of a receiver is logged, and the next message is delivered."""

        def receive(delivery: Any) -> None:
            self.received.append(delivery)
            raise ZeroDivisionError

        self.listen(receiver=receive)
        address = self.successResultOf(self.transport.open_replies(receive))
        self.send(b"1")
        self.transport.reply(address, b"reply")
        self.send(b"2")
        self.clock.advance(0)
        self.assertEqual(len(self.received), 3)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_other_exchange(self) -> None:
        """The same topic of another exchange is another queue."""
        other = Target("compute", exchange="other")
        self.listen(other)
        self.listen()
        self.send(b"1", other)
        self.send(b"2")
        self.clock.advance(0)
        self.assertEqual(self.bodies(), [b"1", b"2"])

    def test_own_exchange(self) -> None:
        """A target without an exchange uses the transport's own."""
        neutron = MemoryTransport(self.broker, clock=self.clock, exchange="neutron")
        self.listen(Target("compute", exchange="neutron"))
        self.failureResultOf(self.transport.send(TARGET, b"1", None, True), UndeliverableError)
        self.successResultOf(neutron.send(TARGET, b"2", None, True))

    def test_other_clock(self) -> None:
        """The transports of one broker have to share a clock."""
        self.assertRaises(ValueError, MemoryTransport, self.broker, clock=Clock())

    def test_name_taken(self) -> None:
        """A listener whose queue lost its name consumes from the new queue as well, and loses no message."""
        target = Target("compute", "h1")
        listener = self.listen(target)
        del self.broker._queues["nova", "compute", "h1"]
        others: list[Any] = []
        self.listen(target, receiver=others.append)
        verifying = listener.verify(lambda *_: b"", 5.0)
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(verifying).repaired, ("the queue compute.h1",))
        for body in (b"1", b"2"):
            self.send(body, target)
        self.clock.advance(0)
        self.assertEqual((len(self.bodies()), len(others)), (1, 1))
        self.successResultOf(listener.close())

    def test_verified_while_full(self) -> None:
        """A listener with a full queue counts as reachable: its messages are to be processed."""
        target = Target("compute", "h1")
        listener = self.listen(target, prefetch=1)
        for _ in range(4):
            self.send(b"x", target)
            self.clock.advance(0)
        self.assertEqual(self.successResultOf(listener.verify(lambda *_: b"", 5.0)), Reachability())

    def test_not_arrived(self) -> None:
        """A probe that does not arrive is the problem, and the verification ends in time."""
        listener = self.listen(Target("compute", "h1"))
        verifying = listener.verify(lambda *_: b"", 5.0)
        self.broker._scheduled.clear()  # so that no turn delivers the probe
        self.clock.advance(5)
        expected = Reachability("a message to compute.h1 did not arrive within 5 s")
        self.assertEqual(self.successResultOf(verifying), expected)


class TurnTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = MemoryTransport(MemoryBroker(), clock=self.clock)

    def listen(self, topic: str, receiver: Any) -> None:
        self.successResultOf(self.transport.listen(Target(topic), receiver, 10_000))

    def turn(self) -> None:
        """Run the calls that are due now, not those they schedule: one turn of a reactor."""
        for call in [call for call in self.clock.getDelayedCalls() if call.getTime() <= self.clock.seconds()]:
            self.clock.calls.remove(call)
            call.func(*call.args, **call.kw)

    def test_bounded_turn(self) -> None:
        """A turn of the reactor delivers a bounded number of messages, and the next one continues."""
        received: list[Any] = []
        self.listen("busy", received.append)
        for _ in range(1000):
            self.transport.send(Target("busy"), b"", None, False)
        self.turn()
        first = len(received)
        self.assertTrue(0 < first < 1000, first)
        self.clock.advance(0)
        self.assertEqual(len(received), 1000)

    def test_endless(self) -> None:
        """A receiver that keeps sending does not block the reactor."""
        received: list[Any] = []

        def receive(delivery: Any) -> None:
            received.append(delivery)
            delivery.ack()
            self.transport.send(Target("echo"), b"", None, False)

        self.listen("echo", receive)
        self.transport.send(Target("echo"), b"", None, False)
        self.turn()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertTrue(0 < len(received) < 1000, len(received))

    def test_fair(self) -> None:
        """A busy queue does not starve the others."""
        received: list[str] = []
        self.listen("busy", lambda delivery: received.append("busy"))
        self.listen("quiet", lambda delivery: received.append("quiet"))
        for _ in range(1000):
            self.transport.send(Target("busy"), b"", None, False)
        self.transport.send(Target("quiet"), b"", None, False)
        self.turn()
        self.assertIn("quiet", received)

    def test_idle(self) -> None:
        """An idle transport has no timer."""
        self.listen("idle", lambda delivery: None)
        self.transport.send(Target("idle"), b"", None, False)
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
