"""Read configuration files: TOML with our names, INI with ours and Nova's."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import attrs

from novasvc.config.definition import SettingDefinition
from novasvc.config.errors import SettingError
from novasvc.config.ini import DEFAULT, Assignment, INIError, read_assignments
from novasvc.config.model import DEFINITIONS, SERVICE_DEFINITIONS
from novasvc.config.raw_value import RawValue, definition_of, unknown_name_error


def _ini_names() -> Mapping[str, Mapping[str, str]]:
    """Return section -> Nova's option name -> our setting. In DEFAULT our own names work as well."""
    sections: dict[str, dict[str, str]] = {DEFAULT: {name: name for name in DEFINITIONS}}
    for name, definition in DEFINITIONS.items():
        if definition.nova:
            section, _, nova = definition.nova.rpartition("/")
            sections.setdefault(section or DEFAULT, {})[nova] = name
    return sections


_INI_NAMES = _ini_names()

_MIN_SIMILARITY = 0.85
"""Similarity, from 0 to 1, from which an unknown name in an INI file counts as a typo of a setting of novasvc."""


@attrs.define
class FileContent:
    """The contents of a configuration file.

    :param values: values of settings.
    :param services: the values of each [[service]] table; None if the file has none.
    :param errors: unknown names and unreadable parts.
    :param foreign: (section, option) -> value of the options in an INI file that are not our settings, because
        ``$name`` may refer to them.
    :param warnings: a line that lists the foreign options.
    :param complete: False if the file could not be parsed, so that it may contain more settings.
    """

    values: list[RawValue] = attrs.field(factory=list)
    services: list[list[RawValue]] | None = None
    errors: list[SettingError] = attrs.field(factory=list)
    foreign: dict[tuple[str, str], str] = attrs.field(factory=dict, repr=False)
    warnings: list[str] = attrs.field(factory=list)
    complete: bool = True


def read_files(files: Sequence[Path]) -> Iterator[FileContent]:
    """Read the files in order of precedence, lowest first: TOML before INI, each format in the order given."""
    inis = [file for file in files if file.suffix in {".ini", ".conf"}]
    tomls = [file for file in files if file not in inis]
    return chain(map(_read_toml, tomls), map(_read_ini, inis))


def _read_toml(file: Path) -> FileContent:
    if file.suffix != ".toml":
        return _unreadable(
            file, "unknown file type", "name it *.toml, or *.ini or *.conf for an INI file as Nova has it"
        )
    try:
        with file.open("rb") as opened:
            document = tomllib.load(opened)
    except OSError as error:
        return _not_opened(file, error)
    except UnicodeDecodeError:
        return _unreadable(file, "not UTF-8", "save it as UTF-8")
    except tomllib.TOMLDecodeError as error:
        return _unreadable(file, f"invalid TOML: {error}", "correct this line")
    except (ValueError, RecursionError):
        return _unreadable(file, "a number is too long, or lists are nested too deep", "shorten the value")
    content = FileContent()
    services = document.pop("service", None)
    _take_table(document, f"file {file}", content)
    if services is not None:
        _take_services(services, file, content)
    return content


def _take_table(table: Mapping[str, Any], origin: str, content: FileContent) -> None:
    for name, value in table.items():
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
            content.errors.append(_unknown_table(name, origin))
        elif (definition := definition_of(name)) is None:
            content.errors.append(unknown_name_error(name, name, origin, DEFINITIONS))
        else:
            content.values.append(_typed(name, definition, value, origin))


def _unknown_table(name: str, origin: str) -> SettingError:
    if _ini_section(name) is not None:
        remedy = "put the settings above the first table: only INI files have sections"
        return SettingError(f"[{name}]", None, origin, "no such table", remedy)
    return unknown_name_error(f"[{name}]", name, origin, ["service"], "table", "[[{}]]".format)


