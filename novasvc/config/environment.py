"""Read settings from ``NOVASVC_*`` variables, and from the files that ``NOVASVC_*_FILE`` variables name."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from novasvc.config.definition import SettingDefinition
from novasvc.config.errors import SettingError
from novasvc.config.model import DEFINITIONS
from novasvc.config.raw_value import RawValue, definition_of, unknown_name_error

PREFIX = "NOVASVC_"
CONFIG = "NOVASVC_CONFIG"

# Kubernetes sets these variables in every container of a namespace that has a Service named "novasvc".
_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")


def variable(name: str) -> str:
    """Return the name of the variable that holds a setting."""
    return PREFIX + name.upper()


def config_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the configuration files that ``NOVASVC_CONFIG`` names, separated by colons."""
    return tuple(Path(part) for part in environ.get(CONFIG, "").split(":") if part)


def read_environment(environ: Mapping[str, str]) -> tuple[list[RawValue], list[SettingError]]:
    """Return the values of the variables, and the errors in their names and files."""
    values, errors = [], []
    for outcome in _read(environ):
        if isinstance(outcome, RawValue):
            values.append(outcome)
        else:
            errors.append(outcome)
    return values, errors


def _read(environ: Mapping[str, str]) -> Iterator[RawValue | SettingError]:
    for key in sorted(environ):
        rest = key.removeprefix(PREFIX)
        if key in {rest, CONFIG} or _KUBERNETES.fullmatch(rest):
            continue
        name, base = rest.lower(), rest.lower().removesuffix("_file")
        if definition := definition_of(name):
            origin = f"variable {key}"
            yield RawValue(
                name=name, spelling=key, definition=definition, value=environ[key], textual=True, origin=origin
            )
        elif definition := definition_of(base):
            yield _from_file(key, base, definition, environ)
        else:
            yield unknown_name_error(key, name, "the environment", DEFINITIONS, spell=variable)


def _from_file(
    key: str, name: str, definition: SettingDefinition, environ: Mapping[str, str]
) -> RawValue | SettingError:
    direct = variable(name)
    if direct in environ:
        return SettingError(key, environ[key], "the environment", f"{direct} is also set", "set only one of them")
    file = Path(environ[key])
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot read the file: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        return SettingError(
            key, environ[key], "the environment", problem, "give the path of a readable file that contains the value"
        )
    origin = f"file {file}, named by variable {key}"
    return RawValue(name=name, spelling=key, definition=definition, value=value, textual=True, origin=origin)
