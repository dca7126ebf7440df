"""Values as a source gives them, and how they are validated."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import attrs

from novasvc.config.definition import SettingDefinition, text_of
from novasvc.config.errors import SettingError
from novasvc.config.log_format import LOG_FORMAT
from novasvc.config.masking import masked, masked_url
from novasvc.config.model import DEFINITIONS, SUFFIX_DEFINITIONS
from novasvc.config.types import InvalidValueError

REFERENCE = "docs/settings.md lists all settings"


@attrs.frozen(kw_only=True)
class RawValue:
    """A value as a source gives it, not validated yet.

    :param name: name of the setting.
    :param spelling: the name as the source spells it: "NOVASVC_HOST", "--host", "state_path".
    :param definition: definition of the setting.
    :param value: the value; it may be secret.
    :param textual: the source knows only text, so "10" may be a number.
    :param origin: the source: "file /etc/novasvc.toml", "variable NOVASVC_HOST", "option --host".
    :param section: the section of an INI file, where ``$name`` is substituted; None for other sources.
    """

    name: str
    spelling: str
    definition: SettingDefinition
    value: Any = attrs.field(repr=False)
    textual: bool
    origin: str
    section: str | None = None

    def read(self) -> Any:
        """Return the validated value.

        :raises SettingError: the value is invalid.
        """
        definition, value = self.definition, self.value
        if definition.optional and self.textual and str(value).strip().lower() == "none":
            return None
        if self.section is None and isinstance(value, str):
            if definition.value_type is not LOG_FORMAT:
                self._refuse_nested_quotes(value.strip())
            value = value.strip() if self.textual else value
        try:
            value = definition.value_type.read(value, textual=self.textual)
        except InvalidValueError as refused:
            remedy = refused.remedy or f"give {definition.expected}"
            raise self.error(refused.problem, remedy) from None
        if definition.minimum is not None and value < definition.minimum and not (definition.zero and value == 0):
            problem = "is too small"
            raise self.error(problem, f"give {definition.expected}")
        return value

    def _refuse_nested_quotes(self, text: str) -> None:
        """Reject a value in quotes. Only INI files have quotes removed, so elsewhere they would become part of it."""
        if len(text) > 1 and text[0] in "\"'" and text[0] == text[-1]:
            problem = "is enclosed in quotes that would become part of the value"
            raise self.error(problem, "remove the inner quotes")

    def error(self, problem: str, remedy: str) -> SettingError:
        """Return an error about this value, secrets masked."""
        return SettingError(self.spelling, masked_text(self.value, self.definition), self.origin, problem, remedy)


def masked_text(value: object, definition: SettingDefinition) -> str:
    """Format a value for errors, secrets masked."""
    if definition.secret:
        return masked_url(str(value))
    if isinstance(value, str):
        return repr(masked(value))
    if isinstance(value, bool) or value is None:
        return text_of(value)
    return str(masked(value))


def definition_of(name: str) -> SettingDefinition | None:
    """Return the definition of a setting, suffix families included; None if there is no such setting."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    member = member_of(name)
    return SUFFIX_DEFINITIONS[member[1]] if member else None


def member_of(name: str) -> tuple[str, str] | None:
    """Split a setting of a suffix family: ("osapi_compute", "_listen"); None if the name has no such suffix."""
    for end in SUFFIX_DEFINITIONS:
        if name.endswith(end) and name != end:
            return name.removesuffix(end), end
    return None


def unknown_name_error(
    spelling: str,
    name: str,
    source: str,
    known: Iterable[str],
    what: str = "setting",
    spell: Callable[[str], str] = str,
) -> SettingError:
    """Return the error for an unknown name. It omits the value, which may be a misplaced secret.

    :param spelling: the name as the source spells it.
    :param name: the name as ``known`` spells names.
    :param known: the names that exist.
    :param what: "setting" or "table".
    :param spell: spells a suggested name as the source does.
    """
    names = {name: name for name in known}
    if what == "setting":
        names = {
            definition.nova.rpartition("/")[2]: own for own, definition in DEFINITIONS.items() if definition.nova
        } | names
    close = get_close_matches(name.lower(), names, n=1)
    remedy = f"did you mean {spell(names[close[0]])}?" if close else REFERENCE
    return SettingError(spelling, None, source, f"no such {what}", remedy)
