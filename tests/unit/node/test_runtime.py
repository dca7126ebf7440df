"""What the nodes of one process stand on."""

from typing import Any
from unittest.mock import Mock

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import Settings
from novasvc.context import RequestContext
from novasvc.errors import UndeliverableError
from novasvc.interfaces import ITransport
from novasvc.node.runtime import ConductorConnection, Runtime, SharedConnection
from novasvc.registry.errors import DatabaseUnavailableError
from novasvc.registry.remote import RemoteRegistry
from novasvc.rpc import BaseAPI, Client, Endpoints, Server
from novasvc.rpc.target import Target


class FromSettingsTests(SynchronousTestCase):
    """Tests for novasvc.node.runtime.Runtime.from_settings."""

    def transport(self, clock: Clock) -> ITransport:
        """Return the transport of a runtime of its own."""
        runtime = Runtime.from_settings(Settings(), clock)
        return self.successResultOf(Deferred.fromCoroutine(runtime.broker.acquire()))

    def ping(self, server_clock: Clock, client_clock: Clock) -> Deferred[Any]:
        """Serve in one runtime, and call from another."""
        server = Server(
            self.transport(server_clock),
            Target("agent", "h1"),
            Endpoints(BaseAPI("agent")),
            clock=server_clock,
            concurrency=1,
            run_blocking=maybeDeferred,
        )
        self.successResultOf(server.start())
        client = Client(self.transport(client_clock), clock=client_clock, timeout=1)
        calling = client.prepare(topic="agent", namespace="baseapi", version="1.0").call(
            RequestContext(), "ping", arg=1
        )
        client_clock.pump([0] * 6 + [1])
        return calling

    def test_memory_is_shared(self) -> None:
        """Over memory, the nodes of several runtimes on one reactor reach each other."""
        clock = Clock()
        self.assertEqual(self.successResultOf(self.ping(clock, clock)), {"service": "agent", "arg": 1})

    def test_memory_of_another_reactor(self) -> None:
        """What runs on another reactor is another process's, as far as memory is concerned."""
        self.failureResultOf(self.ping(Clock(), Clock()), UndeliverableError)

    def test_threads_are_shared(self) -> None:
        """A runtime that takes the place of another finds its threads, which stay as long as the process."""
        clock = Clock()
        one, other, elsewhere = (Runtime.from_settings(Settings(), each) for each in (clock, clock, Clock()))
        self.assertEqual(one.run_blocking, other.run_blocking)
        self.assertNotEqual(one.run_blocking, elsewhere.run_blocking)


class SharedConnectionTests(SynchronousTestCase):
    """Tests for novasvc.node.runtime.SharedConnection."""

    def setUp(self) -> None:
        self.opening: Deferred[None] = Deferred()
        self.closing: Deferred[None] = Deferred()
        self.connection: SharedConnection[Any] = SharedConnection("database", lambda: self)

    def open(self) -> Deferred[None]:
        """Stand for the opening of the resource, which this test is itself."""
        return self.opening

    def close(self) -> Deferred[None]:
        """Stand for its closing."""
        return self.closing

    def test_cancelled(self) -> None:
        """A cancelled opening fails with CancelledError, even if closing the resource fails."""
        acquiring = Deferred.fromCoroutine(self.connection.acquire())
        acquiring.cancel()
        self.assertNoResult(acquiring)
        with capturedLogs() as events:
            self.closing.errback(DatabaseUnavailableError("sqlite:///x", "no answer"))
        self.failureResultOf(acquiring, CancelledError)
        (line,) = map(formatEvent, events)
        self.assertIn("closing the connection to the database failed: database sqlite:///x: no answer; check", line)

    def test_cancelled_while_it_closes(self) -> None:
        """An opening that fails, and is cancelled while it closes the resource, fails with CancelledError."""
        acquiring = Deferred.fromCoroutine(self.connection.acquire())
        self.opening.errback(DatabaseUnavailableError("sqlite:///x", "away"))
        acquiring.cancel()
        self.failureResultOf(acquiring, CancelledError)

    def test_failed(self) -> None:
        """It fails with the reason why it did not open, and the next user opens a new one."""
        acquiring = Deferred.fromCoroutine(self.connection.acquire())
        self.opening.errback(DatabaseUnavailableError("sqlite:///x", "away"))
        self.closing.errback(DatabaseUnavailableError("sqlite:///x", "no answer"))
        self.assertIn("away", str(self.failureResultOf(acquiring, DatabaseUnavailableError).value))
        self.opening = succeed(None)
        self.assertIs(self.successResultOf(Deferred.fromCoroutine(self.connection.acquire())), self)

    def test_conductor(self) -> None:
        """A conductor that cannot be disconnected from in time keeps no connection to the broker."""
        transport = Mock(open=lambda: succeed(None), close=Mock(return_value=succeed(None)))
        broker: SharedConnection[Any] = SharedConnection("broker", lambda: transport)
        conductor = ConductorConnection(broker, Clock())
        self.patch(RemoteRegistry, "open", lambda _: succeed(None))
        self.patch(RemoteRegistry, "close", lambda _: self.closing)
        self.successResultOf(Deferred.fromCoroutine(conductor.acquire()))
        releasing = Deferred.fromCoroutine(conductor.release())
        self.assertNoResult(releasing)
        releasing.cancel()
        self.failureResultOf(releasing, CancelledError)
        transport.close.assert_called_once_with()
