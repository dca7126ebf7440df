"""Tests for novasvc.transport.amqp.connection."""

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import DNSLookupError

from novasvc.errors import BrokerError, BrokerRefusedError, BrokerUnavailableError, TransportClosedError
from novasvc.transport.amqp import BrokerAddress, BrokerOptions
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.connection import Connection
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.reconnect import quick_backoff, slow_backoff
from tests.support.amqp_rig import URL, AMQPCase
from tests.support.flight_rig import record_flight, said

SHOWN = "amqp://nova:***@one:5672/cell"


class User:
    """A connection handler that records its calls."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.preparing: Callable[[], Awaitable[None]] = lambda: succeed(None)

    async def prepare(self, protocol: AMQPProtocol) -> None:
        self.heard.append("prepare")
        await self.preparing()

    def ready(self) -> None:
        self.heard.append("ready")

    def lost(self, reason: AMQPClosedError) -> None:
        self.heard.append("lost")


class ConnectionCase(AMQPCase):
    """A connection to two hosts, with a backoff of 1 s a round, or 10 s after a refusal."""

    url = URL
    heartbeat = 0.0

    def setUp(self) -> None:
        super().setUp()
        self.user = User()
        self.rounds: list[tuple[str, int]] = []
        self.connection = Connection(
            "publishing",
            BrokerAddress.parse(self.url),
            BrokerOptions(heartbeat=self.heartbeat, connect_timeout=10, operation_timeout=15),
            self.reactor,
            self.user,
            client_name="nova-compute (publishing)",
            retry=lambda rounds: self.rounds.append(("away", rounds)) or 1.0,
            retry_refused=lambda rounds: self.rounds.append(("refused", rounds)) or 10.0,
        )
        self.addCleanup(self.nothing_is_left)

    def nothing_is_left(self) -> None:
        """Close the connection in any state, and check that no timer and no socket is left."""
        closing = self.started(self.connection.close())
        self.wait(10, step=1)
        self.successResultOf(closing)
        self.assertEqual(self.connection.state, "closed")
        self.assert_idle()
        self.assertEqual([link for link in self.broker.links if not link.gone], [])

    def opened(self) -> None:
        opening = self.started(self.connection.open())
        self.wait(1, step=0.1)  # an endpoint needs a moment to find that a name has no other address
        self.successResultOf(opening)
        self.assertEqual(self.connection.state, "ready")

    def warnings(self, word: str) -> list[str]:
        return [line for line in self.log if word in line]


class OpenTests(ConnectionCase):
    """Tests for the first open."""

    def test_ready(self) -> None:
        """The connection is ready when its handler is prepared, and the broker knows its name."""
        self.opened()
        self.assertEqual(self.user.heard, ["prepare", "ready"])
        self.assertEqual(self.broker.links[0].name, "nova-compute (publishing)")
        self.assertEqual((self.connection.reconnects, self.connection.last_error), (0, None))
        self.assertEqual(self.log, [])

    def test_next_host(self) -> None:
        """Hosts that do not answer are skipped without a pause, in order."""
        self.broker.refusing.add(5672)
        self.opened()
        self.assertEqual(self.reactor.ports, [5672, 5673])

    def test_no_host(self) -> None:
        """After one attempt for each host, open fails with the last one's reason and the connection is closed."""
        self.broker.refusing |= {5672, 5673}
        opening = self.started(self.connection.open())
        self.wait(1, step=0.1)
        error = self.failed(opening, BrokerUnavailableError)
        self.assertEqual(error.broker, "amqp://nova:***@two:5673/cell")
        self.assertIn("refused", error.problem)
        self.assertEqual((self.connection.state, self.reactor.ports), ("closed", [5672, 5673]))
        self.assert_idle()

    def test_connect_timeout(self) -> None:
        """A host that does not answer costs no more than the connect timeout, and its attempt is cancelled."""
        self.broker.deaf |= {5672, 5673}
        opening = self.started(self.connection.open())
        self.reactor.advance(9.9)
        self.assertEqual(self.reactor.ports, [5672])
        self.reactor.advance(0.1)
        self.assertEqual(self.reactor.ports, [5672, 5673])
        self.reactor.advance(10)
        error = self.failed(opening, BrokerUnavailableError)
        self.assertEqual(error.problem, "connecting took longer than 10 s")
        self.assertTrue(all(connector.stoppedConnecting for connector in self.reactor.connectors))
        self.assert_idle()

    def test_handshake_timeout(self) -> None:
        """A host that is silent after the TCP handshake costs no more than the timeout, and its socket is closed."""
        self.broker.unanswered.add("connection.open")
        opening = self.started(self.connection.open())
        self.assertEqual(self.connection.state, "handshaking")
        self.wait(20)
        error = self.failed(opening, BrokerUnavailableError)
        self.assertEqual(error.problem, "the handshake took longer than 10 s")
        self.assertEqual([link.gone for link in self.broker.links], [True, True])
        self.assert_idle()

    def test_silent_port(self) -> None:
        """A port that sends nothing is given up after the timeout."""
        self.broker.unanswered.add("protocol header")
        opening = self.started(self.connection.open())
        self.wait(20)
        self.assertIn("the handshake took longer", self.failed(opening, BrokerUnavailableError).problem)

    def test_wrong_password(self) -> None:
        """A refused login names the user and not the password."""
        self.broker.closing["connection.start-ok"] = (403, "ACCESS_REFUSED - Login was refused")
        error = self.failed(self.connection.open(), BrokerRefusedError)
        self.assertIn("login refused for user 'nova': 403 ACCESS_REFUSED", error.problem)
        self.assertNotIn("secret", str(error))

    def test_wrong_vhost(self) -> None:
        """A refused virtual host is named."""
        self.broker.closing["connection.open"] = (530, "NOT_ALLOWED - vhost /cell not found")
        error = self.failed(self.connection.open(), BrokerRefusedError)
        self.assertIn("access to virtual host 'cell' refused: 530", error.problem)

    def test_hung_up(self) -> None:
        """A host that closes the socket during the handshake is reported as such."""
        self.broker.unanswered.add("connection.start-ok")
        opening = self.started(self.connection.open())
        for _ in range(2):
            self.broker.links[-1].lose()
            self.settle()
        self.assertIn("lost", self.failed(opening, BrokerUnavailableError).problem)

    def test_no_name(self) -> None:
        """A host name that does not resolve is named."""

        def no_address(receiver: Any, name: str, **more: Any) -> None:
            receiver.resolutionBegan(None)
            receiver.resolutionComplete()

        self.reactor.nameResolver.resolveHostName = no_address  # type: ignore[method-assign, assignment]
        error = self.failed(self.connection.open(), BrokerUnavailableError)
        self.assertIn("two", error.problem)
        self.assertEqual(self.flushLoggedErrors(DNSLookupError), [])

    def test_user_not_prepared(self) -> None:
        """open fails with the handler's error from prepare."""
        problem = BrokerError("broker", "no exchange")

        async def refuse() -> None:
            raise problem

        self.user.preparing = refuse
        self.assertIs(self.failed(self.connection.open(), BrokerError), problem)

    def test_lost_while_preparing(self) -> None:
        """A connection that is lost during prepare counts as a failed attempt."""
        waiting: Deferred[None] = Deferred()

        async def ask() -> None:
            await waiting

        self.user.preparing = ask
        opening = self.started(self.connection.open())
        self.assertEqual(self.connection.state, "preparing")
        self.broker.links[0].lose()
        waiting.errback(AMQPClosedError("the connection is lost"))
        self.user.preparing = lambda: succeed(None)
        self.done(opening)
        self.assertEqual(self.reactor.ports, [5672, 5673])
        self.assertEqual(self.user.heard, ["prepare", "lost", "prepare", "ready"])

    def test_lost_while_preparing_elsewhere(self) -> None:
        """The same holds if prepare waits for something else, and so does not notice."""
        waiting: Deferred[None] = Deferred()
        self.user.preparing = lambda: waiting
        opening = self.started(self.connection.open())
        self.broker.links[0].lose()
        self.user.preparing = lambda: succeed(None)
        waiting.callback(None)
        self.done(opening)
        self.assertEqual((self.connection.state, self.reactor.ports), ("ready", [5672, 5673]))
        self.assertEqual(self.user.heard, ["prepare", "lost", "prepare", "ready"])

    def test_bug_in_the_user(self) -> None:
        """An unexpected exception is logged with its traceback, and counts as a failed attempt."""

        async def fall() -> None:
            raise ZeroDivisionError("a bug")

        self.user.preparing = fall
        error = self.failed(self.connection.open(), BrokerUnavailableError)
        self.assertEqual(error.problem, "a bug")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_cancelled(self) -> None:
        """Cancelling the open closes the connection."""
        self.broker.deaf.add(5672)
        opening = self.started(self.connection.open())
        opening.cancel()
        self.failed(opening, TransportClosedError)
        self.assertEqual(self.connection.state, "closed")
        self.assert_idle()


