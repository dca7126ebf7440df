"""The settings as command-line options."""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from novasvc.config.errors import SettingError
from novasvc.config.model import DEFINITIONS
from novasvc.config.raw_value import RawValue, definition_of, unknown_name_error
from novasvc.config.types import BOOLEAN


@attrs.frozen
class Option:
    """One command-line option.

    :param name: long name without dashes in front: "report-interval", "no-migrate".
    :param default: the setting's default as text; None for a flag.
    :param help: one or more sentences.
    """

    name: str
    default: str | None
    help: str

    @property
    def flag(self) -> bool:
        """Whether the option takes no value."""
        return self.default is None


def option_table() -> Iterator[Option]:
    """Yield an option for each setting; a boolean has two flags, ``--name`` and ``--no-name``.

    A parser should use the defaults only in its help: a default that it passed on would override the files.
    """
    for name, definition in DEFINITIONS.items():
        dashed = name.replace("_", "-")
        if definition.value_type is not BOOLEAN:
            unit = f" In {definition.unit}." if definition.unit else ""
            yield Option(dashed, definition.default or "", f"{definition.help}{unit} Default: {definition.default}.")
            continue
        yes, no = (" This is the default.", "") if definition.default == "true" else ("", " This is the default.")
        yield Option(dashed, None, definition.help + yes)
        yield Option(f"no-{dashed}", None, f"Disable --{dashed}.{no}")


def read_options(options: Mapping[str, Any]) -> tuple[list[RawValue], list[SettingError]]:
    """Return the values of the options, and the errors in their names.

    :param options: name, with dashes or underscores -> text, or value of the right type. None is "not given"; so is
        a flag's 0, which ``twisted.python.usage.Options`` stores for a flag that is not given. False means no.
    """
    given: dict[str, RawValue] = {}
    errors = []
    for key, value in options.items():
        spelling = _option(key)
        name, negated = _setting_of(key.replace("-", "_"))
        definition = definition_of(name)
        if value is None or (definition is not None and definition.value_type is BOOLEAN and _is_unset_flag(value)):
            continue
        if definition is None:
            errors.append(unknown_name_error(spelling, name, "the command line", DEFINITIONS, spell=_option))
        elif name in given:
            problem, remedy = f"{given[name].spelling} is also given", "give only one of them"
            errors.append(SettingError(spelling, None, "the command line", problem, remedy))
        else:
            given[name] = RawValue(
                name=name,
                spelling=spelling,
                definition=definition,
                value=_flag_value(value, negated=negated) if definition.value_type is BOOLEAN else value,
                textual=True,
                origin=f"option {spelling}",
            )
    return list(given.values()), errors


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _setting_of(name: str) -> tuple[str, bool]:
    """Return the setting that an option sets, and whether the option is the ``--no-`` flag."""
    positive = name.removeprefix("no_")
    definition = DEFINITIONS.get(positive)
    negated = positive != name and definition is not None and definition.value_type is BOOLEAN
    return positive if negated else name, negated


def _flag_value(value: object, *, negated: bool) -> object:
    """Return the boolean that a flag sets; text is parsed later."""
    return value if isinstance(value, str) else bool(value) is not negated


def _is_unset_flag(value: object) -> bool:
    return type(value) is int and value == 0
