"""List the settings of a configuration with values and origins, and compare two configurations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from novasvc.config.definition import text_of
from novasvc.config.load import Configuration
from novasvc.config.masking import masked, masked_url


def rows(configuration: Configuration) -> Iterator[dict[str, Any]]:
    """Yield a row for each setting; the settings of a service are named ``service[0].host``.

    :return: {"Setting": name, "Value": JSON, secrets masked, "Origin": text}.
    """
    origins = configuration.origins
    for name, value in _items(configuration):
        # A service inherits what it does not set from the top-level setting, whose origin then applies.
        origin = origins.get(name) or origins.get(name.rpartition(".")[2], "default")
        yield {"Setting": name, "Value": _shown(name, value), "Origin": origin}


def changes(before: Configuration, after: Configuration) -> list[dict[str, str]]:
    """Return the settings that differ between two configurations.

    :return: {"setting": name, "before": text, "after": text}; "none" if a setting is absent. Secrets are masked, so
        a changed password looks the same before and after.
    """
    old, new = dict(_items(before)), dict(_items(after))
    return [
        {
            "setting": name,
            "before": text_of(_shown(name, old.get(name))),
            "after": text_of(_shown(name, new.get(name))),
        }
        for name in old | new
        if old.get(name) != new.get(name)
    ]


def _items(configuration: Configuration) -> Iterator[tuple[str, Any]]:
    settings = configuration.settings
    tables = any(name.startswith("service[") for name in configuration.origins)
    for field in attrs.fields(type(settings)):
        value = getattr(settings, field.name)
        if field.name == "managers":
            for topic, manager in value.items():
                yield f"{topic}_manager", manager
        elif field.name == "apis":
            for name, api in value.items():
                yield from _parts(f"{name}_", api)
        elif field.name == "services":
            for number, service in enumerate(value if tables else ()):
                yield from _parts(f"service[{number}].", service)
        elif not (tables and field.name in {"binary", "topic", "manager"}):
            yield field.name, value


def _parts(prefix: str, table: Any) -> Iterator[tuple[str, Any]]:
    for part in attrs.fields(type(table)):
        yield prefix + part.name, getattr(table, part.name)


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, Path):
        value = str(value)
    return masked_url(value) if isinstance(value, str) and name.endswith("_url") else masked(value)
