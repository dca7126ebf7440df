"""Put the sources together, check the whole, and report everything that is wrong at once."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from novasvc.errors import SettingError, SettingsError
from novasvc.settings.environment import config_files, read_environment
from novasvc.settings.files import read_files
from novasvc.settings.given import Given, member_of
from novasvc.settings.model import (
    API_PORTS,
    INHERITED,
    MANAGERS,
    SPECS,
    APISettings,
    ServiceSettings,
    Settings,
    default_state_dir,
    default_topic,
)
from novasvc.settings.options import read_options
from novasvc.settings.rules import broken_rules
from novasvc.settings.substitution import Foreign, Substitution

_TAKEN = {"self", "args", "binary", "topic", "manager", "runtime", "kwargs", *INHERITED}
"""Names that a manager's options cannot have: see :class:`novasvc.service.Service`."""


@attrs.frozen
class Configuration:
    """The settings, and where each came from.

    :param settings: checked.
    :param origins: by setting, "<topic>_manager" and "service[0].binary": "default",
        "file /etc/novasvc.toml", "variable NOVASVC_HOST", "option --host".
    :param warnings: a line for each file that has what is no setting, and may have it.
    """

    settings: Settings
    origins: Mapping[str, str]
    warnings: Sequence[str] = ()


def load(files: Sequence[Path], environ: Mapping[str, str], options: Mapping[str, Any]) -> Configuration:
    """Load the settings: defaults, TOML, INI, environment, options; a later one wins.

    :param files: ``--config``; if there are none, those of the variable ``NOVASVC_CONFIG``.
    :param environ: usually ``os.environ``.
    :param options: what was given on the command line, by long name.
    :raises SettingsError: with everything that is wrong.
    """
    return _Loading(environ).load(files, options)


