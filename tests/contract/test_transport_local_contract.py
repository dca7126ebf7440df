"""The transport of one host keeps the transports' contract, as far as messages stay in one process."""

import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.rpc.target import Target
from novasvc.transport.local import HostSockets, LocalTransport
from novasvc.transport.memory import MemoryBroker
from tests.contract.transport_contract import Connect, Lose, make_transport_tests


async def one_process(test: TestCase) -> tuple[Connect, Lose]:
    temporary = tempfile.TemporaryDirectory()
    test.addCleanup(temporary.cleanup)
    broker = MemoryBroker()
    sockets = HostSockets(broker, reactor, Path(temporary.name))

    async def connect() -> LocalTransport:
        transport = LocalTransport(sockets)
        test.addCleanup(transport.close)
        await transport.open()
        return transport

    async def lose(target: Target) -> None:
        del broker._queues["nova", target.topic, target.server]

    return connect, lose


class LocalTransportTests(make_transport_tests(one_process)):  # type: ignore[misc]
    """Tests for novasvc.transport.local.LocalTransport."""