class ReconnectTests(ConnectionCase):
    """Tests for reconnecting after a loss."""

    def setUp(self) -> None:
        super().setUp()
        self.opened()

    def test_again(self) -> None:
        """A lost connection is restored after a pause; the loss and the recovery are logged once each."""
        self.broker.links[0].lose()
        self.assertEqual((self.connection.state, self.connection.protocol), ("waiting", None))
        self.assertIn(SHOWN, str(self.connection.last_error))
        self.wait(1)
        self.assertEqual(self.connection.state, "ready")
        self.assertEqual(self.user.heard, ["prepare", "ready", "lost", "prepare", "ready"])
        self.assertEqual((self.connection.reconnects, self.connection.last_error), (1, None))
        self.assertEqual(len(self.warnings("is down; reconnecting")), 1)
        self.assertEqual(len(self.warnings("was restored")), 1)

    def test_rounds(self) -> None:
        """The hosts of a round follow without a pause, the rounds with a backoff; each reason is logged once."""
        self.broker.refusing |= {5672, 5673}
        del self.reactor.ports[:]
        self.broker.links[0].lose()
        self.wait(5.5, step=0.1)
        self.assertEqual(self.reactor.ports, [5672, 5673] * 3)
        self.assertEqual(self.rounds, [("away", 1), ("away", 1), ("away", 2), ("away", 3)])
        self.assertEqual(len(self.warnings("reconnecting")), 3)  # lost, and each host's refusal
        self.broker.refusing.clear()
        self.wait(2)
        self.broker.links[-1].lose()
        self.assertEqual(len(self.warnings("reconnecting")), 4)

    def test_refused(self) -> None:
        """A broker that begins to refuse us is retried with the slow backoff."""
        self.broker.closing["connection.start-ok"] = (403, "ACCESS_REFUSED")
        self.broker.links[0].lose()
        self.wait(1)
        self.assertEqual(self.rounds, [("away", 1), ("refused", 1)])
        self.assertIsInstance(self.connection.last_error, BrokerRefusedError)
        self.broker.closing.clear()
        self.wait(9.75)
        self.assertEqual(self.connection.state, "waiting")
        self.wait(0.5)
        self.assertEqual(self.connection.state, "ready")

    def test_closed_by_the_broker(self) -> None:
        """The broker's reply text is the reported reason."""
        self.broker.links[0].say(0, "connection.close", reply_code=320, reply_text="CONNECTION_FORCED - bye")
        self.assertIn("320 CONNECTION_FORCED - bye", str(self.connection.last_error))
        self.wait(1)
        self.assertEqual(self.connection.state, "ready")

    def test_lost_when_blocked(self) -> None:
        """A blocked connection that is lost is restored, and is not blocked then."""
        self.broker.links[0].say(0, "connection.blocked", reason="low on memory")
        self.broker.links[0].lose()
        self.assertEqual(self.connection.state, "waiting")
        self.wait(1)
        self.assertEqual(self.connection.state, "ready")


