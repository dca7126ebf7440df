"""Messaging and remote procedure calls."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import INTEGER, NAME, NUMBER, TRANSPORT_URL


@attrs.frozen(kw_only=True, slots=False)
class RPCSection:
    """Messaging and remote procedure calls."""

    transport_url: str = setting(
        "How messages move: amqp://user:password@host:5672/vhost is RabbitMQ, rabbit: is the same, amqps: speaks TLS, "
        "as does ?ssl=1 at the end, while ?ssl=0 does not, whatever rabbit_ssl says; "
        "several user:password@host:port are tried in turn; memory: serves the nodes of one process.",
        TRANSPORT_URL,
        default="memory:",
        secret=True,
    )
    control_exchange: str = setting("Exchange that the topics belong to.", NAME, default="nova")
    rpc_response_timeout: float = setting(
        "How long a call waits for its reply.", NUMBER, default=60.0, unit="seconds", minimum=0.1
    )
    rpc_concurrency: int = setting(
        "Calls that one service works on at a time.", INTEGER, default=64, minimum=1, nova="rpc_thread_pool_size"
    )
    rpc_max_deliveries: int = setting(
        "Quarantine an idempotent call after this many processes died while running it; for the last try it runs "
        "alone among redelivered calls.",
        INTEGER,
        default=3,
        minimum=1,
    )
