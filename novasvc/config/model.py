"""The settings themselves: what there is, its default, its meaning.

This is the only table of them: names of variables and options, their help and
``docs/settings.md`` are derived from the fields below.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs

from novasvc.config.definition import SettingDefinition, text_of
from novasvc.config.log_format import LOG_FORMAT, NOVA_LOG_FORMAT
from novasvc.config.masking import masked, masked_url
from novasvc.config.types import (
    ADDRESS,
    APIS,
    BOOLEAN,
    CLASS,
    DATABASE_URL,
    INTEGER,
    NAME,
    NUMBER,
    PATH,
    PORT,
    TABLE,
    TRANSPORT_URL,
    ValueType,
    choice,
)

_METADATA_KEY = "novasvc"
AGENT = "novasvc.host_agent.HostAgent"
MANAGERS: Mapping[str, str] = MappingProxyType({"agent": AGENT, "conductor": "novasvc.registry.conductor.Conductor"})
"""The topics that have a manager of their own, unless ``<topic>_manager`` names another."""


def _setting(description: str, value_type: ValueType, *, default: Any, shown: str | None = None, **rest: Any) -> Any:
    """Make a field of Settings.

    :param default: the value, or an attrs Factory, which needs ``shown``.
    :param shown: the default in words.
    """
    definition = SettingDefinition(help=description, value_type=value_type, default=shown or text_of(default), **rest)
    return attrs.field(
        default=default, metadata={_METADATA_KEY: definition}, repr=masked_url if definition.secret else True
    )


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return where state is kept if nothing else is said.

    :param environ: XDG_STATE_HOME and HOME are used, unless this is root.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/novasvc")
    state_home = environ.get("XDG_STATE_HOME", "")
    if state_home.startswith("/"):
        return Path(state_home, "novasvc")
    home = environ.get("HOME")
    return Path(home, ".local/state/novasvc") if home else Path("/var/lib/novasvc")


def default_topic(binary: str) -> str:
    """Return the topic of a binary: what follows "nova-" or "novasvc-", or the whole name."""
    for prefix in ("nova-", "novasvc-"):
        if binary.startswith(prefix) and binary != prefix:
            return binary.removeprefix(prefix)
    return binary


@attrs.frozen(kw_only=True)
class ServiceSettings:
    """One node that a process runs: a ``[[service]]`` table, or the only one without tables.

    :param host: what it registers as.
    :param binary: the name of the service on this host.
    :param topic: what it serves.
    :param manager: dotted name of its class: "package.module.Class" or "package.module:Class".
    :param report_interval: seconds from heartbeat to heartbeat; 0 is no heartbeats.
    :param periodic_enable: whether periodic tasks run by themselves.
    :param periodic_fuzzy_delay: seconds; the first pass comes after a random part of it.
    :param periodic_interval_max: seconds between two passes at the most, or None.
    :param db_allowed: whether it reaches the database itself, or through the conductor.
    :param workers: processes of its own; None is to share those of the other services.
    :param options: keyword arguments of the manager's constructor, beside ``host``.
    """

    host: str
    binary: str
    topic: str
    manager: str
    report_interval: float = 10
    periodic_enable: bool = True
    periodic_fuzzy_delay: float = 60
    periodic_interval_max: float | None = None
    db_allowed: bool = True
    workers: int | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict, repr=lambda value: repr(masked(value)))


@attrs.frozen(kw_only=True)
class APISettings:
    """Where one of the enabled_apis listens.

    :param listen: its address.
    :param listen_port: 0 takes a free one.
    :param workers: supervised processes of its own; None is one for each processor.
    """

    listen: str = "127.0.0.1"
    listen_port: int = 0
    workers: int | None = None


API_PORTS: Mapping[str, int] = MappingProxyType({"osapi_compute": 8774, "metadata": 8775})
"""The ports of Nova's own APIs, unless ``<api>_listen_port`` gives another."""

INHERITED = (
    "host",
    "report_interval",
    "periodic_enable",
    "periodic_fuzzy_delay",
    "periodic_interval_max",
    "db_allowed",
)
"""What a ``[[service]]`` table takes from the settings around it, unless it says otherwise."""


def _only_service(settings: "Settings") -> tuple[ServiceSettings, ...]:
    inherited = {name: getattr(settings, name) for name in INHERITED}
    return (ServiceSettings(binary=settings.binary, topic=settings.topic, manager=settings.manager, **inherited),)


