"""Load settings: merge all sources, validate the result, and report all errors together."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from novasvc.config.command_line import read_options
from novasvc.config.environment import config_files, read_environment
from novasvc.config.errors import ConfigurationError, SettingError
from novasvc.config.files import read_files
from novasvc.config.log_format import LOG_FORMAT
from novasvc.config.model import DEFINITIONS, Settings
from novasvc.config.raw_value import RawValue, member_of
from novasvc.config.rules import rule_violations
from novasvc.config.sections.host import default_state_dir
from novasvc.config.sections.services import API_PORTS, APISettings, ServiceSettings
from novasvc.config.service_tables import read_service, served_topics
from novasvc.config.substitution import Foreign, Substitution

_COMMENT = re.compile(r"\s[#;]")
_HAS_COMMENT = (
    "the value includes what looks like a comment after it, and any quotes before that, as in oslo.config; "
    "put the comment on a line of its own"
)


@attrs.frozen
class Configuration:
    """The settings of a process, and the origin of each.

    :param settings: validated.
    :param origins: name of the setting, as "host", "compute_manager" or "service[0].binary" -> "default",
        "file /etc/novasvc.toml", "variable NOVASVC_HOST" or "option --host".
    :param warnings: lines for the operator: ignored options of INI files, and values that include a comment.
    """

    settings: Settings
    origins: Mapping[str, str]
    warnings: Sequence[str] = ()


def load(files: Sequence[Path], environ: Mapping[str, str], options: Mapping[str, Any]) -> Configuration:
    """Load the settings from defaults, TOML, INI, environment and options, in this order; a later source wins.

    :param files: configuration files; if empty, those that the variable ``NOVASVC_CONFIG`` names.
    :param environ: usually ``os.environ``.
    :param options: long name of a command-line option -> value.
    :raises ConfigurationError: all errors in the configuration.
    """
    found = load_leniently(files, environ, options)
    if found.errors:
        raise ConfigurationError(found.errors)
    return found.configuration


@attrs.frozen
class LoadResult:
    """The valid part of a configuration, and its errors.

    :param configuration: an invalid setting has its default here; a [[service]] table is left out if its manager
        or the manager's options are invalid.
    :param errors: all errors; if there are none, the configuration may be used.
    :param invalid: names of the settings with an invalid value, so that their value here is not the one intended.
    :param complete: False if a file could not be read, so that any setting may be affected.
    """

    configuration: Configuration
    errors: Sequence[SettingError]
    invalid: Collection[str]
    complete: bool


def load_leniently(files: Sequence[Path], environ: Mapping[str, str], options: Mapping[str, Any]) -> LoadResult:
    """Load the settings as :func:`load` does, but return the errors together with the valid part."""
    return _Loader(environ).load(files, options)


@attrs.define
class _Loader:
    """One run of :func:`load_leniently`.

    :param errors: errors so far.
    :param values: setting name -> valid value.
    :param origins: setting name -> origin of its value, valid or not.
    :param invalid: names of the settings with an invalid value; rules about them would give misleading errors.
    :param warnings: see :class:`Configuration`.
    """

    environ: Mapping[str, str]
    errors: list[SettingError] = attrs.field(factory=list)
    values: dict[str, Any] = attrs.field(factory=dict)
    origins: dict[str, str] = attrs.field(factory=dict)
    invalid: set[str] = attrs.field(factory=set)
    warnings: list[str] = attrs.field(factory=list)
    complete: bool = True

    def load(self, files: Sequence[Path], options: Mapping[str, Any]) -> LoadResult:
        given, tables, foreign = self._gather(files, options)
        self._read(given, foreign, tables)
        # The top-level settings come first, because the [[service]] tables inherit from them.
        top_level = Settings(**{"state_dir": default_state_dir(self.environ), **self._fields()})
        settings = top_level if tables is None else attrs.evolve(top_level, services=self._services(tables, top_level))
        if tables is not None:
            self._reject_single_service(given.values())
        self.errors += rule_violations(settings, self.origins, self.invalid)
        defaults = dict.fromkeys(DEFINITIONS, "default")
        configuration = Configuration(settings, {**defaults, **self.origins}, tuple(self.warnings))
        return LoadResult(configuration, self.errors, self.invalid, self.complete)

    def _gather(
        self, files: Sequence[Path], options: Mapping[str, Any]
    ) -> tuple[dict[str, RawValue], list[list[RawValue]] | None, Foreign]:
        given: dict[str, RawValue] = {}
        foreign: Foreign = {}
        tables: list[list[RawValue]] | None = None
        for content in read_files(files or config_files(self.environ)):
            given.update((value.name, value) for value in content.values)
            tables = tables if content.services is None else content.services
            self.errors += content.errors
            self.warnings += content.warnings
            self.complete = self.complete and content.complete
            foreign.update(content.foreign)
        for values, errors in (read_environment(self.environ), read_options(options)):
            given.update((value.name, value) for value in values)
            self.errors += errors
        return given, tables, foreign

    def _read(
        self, given: Mapping[str, RawValue], foreign: Foreign, tables: Sequence[Sequence[RawValue]] | None
    ) -> None:
        substitution = Substitution(given, foreign, self.environ)
        # Errors in suffix families of INI files wait: whether the name is ours depends on the topics and APIs served,
        # which are known only when all values have been read.
        family_errors: list[tuple[str, str, SettingError]] = []
        for name, value in given.items():
            self.origins[name] = value.origin
            try:
                self.values[name] = substitution.applied_to(value).read()
                if _seems_commented(value):
                    self.warnings.append(f"{value.spelling} (from {value.origin}): {_HAS_COMMENT}")
            except SettingError as error:
                if _seems_commented(value):
                    error.remedy += f"; {_HAS_COMMENT}"
                member = None if name in DEFINITIONS or value.section is None else member_of(name)
                if member is None:
                    self.errors.append(error)
                    self.invalid.add(name)
                else:
                    family_errors.append((name, member[0], error))
        apis = (*self.values.get("enabled_apis", ()), *self.values.get("enabled_ssl_apis", ()))
        served = {*apis, *served_topics(self.values, tables)}
        for name, owner, wrong in family_errors:
            if owner in served:
                self.errors.append(wrong)
                self.invalid.add(name)
            else:
                # Most likely an option of another program: Nova has had volume_manager and ec2_workers.
                del self.origins[name]
                self.warnings.append(f"ignoring {wrong} (no service or API in these settings is named {owner!r})")

    def _fields(self) -> dict[str, Any]:
        """Return the arguments for Settings, from the valid values."""
        fields = {name: value for name, value in self.values.items() if name in DEFINITIONS}
        managers: dict[str, str] = {}
        apis: dict[str, dict[str, Any]] = {}
        for name, value in self.values.items():
            if name in DEFINITIONS or not (member := member_of(name)):
                continue
            owner, family = member
            if family == "_manager":
                managers[owner] = value
            else:
                port = {"listen_port": API_PORTS.get(owner, 0)}
                apis.setdefault(owner, port)[family.removeprefix("_")] = value
        made = {name: APISettings(**given) for name, given in apis.items()}
        return {**fields, "managers": managers, "apis": made}

    def _reject_single_service(self, given: Iterable[RawValue]) -> None:
        problem = "it configures the single service, but there are [[service]] tables"
        for value in given:
            if value.name in {"binary", "topic", "manager"}:
                remedy = "set it in the table, or remove the tables"
                self.errors.append(value.error(problem, remedy))

    def _services(self, tables: Sequence[Sequence[RawValue]], top_level: Settings) -> tuple[ServiceSettings, ...]:
        services = []
        for number, table in enumerate(tables):
            where = f"service[{number}]"
            self.origins.update((f"{where}.{given.name}", given.origin) for given in table)
            service, errors = read_service(where, table, top_level)
            if service is not None:
                services.append(service)
            if errors:
                self.errors += errors
                self.invalid.add("service")  # rules about the services would give misleading errors
        return tuple(services)


def _seems_commented(given: RawValue) -> bool:
    """Whether a value of an INI file seems to include a comment. Formats of log lines may contain such text."""
    commented = given.section is not None and given.definition.value_type is not LOG_FORMAT
    return commented and _COMMENT.search(str(given.value)) is not None
