"""The transport over RabbitMQ keeps the transports' contract."""

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.transport.amqp import AMQPTransport, BrokerAddress, BrokerOptions
from tests.contract.transport_contract import Connect, Fixture, make_transport_tests
from tests.servers import vhost_url


def on_broker(options: BrokerOptions) -> Fixture:
    """Make a fixture whose tests have a virtual host each."""

    async def fixture(test: TestCase) -> Connect:
        address = BrokerAddress.parse(vhost_url(test))

        async def connect() -> AMQPTransport:
            transport = AMQPTransport(address, reactor=reactor, options=options, name=test.id())
            test.addCleanup(transport.close)
            await transport.open()
            return transport

        return connect

    return fixture


class AMQPTransportTests(make_transport_tests(on_broker(BrokerOptions()))):  # type: ignore[misc]
    """Tests for novasvc.transport.amqp.AMQPTransport."""


class QuorumTransportTests(
    make_transport_tests(on_broker(BrokerOptions(quorum_queue=True, transient_quorum_queue=True)))  # type: ignore[misc]
):
    """Tests for novasvc.transport.amqp.AMQPTransport with all queues replicated."""
