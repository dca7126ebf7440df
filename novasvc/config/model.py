"""The settings of a process, composed of their sections.

The sections are the only table of the settings: the names of variables and options, their help and
``docs/settings.md`` are derived from their fields.
"""

from collections.abc import Mapping
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


def _only_service(settings: "Settings") -> tuple[ServiceSettings, ...]:
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
    """The configuration of a process. :func:`novasvc.config.load` makes it and checks it.

    Times are in seconds. Made directly, it takes what it is given.

    :param managers: dotted class names by topic, from the settings ``<topic>_manager``.
    :param apis: by name, from ``<api>_listen``, ``<api>_listen_port`` and ``<api>_workers``; see :meth:`api_named`.
    :param services: the nodes that the process runs, from the ``[[service]]`` tables.
    """

    managers: Mapping[str, str] = attrs.field(factory=dict)
    apis: Mapping[str, APISettings] = attrs.field(factory=dict)
    binary: str = setting("Name of the only service, if there is no [[service]] table.", NAME, default="novasvc-agent")
    topic: str = setting(
        "Topic of the only service.",
        NAME,
        default=attrs.Factory(lambda self: default_topic(self.binary), takes_self=True),
        shown='what follows "novasvc-" or "nova-" in binary',
    )
    manager: str = setting(
        "Class of the only service's manager.",
        CLASS,
        default=attrs.Factory(
            lambda self: self.managers.get(self.topic) or MANAGERS.get(self.topic, AGENT), takes_self=True
        ),
        shown=f"<topic>_manager, or {MANAGERS['conductor']} for the topic conductor, or {AGENT}",
    )
    services: tuple[ServiceSettings, ...] = attrs.field(default=attrs.Factory(_only_service, takes_self=True))

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
    {field.name: definition for field in attrs.fields(Settings) if (definition := definition_in(field)) is not None}
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