class BlockedTests(ConnectionCase):
    """Tests for connection.blocked and for a full socket."""

    def test_blocked(self) -> None:
        """A block is logged once with the reason, and the handler resumes when it is over."""
        self.opened()
        link = self.broker.links[0]
        for _ in range(2):
            link.say(0, "connection.blocked", reason="low on memory")
            self.assertEqual((self.connection.state, self.connection.blocked_by), ("blocked", "low on memory"))
        for _ in range(2):
            link.say(0, "connection.unblocked")
            self.assertEqual(self.connection.state, "ready")
        self.assertEqual(self.user.heard, ["prepare", "ready", "ready"])
        self.assertEqual(len(self.warnings("blocks publishing: low on memory")), 1)
        self.assertEqual(len(self.warnings("no longer blocks publishing")), 1)

    def test_while_preparing(self) -> None:
        """A connection that is blocked during prepare enters blocked, not ready."""
        waiting: Deferred[None] = Deferred()
        self.user.preparing = lambda: waiting
        opening = self.started(self.connection.open())
        self.broker.links[0].say(0, "connection.blocked", reason="low on memory")
        waiting.callback(None)
        self.successResultOf(opening)
        self.assertEqual(self.connection.state, "blocked")
        self.broker.links[0].say(0, "connection.unblocked")
        self.assertEqual(self.connection.state, "ready")

    def test_unblocked_while_preparing(self) -> None:
        """A connection that is blocked and unblocked during prepare enters ready."""
        waiting: Deferred[None] = Deferred()
        self.user.preparing = lambda: waiting
        self.started(self.connection.open())
        self.broker.links[0].say(0, "connection.blocked", reason="low on memory")
        self.broker.links[0].say(0, "connection.unblocked")
        waiting.callback(None)
        self.assertEqual(self.connection.state, "ready")

    def test_congested(self) -> None:
        """A full socket is recorded, and the handler resumes when there is room."""
        self.opened()
        valve = self.broker.links[0].transport.producer
        valve.pauseProducing()
        self.assertTrue(self.connection.is_congested)
        valve.resumeProducing()
        self.assertFalse(self.connection.is_congested)
        self.assertEqual(self.user.heard, ["prepare", "ready", "ready"])

    def test_congested_and_blocked(self) -> None:
        """Room in the socket does not make a blocked connection ready."""
        self.opened()
        valve = self.broker.links[0].transport.producer
        valve.pauseProducing()
        self.broker.links[0].say(0, "connection.blocked", reason="low on memory")
        valve.resumeProducing()
        self.assertEqual(self.user.heard, ["prepare", "ready"])

    def test_congested_and_lost(self) -> None:
        """A connection that is lost with a full socket is not congested after the reconnect."""
        self.opened()
        self.broker.links[0].transport.producer.pauseProducing()
        self.broker.links[0].lose()
        self.wait(1)
        self.assertFalse(self.connection.is_congested)


