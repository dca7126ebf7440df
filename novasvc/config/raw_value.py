"""What a source gives before it is checked, and how it is checked."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import attrs

from novasvc.config.definition import SettingDefinition, text_of
from novasvc.config.log_format import LOG_FORMAT
from novasvc.config.masking import masked, masked_url
from novasvc.config.model import DEFINITIONS, SUFFIX_DEFINITIONS
from novasvc.config.types import InvalidValueError
from novasvc.errors import SettingError

REFERENCE = "docs/settings.md has them all"


@attrs.frozen(kw_only=True)
class RawValue:
    """One value, as somebody gave it.

    :param name: the setting's.
    :param written: the name that the person used: "NOVASVC_HOST", "--host", "state_path".
    :param definition: what is known of the setting.
    :param value: not checked yet, and maybe secret.
    :param textual: the source has nothing but texts, so "10" may be a number.
    :param origin: where it is: "file /etc/novasvc.toml", "variable NOVASVC_HOST", "option --host".
    :param section: of an INI file, where ``$name`` in a value is the value of another option; None elsewhere.
    """

    name: str
    written: str
    definition: SettingDefinition
    value: Any = attrs.field(repr=False)
    textual: bool
    origin: str
    section: str | None = None

    def read(self) -> Any:
        """Return the value as its setting wants it.

        :raises SettingError: it is not what the setting takes.
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
        """Refuse a value whose quotes are a part of it; only INI files have them removed."""
        if len(text) > 1 and text[0] in "\"'" and text[0] == text[-1]:
            problem = "has quotes inside its quotes, and those would be a part of the value"
            raise self.error(problem, "leave the inner ones out")

    def error(self, problem: str, remedy: str) -> SettingError:
        """Make the error for this value."""
        return SettingError(self.written, shown(self.value, self.definition), self.origin, problem, remedy)


def shown(value: object, definition: SettingDefinition) -> str:
    """Write a value for a person, secrets masked."""
    if definition.secret:
        return masked_url(str(value))
    if isinstance(value, str):
        return repr(masked(value))
    if isinstance(value, bool) or value is None:
        return text_of(value)
    return str(masked(value))


def definition_of(name: str) -> SettingDefinition | None:
    """Return what is known of a setting, a ``<topic>_manager`` or ``<api>_listen``; None if there is no such name."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    member = member_of(name)
    return SUFFIX_DEFINITIONS[member[1]] if member else None


def member_of(name: str) -> tuple[str, str] | None:
    """Return whose a setting of a family is, and of which: ("osapi_compute", "_listen"); None if it is of none."""
    for end in SUFFIX_DEFINITIONS:
        if name.endswith(end) and name != end:
            return name.removesuffix(end), end
    return None


def unknown_name_error(
    written: str,
    name: str,
    source: str,
    known: Iterable[str],
    what: str = "setting",
    spell: Callable[[str], str] = str,
) -> SettingError:
    """Make the error for a name that nobody knows; its value may be a misplaced secret and is left out.

    :param written: as the person wrote it.
    :param name: the same, as ``known`` writes names.
    :param known: the names that there are.
    :param what: "setting", "table" or "section".
    :param spell: writes a name as this source does.
    """
    names = {name: name for name in known}
    if what == "setting":
        names = {
            definition.nova.rpartition("/")[2]: own for own, definition in DEFINITIONS.items() if definition.nova
        } | names
    close = get_close_matches(name.lower(), names, n=1)
    remedy = f"did you mean {spell(names[close[0]])}?" if close else REFERENCE
    return SettingError(written, None, source, f"there is no such {what}", remedy)