@attrs.define
class _Loading:
    """One run of :func:`load`.

    :param errors: what was wrong so far.
    :param values: good values by name.
    :param origins: of the values that were given, good or not.
    :param bad: names of settings whose value is wrong; rules about them would mislead.
    :param warnings: see :class:`Configuration`.
    """

    environ: Mapping[str, str]
    errors: list[SettingError] = attrs.field(factory=list)
    values: dict[str, Any] = attrs.field(factory=dict)
    origins: dict[str, str] = attrs.field(factory=dict)
    bad: set[str] = attrs.field(factory=set)
    warnings: list[str] = attrs.field(factory=list)

    def load(self, files: Sequence[Path], options: Mapping[str, Any]) -> Configuration:
        given, tables, foreign = self._gather(files, options)
        self._read(given, foreign, tables)
        alone = Settings(**{"state_dir": default_state_dir(self.environ), **self._fields()})
        settings = alone if tables is None else attrs.evolve(alone, services=self._services(tables, alone))
        if tables is not None:
            self._no_single_service(given.values())
        self.errors += broken_rules(settings, self.origins, self.bad)
        if self.errors:
            raise SettingsError(self.errors)
        defaults = dict.fromkeys(SPECS, "default")
        return Configuration(settings, {**defaults, **self.origins}, tuple(self.warnings))

    def _gather(
        self, files: Sequence[Path], options: Mapping[str, Any]
    ) -> tuple[dict[str, Given], list[list[Given]] | None, Foreign]:
        given: dict[str, Given] = {}
        foreign: Foreign = {}
        tables: list[list[Given]] | None = None
        for content in read_files(files or config_files(self.environ)):
            given.update((value.name, value) for value in content.values)
            tables = tables if content.services is None else content.services
            self.errors += content.errors
            self.warnings += content.warnings
            foreign.update(content.foreign)
        for values, errors in (read_environment(self.environ), read_options(options)):
            given.update((value.name, value) for value in values)
            self.errors += errors
        return given, tables, foreign

    def _read(self, given: Mapping[str, Given], foreign: Foreign, tables: Sequence[Sequence[Given]] | None) -> None:
        substitution = Substitution(given, foreign, self.environ)
        doubtful: list[tuple[str, str, SettingError]] = []
        for name, value in given.items():
            self.origins[name] = value.origin
            try:
                self.values[name] = substitution.applied_to(value).read()
            except SettingError as error:
                member = None if name in SPECS or value.section is None else member_of(name)
                if member is None:
                    self.errors.append(error)
                    self.bad.add(name)
                else:
                    doubtful.append((name, member[0], error))
        served = self._served(tables)
        for name, owner, wrong in doubtful:
            if owner in served:
                self.errors.append(wrong)
                self.bad.add(name)
            else:
                # Another program's, most likely: Nova has had options such as volume_manager and ec2_workers.
                del self.origins[name]
                self.warnings.append(f"ignoring {wrong} (no service or API in these settings is called {owner!r})")

    def _served(self, tables: Sequence[Sequence[Given]] | None) -> set[str]:
        """Return the topics and APIs that the settings name."""
        served = {*self.values.get("enabled_apis", ()), *self.values.get("enabled_ssl_apis", ())}
        if tables is None:
            served.add(self.values.get("topic") or default_topic(self.values.get("binary", "novasvc-agent")))
            return served
        for table in tables:
            named = {given.name: str(given.value) for given in table}
            served.add(named.get("topic") or default_topic(named.get("binary", "")))
        return served

    def _fields(self) -> dict[str, Any]:
        """Return the arguments of Settings."""
        fields = {name: value for name, value in self.values.items() if name in SPECS}
        managers: dict[str, str] = {}
        apis: dict[str, dict[str, Any]] = {}
        for name, value in self.values.items():
            if name in SPECS or not (member := member_of(name)):
                continue
            owner, family = member
            if family == "_manager":
                managers[owner] = value
            else:
                port = {"listen_port": API_PORTS.get(owner, 0)}
                apis.setdefault(owner, port)[family.removeprefix("_")] = value
        made = {name: APISettings(**given) for name, given in apis.items()}
        return {**fields, "managers": managers, "apis": made}

    def _no_single_service(self, given: Iterable[Given]) -> None:
        problem = "it is about the only service, but there are [[service]] tables"
        for value in given:
            if value.name in {"binary", "topic", "manager"}:
                remedy = "say it in the table, or take the tables away"
                self.errors.append(value.error(problem, remedy))

    def _services(self, tables: Sequence[Sequence[Given]], alone: Settings) -> tuple[ServiceSettings, ...]:
        services = [self._service(f"service[{number}]", table, alone) for number, table in enumerate(tables)]
        if None in services:
            self.bad.add("service")
        return tuple(service for service in services if service is not None)

    def _service(self, where: str, table: Sequence[Given], alone: Settings) -> ServiceSettings | None:
        """Read a [[service]] table; None if something is wrong with it."""
        wrong = len(self.errors)
        values: dict[str, Any] = {}
        for given in table:
            self.origins[f"{where}.{given.name}"] = given.origin
            try:
                values[given.name] = given.read()
            except SettingError as error:
                self.errors.append(error)
        for name in sorted(_TAKEN & values.get("options", {}).keys()):
            problem, remedy = "the service itself takes an argument of this name", "let the manager call it otherwise"
            self.errors.append(
                SettingError(f"{where}.options.{name}", None, self.origins[f"{where}.options"], problem, remedy)
            )
        if len(self.errors) > wrong:
            return None
        if not {"binary", "topic"} & values.keys():
            self._missing(where, "binary", 'add binary = "novasvc-agent", or what the service is called')
            return None
        values.setdefault("binary", f"novasvc-{values.get('topic')}")
        topic = values.setdefault("topic", default_topic(values["binary"]))
        manager = alone.managers.get(topic) or MANAGERS.get(topic)
        if values.setdefault("manager", manager) is None:
            self._missing(where, "manager", f'add manager = "package.module.Class", or set {topic}_manager')
            return None
        return ServiceSettings(**{**{name: getattr(alone, name) for name in INHERITED}, **values})

    def _missing(self, where: str, name: str, remedy: str) -> None:
        self.errors.append(SettingError(f"{where}.{name}", None, "nowhere", "it is missing", remedy))
