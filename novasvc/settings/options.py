"""The settings as options of a command line."""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from novasvc.errors import SettingError
from novasvc.settings.given import Given, spec_of, unknown
from novasvc.settings.kinds import BOOLEAN
from novasvc.settings.model import SPECS


@attrs.frozen
class Option:
    """One option of a command line.

    :param name: without the dashes: "report-interval", "no-migrate".
    :param default: the setting's default, as text; None for a flag.
    :param help: a sentence.
    """

    name: str
    default: str | None
    help: str

    @property
    def is_flag(self) -> bool:
        """Tell whether it takes no value."""
        return self.default is None


def options() -> Iterator[Option]:
    """Return an option for each setting; a boolean has two flags, ``--name`` and ``--no-name``."""
    for name, spec in SPECS.items():
        dashed = name.replace("_", "-")
        if spec.kind is not BOOLEAN:
            unit = f" In {spec.unit}." if spec.unit else ""
            yield Option(dashed, spec.default or "", spec.meaning + unit)
            continue
        default = " The default." if spec.default == "true" else ""
        yield Option(dashed, None, spec.meaning + default)
        yield Option(f"no-{dashed}", None, f"The contrary of --{dashed}.")


def given_options(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given of the options that a ``twisted.python.usage.Options`` has parsed.

    Its own options are left out; so is a flag that was not given, and a value that is None (use
    None as every default there, so that a default does not hide what a file says).

    :param parsed: values by long name; flags are 0 or 1.
    :return: for :func:`novasvc.settings.load`, which wants only what was given.
    """
    given: dict[str, Any] = {}
    for option in options():
        value = parsed.get(option.name)
        if option.is_flag:
            if value:
                given[option.name.removeprefix("no-")] = not option.name.startswith("no-")
        elif value is not None:
            given[option.name] = value
    return given


def read_options(given: Mapping[str, Any]) -> tuple[list[Given], list[SettingError]]:
    """Return the values of the options, and the errors for names that nobody knows.

    :param given: by name, with dashes or underscores; texts, or values of the right type. None
        is "not given".
    """
    values, errors = [], []
    for key, value in given.items():
        name = key.replace("-", "_")
        written = "--" + key.replace("_", "-")
        if value is None:
            continue
        if spec_of(name) is None:
            errors.append(unknown(written, key.replace("_", "-"), "the command line", SPECS))
        else:
            values.append(Given(name=name, written=written, value=value, textual=True, origin=f"option {written}"))
    return values, errors