@attrs.frozen(kw_only=True)
class Settings:
    """The configuration of a process. :func:`novasvc.config.load` makes it and checks it.

    Times are in seconds. Made directly, it takes what it is given.

    :param managers: dotted class names by topic, from the settings ``<topic>_manager``.
    :param apis: by name, from ``<api>_listen``, ``<api>_listen_port`` and ``<api>_workers``; see :meth:`api_named`.
    :param services: the nodes that the process runs, from the ``[[service]]`` tables.
    """

    host: str = _setting(
        "Name that this machine's services register under.",
        NAME,
        default=attrs.Factory(socket.gethostname),
        shown="the machine's name",
    )
    state_dir: Path = _setting(  # noqa: RUF009 - it makes the field
        "Directory for what must outlive the process, such as the SQLite database.",
        PATH,
        default=attrs.Factory(lambda: default_state_dir(os.environ)),
        shown="/var/lib/novasvc for root, else novasvc in $XDG_STATE_HOME or ~/.local/state",
        nova="state_path",
    )
    tempdir: Path | None = _setting(  # noqa: RUF009
        "Directory for temporary files.", PATH, default=None, shown="the system's", optional=True
    )

    transport_url: str = _setting(
        "How messages move: amqp://user:password@host:5672/vhost is RabbitMQ, rabbit: is the same, amqps: speaks TLS, "
        "as does ?ssl=1 at the end, while ?ssl=0 does not, whatever rabbit_ssl says; "
        "several user:password@host:port are tried in turn; memory: serves the nodes of one process.",
        TRANSPORT_URL,
        default="memory:",
        secret=True,
    )
    control_exchange: str = _setting("Exchange that the topics belong to.", NAME, default="nova")
    rpc_response_timeout: float = _setting(
        "How long a call waits for its reply.", NUMBER, default=60.0, unit="seconds", minimum=0.1
    )
    rpc_concurrency: int = _setting(
        "Calls that one service works on at a time.", INTEGER, default=64, minimum=1, nova="rpc_thread_pool_size"
    )
    rpc_max_deliveries: int = _setting(
        "Quarantine an idempotent call after this many processes died while running it; for the last try it runs "
        "alone among redelivered calls.",
        INTEGER,
        default=3,
        minimum=1,
    )

    rabbit_heartbeat: float = _setting(
        "Time between signs of life on a connection to the broker; 0 is none. A broker that is silent for 1.5 of "
        "them counts as lost.",
        NUMBER,
        default=10.0,
        unit="seconds",
        minimum=0,
        nova="oslo_messaging_rabbit/heartbeat_timeout_threshold",
    )
    amqp_durable_queues: bool = _setting(
        "Have queues and exchanges of requests outlive the broker.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/amqp_durable_queues",
    )
    amqp_auto_delete: bool = _setting(
        "Have queues and exchanges of requests go with the last that uses them.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/amqp_auto_delete",
    )
    rabbit_quorum_queue: bool = _setting(
        "Replicate queues of requests; they are durable then.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/rabbit_quorum_queue",
    )
    rabbit_transient_quorum_queue: bool = _setting(
        "Replicate queues of fanouts and replies; they are durable then.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/rabbit_transient_quorum_queue",
    )
    rabbit_quorum_delivery_limit: int = _setting(
        "Deliveries after which a quorum queue drops a message; 0 leaves it to the broker: 20 from RabbitMQ 4.0 on.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_delivery_limit",
    )
    rabbit_quorum_max_memory_length: int = _setting(
        "Messages that a quorum queue keeps in memory; 0 is without limit.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_max_memory_length",
    )
    rabbit_quorum_max_memory_bytes: int = _setting(
        "Bytes that a quorum queue keeps in memory; 0 is without limit.",
        INTEGER,
        default=0,
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_quorum_max_memory_bytes",
    )
    rabbit_transient_queues_ttl: float = _setting(
        "Time after which the broker drops a queue of fanouts or replies that nobody uses; 0 is never.",
        NUMBER,
        default=1800.0,
        unit="seconds",
        minimum=0,
        nova="oslo_messaging_rabbit/rabbit_transient_queues_ttl",
    )
    rabbit_consumer_timeout: float = _setting(
        "The broker's consumer_timeout: how long a request may stay unacknowledged. Idempotent methods may run longer: "
        "their requests are moved to a queue of the process well before that. 0: the broker has no limit.",
        NUMBER,
        default=1800.0,
        unit="seconds",
        minimum=0,
    )
    rabbit_ssl: bool = _setting(
        "Speak TLS to the broker, whatever the URL's scheme.",
        BOOLEAN,
        default=False,
        nova="oslo_messaging_rabbit/ssl",
    )
    rabbit_ssl_ca_file: Path | None = _setting(  # noqa: RUF009
        "Certificates of those whom we trust to be the broker, in PEM.",
        PATH,
        default=None,
        shown="the system's",
        optional=True,
        nova="oslo_messaging_rabbit/ssl_ca_file",
    )
    rabbit_ssl_cert_file: Path | None = _setting(  # noqa: RUF009
        "Our own certificate, if the broker wants one, in PEM.",
        PATH,
        default=None,
        optional=True,
        nova="oslo_messaging_rabbit/ssl_cert_file",
    )
    rabbit_ssl_key_file: Path | None = _setting(  # noqa: RUF009
        "The key of rabbit_ssl_cert_file, in PEM, without a passphrase.",
        PATH,
        default=None,
        optional=True,
        nova="oslo_messaging_rabbit/ssl_key_file",
    )

    database_url: str = _setting(
        "Database with the services table: SQLite, PostgreSQL, MySQL or MariaDB.",
        DATABASE_URL,
        default=attrs.Factory(lambda self: f"sqlite:///{self.state_dir / 'novasvc.sqlite'}", takes_self=True),
        shown="novasvc.sqlite in state_dir",
        secret=True,
        nova="database/connection",
    )
    db_allowed: bool = _setting("Reach the database directly; otherwise through the conductor.", BOOLEAN, default=True)
    migrate: bool = _setting("Bring the database's schema up to date at start.", BOOLEAN, default=True)
    enable_new_services: bool = _setting(
        "Take new services into use without an operator's consent.", BOOLEAN, default=True
    )

    servicegroup_driver: str = _setting("How services prove that they are up.", choice("db"), default="db")
    report_interval: float = _setting(
        "Time from heartbeat to heartbeat; 0 disables heartbeats: the service registers once and counts as down after "
        "service_down_time.",
        NUMBER,
        default=10.0,
        unit="seconds",
        minimum=1,
        zero=True,
    )
    service_down_time: float = _setting(
        "Time without a heartbeat after which a service is down; more than report_interval.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=1,
    )

    periodic_enable: bool = _setting("Run the periodic tasks.", BOOLEAN, default=True)
    periodic_fuzzy_delay: float = _setting(
        "Longest random delay before the first pass over the periodic tasks, so that a fleet does not beat as one.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    periodic_interval_max: float | None = _setting(
        "Longest time between two passes over the periodic tasks.",
        NUMBER,
        default=None,
        unit="seconds",
        minimum=1,
        optional=True,
    )
    run_external_periodic_tasks: bool = _setting(
        "Run the periodic tasks that another process could run, too.", BOOLEAN, default=True
    )

    graceful_shutdown_timeout: float = _setting(
        "How long a service that stops may finish what it has begun; 0 is without limit.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    fail_fast: bool = _setting(
        "Fail the start if the broker or the database is not there, instead of waiting for it.", BOOLEAN, default=False
    )
    log_level: str = _setting(
        "Least level of the events that `twistd novasvc` logs.",
        choice("debug", "info", "warn", "error", "critical"),
        default="info",
    )
    log_json: bool = _setting("Log one JSON object a line.", BOOLEAN, default=False)
    workers: int = _setting(
        "Supervised processes that share the work of the services; 0 runs them in the one process that was started.",
        INTEGER,
        default=0,
        minimum=0,
    )
    worker_start_timeout: float = _setting(
        "How long a worker may take to be ready; one that waits for the database or the broker may take longer. "
        "0 is without limit.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    worker_watchdog: float = _setting(
        "How long a worker's reactor may not turn, before the worker is ended and replaced; 0 is for ever.",
        NUMBER,
        default=30.0,
        unit="seconds",
        minimum=0,
    )
    worker_restart_budget: int = _setting(
        "Times that a worker may die before it is ready, or at once when it is, within worker_restart_window.",
        INTEGER,
        default=5,
        minimum=1,
    )
    worker_restart_window: float = _setting(
        "Time in which the deaths of worker_restart_budget are counted.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=1,
    )
    worker_crash_loop: str = _setting(
        "What follows when the budget is used up: exit ends everything with an error, retry tries on slowly, auto "
        "is exit until a worker has been ready once, and retry from then on.",
        choice("auto", "exit", "retry"),
        default="auto",
    )
    control_socket: Path = _setting(  # noqa: RUF009
        "Unix socket by which `novasvc workers`, `drain`, `reload` and `dump` reach the supervisor.",
        PATH,
        default=attrs.Factory(lambda self: self.state_dir / "novasvc.control", takes_self=True),
        shown="novasvc.control in state_dir",
    )

    api: bool = _setting(
        "Serve the API: the compute services API, health, metrics, the page, and RPC over HTTP.", BOOLEAN, default=False
    )
    api_listen: str = _setting(
        "Address that the API listens on. One that others than this host reach takes api_token_file, and TLS.",
        ADDRESS,
        default="127.0.0.1",
    )
    api_listen_port: int = _setting("Port that the API listens on; 0 takes a free one.", PORT, default=8774)
    api_workers: int | None = _setting(
        "Supervised processes that serve the API. None is the process of the services, or one if those have workers.",
        INTEGER,
        default=None,
        minimum=1,
        optional=True,
    )
    api_use_ssl: bool = _setting("Serve the API over TLS, with ssl_cert_file and ssl_key_file.", BOOLEAN, default=False)
    insecure_http: bool = _setting(
        "Serve the API without TLS to other hosts: for a proxy in front of it that speaks TLS.", BOOLEAN, default=False
    )
    api_token_file: Path | None = _setting(  # noqa: RUF009
        'File of tokens, mode 0600, a "name scope token" on each line, with scope read or admin. Without it everybody '
        "on this host may do everything.",
        PATH,
        default=None,
        optional=True,
    )

    enabled_apis: tuple[str, ...] = _setting(
        "Applications of api_paste_config that are served: each on its <api>_listen and <api>_listen_port, by its "
        "<api>_workers processes.",
        APIS,
        default=(),
        shown="none",
    )
    enabled_ssl_apis: tuple[str, ...] = _setting(
        "Those that are served over TLS; they need not be in enabled_apis as well.", APIS, default=(), shown="none"
    )
    api_paste_config: Path = _setting(  # noqa: RUF009
        "Paste configuration with the applications of enabled_apis.",
        PATH,
        default=attrs.Factory(lambda: Path("api-paste.ini").absolute()),
        shown="api-paste.ini in the working directory",
        nova="wsgi/api_paste_config",
    )
    ssl_cert_file: Path | None = _setting(  # noqa: RUF009
        "Certificate of our servers, in PEM; those that lead to its authority may follow it.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_cert_file",
    )
    ssl_key_file: Path | None = _setting(  # noqa: RUF009
        "The key of ssl_cert_file, in PEM, without a passphrase.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_key_file",
    )
    ssl_ca_file: Path | None = _setting(  # noqa: RUF009
        "Certificates of those who vouch for clients, in PEM. With it, a client of enabled_ssl_apis has to have a "
        "certificate of theirs.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_ca_file",
    )
    tcp_keepidle: int = _setting(
        "Time without a byte after which a connection of a client is probed, whether the client is still there; "
        "0 is never.",
        INTEGER,
        default=600,
        unit="seconds",
        minimum=0,
        nova="wsgi/tcp_keepidle",
    )
    max_header_line: int = _setting(
        "Bytes that a header line may have; more gets 431.",
        INTEGER,
        default=16384,
        minimum=256,
        nova="wsgi/max_header_line",
    )
    max_request_body_size: int = _setting(
        "Bytes that the body of a request may have; more gets 413. 0 is without limit.",
        INTEGER,
        default=1048576,
        minimum=0,
        nova="oslo_middleware/max_request_body_size",
    )
    client_socket_timeout: float = _setting(
        "How long a connection may be idle between two requests, or its client not read an answer; 0 is without limit.",
        NUMBER,
        default=900.0,
        unit="seconds",
        minimum=0,
        nova="wsgi/client_socket_timeout",
    )
    keep_alive: bool = _setting(
        "Take more than one request on a connection.", BOOLEAN, default=True, nova="wsgi/keep_alive"
    )
    wsgi_default_pool_size: int = _setting(
        "Requests that one of the enabled_apis works on at a time, in each of its processes.",
        INTEGER,
        default=128,
        minimum=1,
        nova="wsgi/default_pool_size",
    )
    wsgi_log_format: str = _setting(
        "A line of the access log, with the fields client_ip, client_port, date_time, request_line, status_code, "
        'body_length and wall_seconds; "none" writes none.',
        LOG_FORMAT,
        default=NOVA_LOG_FORMAT,
        nova="wsgi/wsgi_log_format",
    )

    managers: Mapping[str, str] = attrs.field(factory=dict)
    apis: Mapping[str, APISettings] = attrs.field(factory=dict)
    binary: str = _setting("Name of the only service, if there is no [[service]] table.", NAME, default="novasvc-agent")
    topic: str = _setting(
        "Topic of the only service.",
        NAME,
        default=attrs.Factory(lambda self: default_topic(self.binary), takes_self=True),
        shown='what follows "novasvc-" or "nova-" in binary',
    )
    manager: str = _setting(
        "Class of the only service's manager.",
        CLASS,
        default=attrs.Factory(
            lambda self: self.managers.get(self.topic) or MANAGERS.get(self.topic, AGENT), takes_self=True
        ),
        shown=f"<topic>_manager, or {MANAGERS['conductor']} for the topic conductor, or {AGENT}",
    )
    services: tuple[ServiceSettings, ...] = attrs.field(default=attrs.Factory(_only_service, takes_self=True))

    @property
    def api_is_local(self) -> bool:
        """Whether nobody but this host reaches the API."""
        return self.api_listen == "localhost" or ipaddress.ip_address(self.api_listen).is_loopback

    @property
    def supervised(self) -> bool:
        """Whether anything runs in worker processes, under a supervisor."""
        own = any(part.workers for part in self.services)
        served = any(self.api_named(name).workers for name in (*self.enabled_apis, *self.enabled_ssl_apis))
        return bool(self.workers or own or served or (self.api and self.api_workers))

    @property
    def database_in_state_dir(self) -> bool:
        """Whether the database is a file in the state directory, which is then made where it is missing."""
        return self.database_url.startswith(f"sqlite:///{self.state_dir}/")

    def api_named(self, name: str) -> APISettings:
        """Return what is set of one of the enabled_apis, or of another that is named so."""
        return self.apis.get(name) or APISettings(listen_port=API_PORTS.get(name, 0))