class CloseTests(ConnectionCase):
    """Tests for close in every state; each test ends with a check that nothing is left."""

    def test_idle(self) -> None:
        """A connection that was never opened closes at once."""
        self.successResultOf(self.connection.close())
        self.assertEqual(self.connection.state, "closed")

    def closed_while(self, state: str) -> None:
        opening = self.started(self.connection.open())
        self.assertEqual(self.connection.state, state)
        self.done(self.connection.close())
        self.failed(opening, TransportClosedError)

    def test_connecting(self) -> None:
        """The attempt is cancelled, and open fails."""
        self.broker.deaf.add(5672)
        self.closed_while("connecting")

    def test_handshaking(self) -> None:
        """The handshake is cancelled, and open fails."""
        self.broker.unanswered.add("connection.open")
        self.closed_while("handshaking")

    def test_silent(self) -> None:
        """A handshake that has not begun is cancelled as well."""
        self.broker.unanswered.add("protocol header")
        self.closed_while("handshaking")

    def test_preparing(self) -> None:
        """The handler's prepare is cancelled, and open fails."""
        self.user.preparing = Deferred
        self.closed_while("preparing")

    def test_preparing_goes_on(self) -> None:
        """The same holds for a prepare that hides its cancellation, and waits for something else."""
        first: Deferred[None] = Deferred()
        second: Deferred[None] = Deferred()
        self.user.preparing = lambda: first.addErrback(lambda _: second)
        self.closed_while("preparing")
        second.callback(None)
        self.settle()
        self.assertEqual([link.gone for link in self.broker.links], [True])

    def test_ready(self) -> None:
        """A ready connection sends connection.close; its handler is told of the end once."""
        self.opened()
        self.done(self.connection.close())
        self.assertEqual(self.broker.links[0].names()[-1], "connection.close")
        self.assertEqual(self.user.heard, ["prepare", "ready", "lost"])
        self.assertEqual(self.log, [])

    def test_blocked(self) -> None:
        """A blocked connection sends connection.close as well."""
        self.opened()
        self.broker.links[0].say(0, "connection.blocked", reason="low on memory")
        self.done(self.connection.close())
        self.assertEqual(self.broker.links[0].names()[-1], "connection.close")

    def test_waiting(self) -> None:
        """The backoff is cancelled."""
        self.opened()
        self.broker.links[0].lose()
        self.done(self.connection.close())
        self.assertEqual(len(self.reactor.ports), 1)

    def test_connecting_again(self) -> None:
        """A reconnect attempt is cancelled."""
        self.opened()
        self.broker.deaf.add(5672)
        self.broker.links[0].lose()
        self.wait(1)
        self.assertEqual(self.connection.state, "connecting")
        self.done(self.connection.close())
        self.assert_idle()

    def test_close_without_close_ok(self) -> None:
        """A broker without close-ok is disconnected after 3 s; a second close waits for the same."""
        self.opened()
        self.broker.unanswered.add("connection.close")
        first = self.started(self.connection.close())
        second = self.started(self.connection.close())
        self.broker.links[0].say(0, "connection.blocked", reason="low on memory")
        self.broker.links[0].say(0, "connection.unblocked")
        self.wait(2.9)
        self.assertNoResult(first)
        self.wait(0.25)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_lost_while_closing(self) -> None:
        """A connection that is cut while it waits for close-ok is closed, and not restored."""
        self.opened()
        self.broker.unanswered.add("connection.close")
        closing = self.started(self.connection.close())
        self.broker.links[0].lose()
        self.successResultOf(closing)
        self.wait(20)
        self.assertEqual((self.connection.state, len(self.reactor.ports)), ("closed", 1))

    def test_twice(self) -> None:
        """Closing a closed connection fires at once."""
        self.opened()
        self.done(self.connection.close())
        self.successResultOf(self.connection.close())


