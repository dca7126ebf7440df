"""What the nodes of one process stand on."""

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import Settings
from novasvc.context import RequestContext
from novasvc.errors import UndeliverableError
from novasvc.interfaces import ITransport
from novasvc.node.runtime import Runtime
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
