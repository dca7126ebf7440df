"""What can be chosen about a broker, beside its address."""

from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class BrokerOptions:
    """Deadlines, how queues are declared, and TLS. The defaults are oslo.messaging's, but for the heartbeat.

    :param heartbeat: seconds; 0 is none.
    :param connect_timeout: seconds for one host: name, TCP, TLS and handshake.
    :param operation_timeout: seconds that the broker has for each answer.
    :param durable_queues: queues of requests and the control exchange outlive the broker.
    :param auto_delete: they go with the last that uses them.
    :param quorum_queue: queues of requests are replicated; implies durable.
    :param transient_quorum_queue: queues of fanouts and replies are replicated and durable.
    :param quorum_delivery_limit: deliveries after which a quorum queue drops a message; 0 leaves it to the broker.
    :param quorum_max_memory_length: messages that a quorum queue keeps in memory; 0 is without limit.
    :param quorum_max_memory_bytes: bytes that a quorum queue keeps in memory; 0 is without limit.
    :param transient_queues_ttl: seconds after which an unused queue of fanouts or replies goes; 0 is never.
    :param consumer_timeout: seconds for which the broker lets a delivery be unacknowledged; 0 is without limit.
    :param durable_private_queues: queues of fanouts and replies are durable, because the broker permits no others;
        found out, not set.
    :param ssl_ca_file: certificates of those whom we trust; None is the system's.
    :param ssl_cert_file: our own certificate, if the broker wants one.
    :param ssl_key_file: its key.
    """

    heartbeat: float = 10.0
    connect_timeout: float = 10.0
    operation_timeout: float = 15.0
    durable_queues: bool = False
    auto_delete: bool = False
    quorum_queue: bool = False
    transient_quorum_queue: bool = False
    quorum_delivery_limit: int = 0
    quorum_max_memory_length: int = 0
    quorum_max_memory_bytes: int = 0
    transient_queues_ttl: float = 1800.0
    consumer_timeout: float = 1800.0
    durable_private_queues: bool = False
    ssl_ca_file: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
