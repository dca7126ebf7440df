"""The transport in memory keeps the transports' contract."""

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.contract.transport_contract import Connect, make_transport_tests


async def memory_broker(test: TestCase) -> Connect:
    broker = MemoryBroker()

    async def connect() -> MemoryTransport:
        transport = MemoryTransport(broker, clock=reactor)
        test.addCleanup(transport.close)
        await transport.open()
        return transport

    return connect


class MemoryTransportTests(make_transport_tests(memory_broker)):  # type: ignore[misc]
    """Tests for novasvc.transport.memory.MemoryTransport."""
