"""What differs from one release of RabbitMQ to the next, and must not be felt."""

from unittest import SkipTest

import pytest

from novasvc.interfaces import IDelivery
from novasvc.rpc.target import Target
from novasvc.transport.amqp.channel import AMQPClosedError
from tests.faults.amqp_rig import TOPIC, AMQPCase

BOUNDS = {"quorum_delivery_limit": 3, "quorum_max_memory_length": 100, "quorum_max_memory_bytes": 100_000}
LIMIT = 20
"""Returns after which a quorum queue of 4.x drops a message, if nothing else is said."""


class QuorumTests(AMQPCase):
    async def test_bounds(self) -> None:
        """The bounds of quorum queues that can be set are taken, also where they have no effect any more."""
        transport = await self.connect(quorum_queue=True, transient_quorum_queue=True, **BOUNDS)
        await self.serve(transport)
        await self.assert_serves(await self.client(transport))


class DeliveryLimitTests(AMQPCase):
    async def losses(self, number: int, **options: int) -> list[IDelivery]:
        """Have a message in the hands of a process that loses its connection, again and again."""
        got: list[IDelivery] = []
        transport = await self.connect(quorum_queue=True, **options)
        listener = await transport.listen(Target(TOPIC), got.append, 1)
        await (await self.connect(quorum_queue=True, **options)).send(Target(TOPIC), b"{}", None, True)
        connection = transport.connections[1]
        for seen in range(1, number + 1):
            await self.until(lambda seen=seen: len(got) >= seen and listener.live and connection.protocol)
            assert connection.protocol is not None
            connection.protocol.end(AMQPClosedError("lost by the test"))
        await self.until(lambda: len(got) > number)
        return got

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    async def test_not_dropped(self) -> None:
        """A message that never began outlives any number of processes; that it was delivered is known."""
        if self.broker.release < (4, 0):
            raise SkipTest(f"RabbitMQ {self.broker.version} has no limit of its own; tests/brokers has others")
        got = await self.losses(LIMIT + 5)
        self.assertEqual(got[0].deliveries, 0)
        self.assertTrue(all(delivery.deliveries for delivery in got[1:]))
        self.assertLess(got[-1].deliveries, LIMIT)  # each time that it was sent anew counts, and no other
        got[-1].ack()
        await self.until(lambda: not self.broker.queues(self.vhost)[TOPIC])
