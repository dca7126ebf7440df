"""Options of a broker beside its address."""

from pathlib import Path

import attrs

from novasvc.transport.amqp.private_names import PrivateNames


@attrs.frozen(kw_only=True)
class BrokerOptions:
    """Deadlines, queue arguments and TLS files. The defaults are oslo.messaging's, except the heartbeat.

    :param heartbeat: seconds; 0 disables heartbeats.
    :param connect_timeout: seconds for one host: DNS, TCP, TLS and handshake.
    :param operation_timeout: seconds that the broker has to answer each method.
    :param durable_queues: request queues and the control exchange survive a restart of the broker.
    :param auto_delete: they are deleted with their last consumer or binding.
    :param quorum_queue: request queues are replicated quorum queues; implies durable.
    :param transient_quorum_queue: fanout and reply queues are quorum queues, and durable.
    :param quorum_delivery_limit: deliveries after which a quorum queue drops a message; 0 leaves it to the broker.
    :param quorum_max_memory_length: messages that a quorum queue keeps in memory; 0 is unlimited.
    :param quorum_max_memory_bytes: bytes that a quorum queue keeps in memory; 0 is unlimited.
    :param transient_queues_ttl: seconds after which an unused fanout or reply queue is deleted; 0 is never.
    :param consumer_timeout: seconds for which a delivery may stay unacknowledged on the broker; 0 is unlimited.
    :param durable_private_queues: fanout and reply queues are durable, because the broker denies transient ones;
        detected, not configured.
    :param private_names: names the reply and fanout queues.
    :param accepted: queues and exchanges that are used as they are, whatever these options say, with the type of their
        queues: "classic" or "quorum". Filled while the process runs, see :mod:`novasvc.transport.amqp.existing`.
    :param ssl_ca_file: CA bundle (PEM) used to verify the broker; None uses the system's.
    :param ssl_cert_file: client certificate (PEM), if the broker requires one.
    :param ssl_key_file: its private key (PEM), without a passphrase.
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
    private_names: PrivateNames = attrs.field(factory=PrivateNames, eq=False, repr=False)
    accepted: dict[str, str] = attrs.field(factory=dict, eq=False, repr=False)
    ssl_ca_file: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
