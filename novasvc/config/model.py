"""The settings of a process, composed of their sections.

The sections are the only table of the settings: the names of variables and options, their help and
``docs/settings.md`` are derived from their fields.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import attrs

from novasvc.config.definition import SettingDefinition, definition_in, setting
from novasvc.config.sections.api import APISection
from novasvc.config.sections.database import DatabaseSection
from novasvc.config.sections.host import HostSection
from novasvc.config.sections.liveness import LivenessSection
from novasvc.config.sections.periodic import PeriodicSection
from novasvc.config.sections.process import ProcessSection
from novasvc.config.sections.rabbit import RabbitSection
from novasvc.config.sections.rpc import RPCSection
from novasvc.config.sections.services import (
    AGENT,
    API_PORTS,
    INHERITED,
    MANAGERS,
    APISettings,
    ServiceSettings,
    default_topic,
)
from novasvc.config.sections.supervision import SupervisionSection
from novasvc.config.sections.wsgi import WSGISection
from novasvc.config.types import ADDRESS, CLASS, INTEGER, NAME, PORT, TABLE


def _single_service(settings: "Settings") -> tuple[ServiceSettings, ...]:
    inherited = {name: getattr(settings, name) for name in INHERITED}
    return (ServiceSettings(binary=settings.binary, topic=settings.topic, manager=settings.manager, **inherited),)


# attrs collects the fields of the last base first, so the bases are in the reverse order of the documentation. That
# order matters for defaults made of other settings: database_url needs state_dir, which is initialised before it.
# Without slots, because a class cannot have several bases that have slots.
@attrs.frozen(kw_only=True, slots=False)
class Settings(
    WSGISection,
    APISection,
    SupervisionSection,
    ProcessSection,
    PeriodicSection,
    LivenessSection,
    DatabaseSection,
    RabbitSection,
    RPCSection,
    HostSection,
):
    """The configuration of a process.

    :func:`novasvc.config.load` makes it from the sources and validates it; the constructor validates nothing.
    Times are in seconds.

    :param managers: topic -> dotted class name, from the settings ``<topic>_manager``.
    :param apis: API name -> settings, from ``<api>_listen``, ``<api>_listen_port`` and ``<api>_workers``; read it
        with :meth:`api_named`, which knows the defaults.
    :param services: the nodes that the process runs, from the ``[[service]]`` tables.
    """

    managers: Mapping[str, str] = attrs.field(factory=dict)
    apis: Mapping[str, APISettings] = attrs.field(factory=dict)
    binary: str = setting(
        "Binary name of the single service, if there is no [[service]] table.", NAME, default="novasvc-agent"
    )
    topic: str = setting(
        "RPC topic of the single service.",
        NAME,
        default=attrs.Factory(lambda self: default_topic(self.binary), takes_self=True),
        default_text='binary without its prefix "novasvc-" or "nova-"',
    )
    manager: str = setting(
        "Manager class of the single service.",
        CLASS,
        default=attrs.Factory(
            lambda self: self.managers.get(self.topic) or MANAGERS.get(self.topic, AGENT), takes_self=True
        ),
        default_text=f"<topic>_manager, or {MANAGERS['conductor']} for the topic conductor, or {AGENT}",
    )
    services: tuple[ServiceSettings, ...] = attrs.field(default=attrs.Factory(_single_service, takes_self=True))

    @property
    def supervised(self) -> bool:
        """Whether a supervisor and worker processes are needed."""
        own = any(service.workers for service in self.services)
        served = any(self.api_named(name).workers for name in (*self.enabled_apis, *self.enabled_ssl_apis))
        return bool(self.workers or own or served or (self.api and self.api_workers))

    @property
    def database_in_state_dir(self) -> bool:
        """Whether the database is a SQLite file in the state directory; the directory is then created if missing."""
        return self.database_url.startswith(f"sqlite:///{self.state_dir}/")

    @property
    def uses_broker(self) -> bool:
        """Whether messages go through a broker; False for ``memory:``, which keeps them in processes of one host."""
        return not self.transport_url.startswith("memory:")

    @property
    def socket_dir(self) -> Path:
        """The directory of the sockets by which the processes of a user reach each other without a broker."""
        return self.state_dir / "rpc"

    def api_named(self, name: str) -> APISettings:
        """Return the settings of one API; the defaults if none are given."""
        return self.apis.get(name) or APISettings(listen_port=API_PORTS.get(name, 0))


DEFINITIONS: Mapping[str, SettingDefinition] = MappingProxyType(
    {field.name: definition for field in attrs.fields(Settings) if (definition := definition_in(field)) is not None}
)
"""Setting name -> definition, in the order of the documentation; without [[service]] tables and suffix families."""

SERVICE_DEFINITIONS: Mapping[str, SettingDefinition] = MappingProxyType(
    {
        **{name: DEFINITIONS[name] for name in (*INHERITED, "binary", "topic", "manager")},
        "workers": SettingDefinition(
            help="Number of supervised processes of its own.",
            value_type=INTEGER,
            default="none",
            minimum=1,
            optional=True,
        ),
        "options": SettingDefinition(
            help="Keyword arguments for the manager's constructor.", value_type=TABLE, default="none"
        ),
    }
)
"""Key of a ``[[service]]`` table -> definition."""

SUFFIX_DEFINITIONS: Mapping[str, SettingDefinition] = MappingProxyType(
    {
        "_manager": SettingDefinition(help="Manager class that serves the topic.", value_type=CLASS, default=None),
        "_listen": SettingDefinition(help="Address that the API listens on.", value_type=ADDRESS, default="127.0.0.1"),
        "_listen_port": SettingDefinition(
            help="Port that the API listens on; 0 picks a free one.", value_type=PORT, default="0"
        ),
        "_workers": SettingDefinition(
            help="Number of supervised processes that serve the API.",
            value_type=INTEGER,
            default="none",
            minimum=1,
            optional=True,
        ),
    }
)
"""Suffix -> definition, for settings whose names are open-ended: ``<topic>_manager``, ``<api>_listen``."""
