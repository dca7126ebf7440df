"""The transport in memory keeps the transports' contract."""

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.rpc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.contract.transport_contract import Connect, Lose, make_transport_tests


async def memory_broker(test: TestCase) -> tuple[Connect, Lose]:
    broker = MemoryBroker()

    async def connect() -> MemoryTransport:
        transport = MemoryTransport(broker, clock=reactor)
        test.addCleanup(transport.close)
        await transport.open()
        return transport

    async def lose(target: Target) -> None:
        del broker._queues["nova", target.topic, target.server]

    return connect, lose


class MemoryTransportTests(make_transport_tests(memory_broker)):  # type: ignore[misc]
    """Tests for novasvc.transport.memory.MemoryTransport."""
