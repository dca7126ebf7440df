"""What is known of a setting besides its value."""

from typing import Any

import attrs

from novasvc.config.masking import masked_url
from novasvc.config.types import ValueType


@attrs.frozen(kw_only=True)
class SettingDefinition:
    """What is known of one setting besides its name.

    :param help: a sentence for the person who sets it.
    :param value_type: what values it takes.
    :param default: its default as text; None if it must be given.
    :param unit: "seconds", or None for a bare value.
    :param minimum: the least number it may be.
    :param zero: 0 is a value, too, below the minimum: it means "never".
    :param optional: "none" is a value, too.
    :param secret: it may hold a password.
    :param nova: its name in Nova's INI files, where it is another one; "section/name" outside
        of DEFAULT.
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
        """Return what a value must be: "a whole number of seconds, at least 1"."""
        unit = f" of {self.unit}" if self.unit else ""
        least = "" if self.minimum is None else f", at least {self.minimum:g}{', or 0' if self.zero else ''}"
        none = ', or "none"' if self.optional else ""
        return f"{self.value_type.expected}{unit}{least}{none}"


def text_of(value: object) -> str:
    """Write a value as a person would in an option or an INI file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


_METADATA_KEY = "novasvc"


def setting(description: str, value_type: ValueType, *, default: Any, shown: str | None = None, **rest: Any) -> Any:
    """Make an attrs field that is a setting.

    :param default: the value, or an attrs Factory, which needs ``shown``.
    :param shown: the default in words.
    """
    definition = SettingDefinition(help=description, value_type=value_type, default=shown or text_of(default), **rest)
    return attrs.field(
        default=default, metadata={_METADATA_KEY: definition}, repr=masked_url if definition.secret else True
    )


def definition_in(field: "attrs.Attribute[Any]") -> SettingDefinition | None:
    """Return the definition that :func:`setting` put into a field; None for any other field."""
    definition: SettingDefinition | None = field.metadata.get(_METADATA_KEY)
    return definition
