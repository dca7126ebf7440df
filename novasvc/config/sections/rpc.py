"""Messaging and remote procedure calls."""

from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import CLASSES, IDENTITIES, INTEGER, NAME, NUMBER, PATH, TRANSPORT_URL


@attrs.frozen(kw_only=True, slots=False)
class RPCSection:
    """Messaging and remote procedure calls."""

    transport_url: str = setting(
        "URL of the message transport. amqp://user:password@host:5672/vhost is RabbitMQ; rabbit: is an alias of amqp:; "
        "amqps: uses TLS. ?ssl=1 or ?ssl=0 at the end turns TLS on or off and overrides rabbit_ssl. Separate several "
        "user:password@host:port by commas: they are tried in turn. memory: needs no broker: it connects the processes "
        "of one user on one host that have the same state_dir, and messages end with the process that holds them.",
        TRANSPORT_URL,
        default="memory:",
        secret=True,
    )
    control_exchange: str = setting(
        "AMQP exchange that scopes the topics; the same for services and clients.", NAME, default="nova"
    )
    rpc_response_timeout: float = setting("Timeout of an RPC call.", NUMBER, default=60.0, unit="seconds", minimum=0.1)
    rpc_concurrency: int = setting(
        "Maximum number of concurrent RPC calls per service.",
        INTEGER,
        default=64,
        minimum=1,
        nova="rpc_thread_pool_size",
    )
    rpc_max_deliveries: int = setting(
        "Quarantine an idempotent call after this many processes died while running it. The last attempt runs while "
        "no other redelivered call does.",
        INTEGER,
        default=3,
        minimum=1,
    )
    rpc_signing_key_file: Path | None = setting(  # noqa: RUF009 - it makes the field
        "File, mode 0600, with the identity and the private key with which this process signs its calls; `novasvc key` "
        "creates it. The command `novasvc call` uses it, too.",
        PATH,
        default=None,
        optional=True,
    )
    rpc_callers_file: Path | None = setting(  # noqa: RUF009
        'File with the public keys of the callers that the services know, one "identity public:key" per line, written '
        "by its owner only. Methods with allow= can be called by these callers only. Without the file nobody can call "
        "them over a broker; without a broker, every process of this user can.",
        PATH,
        default=None,
        optional=True,
    )
    rpc_operators: tuple[str, ...] = setting(
        "Identities that may drain, restart and reload the nodes by a call, as `novasvc fleet` and the page do. With "
        "none, every identity of rpc_callers_file may; without rpc_callers_file, everybody who reaches a node may.",
        IDENTITIES,
        default=(),
        default_text="none",
    )
    rpc_signature_max_age: float = setting(
        "How old the signature of a call may be, and how far the clocks of two hosts may differ. A call of a method "
        "with allow= that waits in a queue for longer is refused, and so is one that is delivered again after that: "
        "because its process died, or out of the quarantine.",
        NUMBER,
        default=300.0,
        unit="seconds",
        minimum=1,
    )
    event_topic: str = setting(
        "Notification topic of events; the same for those that emit and those that handle them.",
        NAME,
        default="notifications",
        nova="oslo_messaging_notifications/topics",
    )
    event_attempts: int = setting(
        "Quarantine an event after this many attempts to handle it.", INTEGER, default=5, minimum=1
    )
    event_retry_delay: float = setting(
        "Time before the second attempt to handle an event; twice as long before each further one, at most a minute.",
        NUMBER,
        default=1.0,
        unit="seconds",
        minimum=0,
    )
    rpc_middleware: tuple[str, ...] = setting(
        "Classes of middleware around calls, methods, events, periodic tasks and HTTP requests, the outermost first. "
        "novasvc.middleware.tracing.Tracing makes OpenTelemetry's spans.",
        CLASSES,
        default=(),
        default_text="none",
    )