class HeartbeatTests(ConnectionCase):
    """Tests for half-open connections."""

    heartbeat = 4.0
    url = "amqp://nova:secret@one/cell"

    def test_silent(self) -> None:
        """A half-open connection is detected within two heartbeat intervals, and restored."""
        self.opened()
        self.wait(8)
        self.assertEqual(len(self.warnings("no data received for 6 s")), 1)
        self.wait(1)
        self.assertEqual((self.connection.state, len(self.reactor.ports)), ("ready", 2))


class BackoffTests(ConnectionCase):
    """Tests for the backoff policies."""

    def test_bounds(self) -> None:
        """The backoff is at most 2 s for an unreachable broker, and a minute for one that refuses us."""
        for policy, longest in ((quick_backoff(), 2.0), (slow_backoff(), 60.0)):
            waits = [policy(attempt) for attempt in range(1, 50)]
            self.assertTrue(all(0 < wait <= longest for wait in waits))
            self.assertGreaterEqual(waits[-1], longest / 2)


class FlightTests(ConnectionCase):
    """Tests for the flight recorder's events."""

    def test_outage(self) -> None:
        """Connect, loss, retry and reconnect are recorded, with passwords masked."""
        recorder = record_flight(self)
        self.opened()
        self.broker.refusing |= {5672, 5673}
        self.broker.links[-1].lose()
        self.wait(1.5, step=0.1)
        self.broker.refusing.clear()
        self.wait(3, step=0.1)
        self.assertEqual(
            said(recorder, "broker"),
            [
                f"publishing connected {SHOWN}",
                f"publishing lost {SHOWN}",
                f"publishing retry in 1.0 s BrokerUnavailableError {SHOWN}",
                f"publishing retry in 0.0 s BrokerUnavailableError {SHOWN}",
                f"publishing retry in 1.0 s BrokerUnavailableError {SHOWN.replace('one:5672', 'two:5673')}",
                f"publishing connected {SHOWN}",
            ],
        )
