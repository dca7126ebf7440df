"""Read settings from ``NOVASVC_*`` variables, and from the files that ``NOVASVC_*_FILE`` variables name."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from novasvc.config.definition import SettingDefinition
from novasvc.config.errors import SettingError
from novasvc.config.masking import masked_url
from novasvc.config.model import DEFINITIONS
from novasvc.config.raw_value import RawValue, definition_of, unknown_name_error

PREFIX = "NOVASVC_"
CONFIG = "NOVASVC_CONFIG"

# Kubernetes sets these variables in every container of a namespace that has a Service whose name begins with "novasvc",
# such as "novasvc-api". The value of a PORT is a URL there, and not the number that somebody meant for a setting.
_KUBERNETES = re.compile(
    r"(\w+_)?"
    r"(SERVICE_(HOST|PORT(_\w+)?)=|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=)"
)


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
        if key in {rest, CONFIG}:
            continue
        name, base = rest.lower(), rest.lower().removesuffix("_file")
        if definition := definition_of(name):
            origin = f"variable {key}"
            yield RawValue(
                name=name, spelling=key, definition=definition, value=environ[key], textual=True, origin=origin
            )
        elif definition := definition_of(base):
            yield _from_file(key, base, definition, environ)
        elif not _KUBERNETES.match(f"{rest}={environ[key]}"):
            yield unknown_name_error(key, name, "the environment", DEFINITIONS, spell=variable)


def _from_file(
    key: str, name: str, definition: SettingDefinition, environ: Mapping[str, str]
) -> RawValue | SettingError:
    direct, path = variable(name), environ[key]
    # The value itself may have been given by mistake.
    shown = masked_url(path) if definition.secret or "://" in path else path
    if direct in environ:
        return SettingError(key, shown, "the environment", f"{direct} is also set", "set only one of them")
    file = Path(path)
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot read the file: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        remedy = "give the path of a readable file that contains the value"
        return SettingError(key, shown, "the environment", problem, remedy)
    origin = f"file {file}, named by variable {key}"
    return RawValue(name=name, spelling=key, definition=definition, value=value, textual=True, origin=origin)
