"""The transport over RabbitMQ keeps the transports' contract."""

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport, BrokerAddress, BrokerOptions
from novasvc.transport.amqp.topology import Binding, request_address, unbind
from tests.contract.transport_contract import Connect, Fixture, Lose, make_transport_tests
from tests.servers import vhost_url


def on_broker(options: BrokerOptions) -> Fixture:
    """Make a fixture whose tests have a virtual host each."""

    async def fixture(test: TestCase) -> tuple[Connect, Lose]:
        address = BrokerAddress.parse(vhost_url(test))

        async def connect() -> AMQPTransport:
            transport = AMQPTransport(address, reactor=reactor, options=options, name=test.id())
            test.addCleanup(transport.close)
            await transport.open()
            return transport

        async def lose(target: Target) -> None:
            protocol = (await connect()).connections[0].protocol
            assert protocol is not None
            queue = request_address(target)
            await unbind(await protocol.open_channel(), Binding(queue, "nova", queue))

        return connect, lose

    return fixture


class AMQPTransportTests(make_transport_tests(on_broker(BrokerOptions()))):  # type: ignore[misc]
    """Tests for novasvc.transport.amqp.AMQPTransport."""


class QuorumTransportTests(
    make_transport_tests(on_broker(BrokerOptions(quorum_queue=True, transient_quorum_queue=True)))  # type: ignore[misc]
):
    """Tests for novasvc.transport.amqp.AMQPTransport with all queues replicated."""
