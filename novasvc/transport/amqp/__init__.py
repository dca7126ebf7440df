"""Transport over RabbitMQ, built on txamqp, for ``amqp:`` and ``rabbit:`` URLs."""

from novasvc.config.transport_url import BrokerAddress
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.transport import AMQPTransport

__all__ = ["AMQPTransport", "BrokerAddress", "BrokerOptions"]
