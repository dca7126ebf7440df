"""Validate ``[[service]]`` tables, which inherit from the top-level settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from novasvc.config.errors import SettingError
from novasvc.config.model import Settings
from novasvc.config.raw_value import RawValue
from novasvc.config.sections.services import INHERITED, MANAGERS, ServiceSettings, default_topic

_RESERVED = {"self", "args", "binary", "topic", "manager", "runtime", "kwargs", *INHERITED}
"""Names that a manager's options cannot have: the service passes or uses arguments of these names itself."""


def read_service(
    where: str, table: Sequence[RawValue], top_level: Settings
) -> tuple[ServiceSettings | None, list[SettingError]]:
    """Validate a table.

    :param where: its name in errors: "service[0]".
    :return: the settings of the service, and the errors. An invalid value has its default, but without a valid binary,
        manager and manager's options there are no settings: None.
    """
    values: dict[str, Any] = {}
    errors: list[SettingError] = []
    for given in table:
        try:
            values[given.name] = given.read()
        except SettingError as error:
            errors.append(error)
    origins = {given.name: given.origin for given in table}
    options = values.get("options", {})
    for name in sorted(_RESERVED & options.keys()):
        problem, remedy = "the service uses this argument name itself", "rename the manager's argument"
        errors.append(SettingError(f"{where}.options.{name}", None, origins["options"], problem, remedy))
        del options[name]
    if (origins.keys() & {"binary", "topic", "manager", "options"}) - values.keys():
        return None, errors
    if not {"binary", "topic"} & values.keys():
        remedy = 'add binary = "novasvc-agent", or another name for the service'
        return None, [*errors, _missing(f"{where}.binary", remedy)]
    values.setdefault("binary", f"novasvc-{values.get('topic')}")
    topic = values.setdefault("topic", default_topic(values["binary"]))
    manager = top_level.managers.get(topic) or MANAGERS.get(topic)
    if values.setdefault("manager", manager) is None:
        remedy = f'add manager = "package.module.Class", or set {topic}_manager'
        return None, [*errors, _missing(f"{where}.manager", remedy)]
    return ServiceSettings(**{**{name: getattr(top_level, name) for name in INHERITED}, **values}), errors


def _missing(name: str, remedy: str) -> SettingError:
    return SettingError(name, None, "configuration files", "required, but missing", remedy)


def served_topics(values: Mapping[str, Any], tables: Sequence[Sequence[RawValue]] | None) -> set[str]:
    """Return the topics that the process serves.

    :param values: the valid top-level settings.
    :param tables: None if there are none: then ``values`` have the single service.
    """
    if tables is None:
        return {values.get("topic") or default_topic(values.get("binary", "novasvc-agent"))}
    named = [{given.name: str(given.value) for given in table} for table in tables]
    return {table.get("topic") or default_topic(table.get("binary", "")) for table in named}
