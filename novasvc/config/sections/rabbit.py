"""RabbitMQ: queues, timeouts, TLS to the broker."""

from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, INTEGER, NUMBER, PATH


@attrs.frozen(kw_only=True, slots=False)
class RabbitSection:
    """RabbitMQ: queues, timeouts, TLS to the broker."""

    rabbit_heartbeat: float = setting(
        "AMQP heartbeat interval; 0 disables heartbeats. A connection without data for 1.5 intervals counts as lost.",
        NUMBER,
        default=10.0,
        unit="seconds",
        minimum=0,
        nova="oslo_messaging_rabbit/heartbeat_timeout_threshold",
    )
    amqp_durable_queues: bool = setting(
        "Declare request queues and exchanges as durable, so that they survive a restart of the broker.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/amqp_durable_queues",
    )
    amqp_auto_delete: bool = setting(
        "Declare request queues and exchanges as auto-delete: the broker deletes them with their last user.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/amqp_auto_delete",
    )
    rabbit_quorum_queue: bool = setting(
        "Declare request queues as quorum queues: replicated and durable.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/rabbit_quorum_queue",
    )
    rabbit_transient_quorum_queue: bool = setting(
        "Declare fanout and reply queues as quorum queues: replicated and durable.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/rabbit_transient_quorum_queue",
    )
    rabbit_quorum_delivery_limit: int = setting(
        "Delivery limit of quorum queues: the broker drops a message delivered more often; 0 uses the broker's "
        "default, which is 20 since RabbitMQ 4.0.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_delivery_limit",
    )
    rabbit_quorum_max_memory_length: int = setting(
        "Maximum number of messages that a quorum queue keeps in memory; 0 is unlimited.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_max_memory_length",
    )
    rabbit_quorum_max_memory_bytes: int = setting(
        "Maximum number of bytes that a quorum queue keeps in memory; 0 is unlimited.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_max_memory_bytes",
    )
    rabbit_transient_queues_ttl: float = setting(
        "TTL of unused fanout and reply queues: the broker then deletes them; 0 disables.",
        NUMBER,
        default=1800.0,
        unit="seconds",
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_transient_queues_ttl",
    )
    rabbit_stable_queue_names: bool = setting(
        "Give reply and fanout queues names that a restarted process uses again, so that processes that were killed "
        "leave no queues behind. Lock files in state_dir keep two processes from using the same name.",
        BOOLEAN,
        default=True,
        nova="oslo_messaging_rabbit/use_queue_manager",
    )
    rabbit_consumer_timeout: float = setting(
        "The value of consumer_timeout on the broker: how long a message may stay unacknowledged; 0 if the broker has "
        "no limit. Idempotent methods may run longer: their requests are moved to a queue of the process in time.",
        NUMBER,
        default=1800.0,
        unit="seconds",
        minimum=0,
    )
    rabbit_ssl: bool = setting(
        "Use TLS to the broker, whatever the scheme of transport_url.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/ssl",
    )
    rabbit_ssl_ca_file: Path | None = setting(  # noqa: RUF009
        "CA bundle (PEM) used to verify the broker.",
        PATH,
        default=None,
        default_text="the system's",
        optional=True,
        nova="oslo_messaging_rabbit/ssl_ca_file",
    )
    rabbit_ssl_cert_file: Path | None = setting(  # noqa: RUF009
        "Client certificate (PEM) presented to the broker.",
        PATH,
        default=None,
        optional=True,
        nova="oslo_messaging_rabbit/ssl_cert_file",
    )
    rabbit_ssl_key_file: Path | None = setting(  # noqa: RUF009
        "Private key (PEM, without a passphrase) of rabbit_ssl_cert_file.",
        PATH,
        default=None,
        optional=True,
        nova="oslo_messaging_rabbit/ssl_key_file",
    )