DEFINITIONS: Mapping[str, SettingDefinition] = MappingProxyType(
    {field.name: field.metadata[_METADATA_KEY] for field in attrs.fields(Settings) if _METADATA_KEY in field.metadata}
)
"""Every setting that has a value of its own, by name, in the order of the documentation."""

SERVICE_DEFINITIONS: Mapping[str, SettingDefinition] = MappingProxyType(
    {
        **{name: DEFINITIONS[name] for name in (*INHERITED, "binary", "topic", "manager")},
        "workers": SettingDefinition(
            help="Supervised processes of its own.", value_type=INTEGER, default="none", minimum=1, optional=True
        ),
        "options": SettingDefinition(
            help="Keyword arguments of the manager's constructor.", value_type=TABLE, default="none"
        ),
    }
)
"""What a ``[[service]]`` table may hold."""

SUFFIX_DEFINITIONS: Mapping[str, SettingDefinition] = MappingProxyType(
    {
        "_manager": SettingDefinition(
            help="Class of the manager that serves the topic.", value_type=CLASS, default=None
        ),
        "_listen": SettingDefinition(help="Address that the API listens on.", value_type=ADDRESS, default="127.0.0.1"),
        "_listen_port": SettingDefinition(
            help="Port that the API listens on; 0 takes a free one.", value_type=PORT, default="0"
        ),
        "_workers": SettingDefinition(
            help="Supervised processes that serve the API.",
            value_type=INTEGER,
            default="none",
            minimum=1,
            optional=True,
        ),
    }
)
"""What is known of every ``<topic>_manager`` and every ``<api>_listen``, by the end of the name."""