def _take_services(services: object, file: Path, content: FileContent) -> None:
    if not isinstance(services, list) or not all(isinstance(table, dict) for table in services):
        problem, remedy = "is not an array of tables", "write each table as [[service]], with two brackets"
        content.errors.append(SettingError("service", None, f"file {file}", problem, remedy))
        content.complete = False
        return
    content.services = []
    for number, table in enumerate(services):
        origin = f"file {file}, table service[{number}]"
        content.errors += [
            unknown_name_error(name, name, origin, SERVICE_DEFINITIONS)
            for name in table
            if name not in SERVICE_DEFINITIONS
        ]
        content.services.append(
            [
                _typed(name, SERVICE_DEFINITIONS[name], value, origin)
                for name, value in table.items()
                if name in SERVICE_DEFINITIONS
            ]
        )


def _typed(name: str, definition: SettingDefinition, value: object, origin: str) -> RawValue:
    return RawValue(name=name, spelling=name, definition=definition, value=value, textual=False, origin=origin)


def _read_ini(file: Path) -> FileContent:
    try:
        with file.open(encoding="utf-8-sig") as opened:
            assignments = list(read_assignments(opened))
    except OSError as error:
        return _not_opened(file, error)
    except UnicodeDecodeError:
        return _unreadable(file, "not UTF-8", "save it as UTF-8")
    except INIError as error:
        return _unreadable(file, f"invalid INI: {error.problem} (at line {error.line})", "correct this line")
    content = FileContent()
    foreign: dict[str, str] = {}
    for each in assignments:
        name = ini_name(each.section, each.name)
        definition = definition_of(name)
        if definition is None:
            content.foreign[each.section, each.name] = each.value
            foreign.setdefault(*_foreign(each))
            continue
        content.values.append(
            RawValue(
                name=name,
                spelling=each.name,
                definition=definition,
                value=each.value,
                textual=True,
                origin=f"file {file}, section {each.section}",
                section=each.section,
            )
        )
    if foreign:
        what = "ignoring options that are not settings of novasvc"
        content.warnings.append(f"file {file}: {what}: {', '.join(foreign.values())}")
    return content


def ini_name(section: str, name: str) -> str:
    """Return the setting that an option of an INI file sets; "" if it sets none.

    :param section: see :func:`novasvc.config.ini.normalized`.
    """
    return _INI_NAMES.get(section, {}).get(name) or (name if section == DEFAULT else "")


def _foreign(assignment: Assignment) -> tuple[str, str]:
    """Return a key for a foreign option, or for its whole section if foreign, and its text for the warning."""
    section, name = assignment.section, assignment.name
    names = _INI_NAMES.get(section)
    if names is None:
        meant = _ini_section(section)
        return section, f"[{section}]" + (f" (did you mean [{meant}]?)" if meant else "")
    prefix = "" if section == DEFAULT else f"{section}/"
    return f"{section}/{name}", f"{prefix}{name}" + _hint(name, names, prefix + "{}")


def _ini_section(name: str) -> str | None:
    """Return the INI section that the name most resembles; None if none is similar enough."""
    known = {section.lower(): section for section in _INI_NAMES}
    close = get_close_matches(name.lower(), known, n=1, cutoff=_MIN_SIMILARITY)
    return known[close[0]] if close else None


def _hint(name: str, known: Iterable[str], spell: str) -> str:
    # Stricter than for other sources: Nova has many options whose names resemble ours a little.
    close = get_close_matches(name.lower(), known, n=1, cutoff=_MIN_SIMILARITY)
    return f" (did you mean {spell.format(close[0])}?)" if close else ""


def _not_opened(file: Path, error: OSError) -> FileContent:
    remedy = "give the path of a file that this user can read"
    return _unreadable(file, f"cannot be read: {error.strerror or error}", remedy)


def _unreadable(file: Path, problem: str, remedy: str) -> FileContent:
    error = SettingError(str(file), None, "configuration files", problem, remedy)
    return FileContent(errors=[error], complete=False)
