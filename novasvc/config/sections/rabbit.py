"""RabbitMQ: queues, timeouts, TLS to the broker."""

from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, INTEGER, NUMBER, PATH


@attrs.frozen(kw_only=True, slots=False)
class RabbitSection:
    """RabbitMQ: queues, timeouts, TLS to the broker."""

    rabbit_heartbeat: float = setting(
        "Time between signs of life on a connection to the broker; 0 is none. A broker that is silent for 1.5 of "
        "them counts as lost.",
        NUMBER,
        default=10.0,
        unit="seconds",
        minimum=0,
        nova="oslo_messaging_rabbit/heartbeat_timeout_threshold",
    )
    amqp_durable_queues: bool = setting(
        "Have queues and exchanges of requests outlive the broker.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/amqp_durable_queues",
    )
    amqp_auto_delete: bool = setting(
        "Have queues and exchanges of requests go with the last that uses them.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/amqp_auto_delete",
    )
    rabbit_quorum_queue: bool = setting(
        "Replicate queues of requests; they are durable then.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/rabbit_quorum_queue",
    )
    rabbit_transient_quorum_queue: bool = setting(
        "Replicate queues of fanouts and replies; they are durable then.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/rabbit_transient_quorum_queue",
    )
    rabbit_quorum_delivery_limit: int = setting(
        "Deliveries after which a quorum queue drops a message; 0 leaves it to the broker: 20 from RabbitMQ 4.0 on.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_delivery_limit",
    )
    rabbit_quorum_max_memory_length: int = setting(
        "Messages that a quorum queue keeps in memory; 0 is without limit.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_max_memory_length",
    )
    rabbit_quorum_max_memory_bytes: int = setting(
        "Bytes that a quorum queue keeps in memory; 0 is without limit.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_max_memory_bytes",
    )
    rabbit_transient_queues_ttl: float = setting(
        "Time after which the broker drops a queue of fanouts or replies that nobody uses; 0 is never.",
        NUMBER,
        default=1800.0,
        unit="seconds",
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_transient_queues_ttl",
    )
    rabbit_consumer_timeout: float = setting(
        "The broker's consumer_timeout: how long a request may stay unacknowledged. Idempotent methods may run longer: "
        "their requests are moved to a queue of the process well before that. 0: the broker has no limit.",
        NUMBER,
        default=1800.0,
        unit="seconds",
        minimum=0,
    )
    rabbit_ssl: bool = setting(
        "Speak TLS to the broker, whatever the URL's scheme.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/ssl",
    )
    rabbit_ssl_ca_file: Path | None = setting(  # noqa: RUF009
        "Certificates of those whom we trust to be the broker, in PEM.",
        PATH,
        default=None,
        shown="the system's",
        optional=True,
        nova="oslo_messaging_rabbit/ssl_ca_file",
    )
    rabbit_ssl_cert_file: Path | None = setting(  # noqa: RUF009
        "Our own certificate, if the broker wants one, in PEM.",
        PATH,
        default=None,
        optional=True,
        nova="oslo_messaging_rabbit/ssl_cert_file",
    )
    rabbit_ssl_key_file: Path | None = setting(  # noqa: RUF009
        "The key of rabbit_ssl_cert_file, in PEM, without a passphrase.",
        PATH,
        default=None,
        optional=True,
        nova="oslo_messaging_rabbit/ssl_key_file",
    )
