"""Build the transport from the settings."""

import os
from typing import Any

import attrs

from novasvc.config import Settings
from novasvc.config.transport_url import BrokerAddress
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.private_names import PrivateNames
from novasvc.transport.amqp.transport import AMQPTransport


def broker_options(settings: Settings) -> BrokerOptions:
    """Return the broker options of the settings."""
    return BrokerOptions(
        heartbeat=settings.rabbit_heartbeat,
        durable_queues=settings.amqp_durable_queues,
        auto_delete=settings.amqp_auto_delete,
        quorum_queue=settings.rabbit_quorum_queue,
        transient_quorum_queue=settings.rabbit_transient_quorum_queue,
        quorum_delivery_limit=settings.rabbit_quorum_delivery_limit,
        quorum_max_memory_length=settings.rabbit_quorum_max_memory_length,
        quorum_max_memory_bytes=settings.rabbit_quorum_max_memory_bytes,
        transient_queues_ttl=settings.rabbit_transient_queues_ttl,
        consumer_timeout=settings.rabbit_consumer_timeout,
        ssl_ca_file=settings.rabbit_ssl_ca_file,
        ssl_cert_file=settings.rabbit_ssl_cert_file,
        ssl_key_file=settings.rabbit_ssl_key_file,
    )


def configured_transport(settings: Settings, reactor: Any, *, name: str | None = None) -> AMQPTransport:
    """Return a transport for the settings; it is not opened.

    :param settings: checked; transport_url names a broker.
    :param reactor: connects, and measures time.
    :param name: what the broker's list of connections shows; binary, host and process id by default, which is for
        processes that are restarted: their private queues have stable names.
    """
    options = broker_options(settings)
    if name is None and settings.rabbit_stable_queue_names:
        names = PrivateNames(settings.state_dir / "queues", settings.host, settings.binary)
        options = attrs.evolve(options, private_names=names)
    return AMQPTransport(
        BrokerAddress.parse(settings.transport_url, tls=settings.rabbit_ssl),
        reactor=reactor,
        exchange=settings.control_exchange,
        options=options,
        name=name or f"{settings.binary}:{settings.host}:{os.getpid()}",
    )
