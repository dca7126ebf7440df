"""Messages of one turn of the reactor leave in one write to the socket, at the client and at the server."""

from collections import Counter
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport, BrokerAddress
from tests.servers import vhost_url

CALLS = 64
"""Calls in flight. Their requests fit into the 64 KiB after which a transport applies back-pressure."""


class Echo:
    @rpc.expose
    def echo(self, context: RequestContext, value: Any) -> Any:
        return value


class Traffic:
    """Counts the reads and the writes of a connection's socket, by "read" and "write"."""

    def __init__(self, protocol: Any) -> None:
        self.count: Counter[str] = Counter()
        self._wrap(protocol, "dataReceived", "read")
        self._wrap(protocol.transport, "writeSomeData", "write")

    def _wrap(self, owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counted(data: bytes) -> Any:
            self.count[what] += 1
            return original(data)

        setattr(owner, name, counted)


class WritesTests(TestCase):
    async def transport(self) -> AMQPTransport:
        transport = AMQPTransport(self.address, reactor=reactor, name=self.id())
        self.addCleanup(transport.close)
        await transport.open()
        return transport

    def test_64_in_flight(self) -> Deferred[None]:
        """64 calls of one turn leave in one write; replies and acknowledgements in one write for each read."""
        self.address = BrokerAddress.parse(vhost_url(self))

        async def test() -> None:
            ours, theirs = await self.transport(), await self.transport()
            target = Target("writes", "here")
            server = rpc.Server(
                theirs, target, rpc.Endpoints(Echo()), clock=reactor, concurrency=CALLS, run_blocking=maybeDeferred
            )
            await server.start()
            client = rpc.Client(ours, clock=reactor, timeout=30.0).prepare(topic="writes")
            await client.call(RequestContext(), "echo", value=0)  # opens the connections; the broker is known to read
            await deferLater(reactor, 0.1, lambda: None)  # until the last confirm and acknowledgement are through
            requests, answers, replies, deliveries = (
                Traffic(connection.protocol).count for connection in (*ours.connections, *theirs.connections)
            )
            calls = [client.call(RequestContext(), "echo", value=number) for number in range(CALLS)]
            self.assertEqual(await gatherResults(calls), list(range(CALLS)))
            await deferLater(reactor, 0.1, lambda: None)
            self.assertEqual((requests["write"], answers["write"]), (1, 0))
            self.assertGreater(deliveries["read"], 0)
            for what, count in (("replies", replies["write"]), ("acknowledgements", deliveries["write"])):
                self.assertTrue(0 < count <= deliveries["read"], f"{what}: {count}, reads: {deliveries['read']}")
            await client.close()
            await server.close()

        return Deferred.fromCoroutine(test())
