"""Definition of a setting: type, default, bounds and help."""

from typing import Any

import attrs

from novasvc.config.masking import masked_url
from novasvc.config.types import ValueType


@attrs.frozen(kw_only=True)
class SettingDefinition:
    """Type, default, bounds and help of one setting.

    :param help: one or more sentences for `--help` and docs/settings.md.
    :param value_type: type of its values.
    :param default: the default as text; None if the setting is required.
    :param unit: "seconds", or None.
    :param minimum: least value of a number.
    :param zero: whether 0 is allowed although it is below the minimum; it means "disabled".
    :param optional: whether "none" is allowed.
    :param secret: whether the value may contain a password.
    :param nova: its name in Nova's INI files, if that differs: "name" in DEFAULT, "section/name" elsewhere.
    """

    help: str
    value_type: ValueType
    default: str | None
    unit: str | None = None
    minimum: float | None = None
    zero: bool = False
    optional: bool = False
    secret: bool = False
    nova: str | None = None

    @property
    def expected(self) -> str:
        """Describe the valid values: "an integer of seconds, at least 1"."""
        unit = f" of {self.unit}" if self.unit else ""
        least = "" if self.minimum is None else f", at least {self.minimum:g}{', or 0' if self.zero else ''}"
        none = ', or "none"' if self.optional else ""
        return f"{self.value_type.expected}{unit}{least}{none}"


def text_of(value: object) -> str:
    """Format a value as it is written in an option or an INI file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


_METADATA_KEY = "novasvc"


def setting(
    description: str, value_type: ValueType, *, default: Any, default_text: str | None = None, **rest: Any
) -> Any:
    """Declare an attrs field that is a setting.

    :param default: the value, or an attrs Factory.
    :param default_text: the default in words, for the help; required for a Factory.
    :param rest: see :class:`SettingDefinition`.
    """
    definition = SettingDefinition(
        help=description, value_type=value_type, default=default_text or text_of(default), **rest
    )
    return attrs.field(
        default=default, metadata={_METADATA_KEY: definition}, repr=masked_url if definition.secret else True
    )


def definition_in(field: "attrs.Attribute[Any]") -> SettingDefinition | None:
    """Return the definition that :func:`setting` put into a field; None for any other field."""
    definition: SettingDefinition | None = field.metadata.get(_METADATA_KEY)
    return definition
