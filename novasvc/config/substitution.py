"""Substitute ``$name`` in values of INI files by another setting, or by another program's option."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs

from novasvc.config.definition import text_of
from novasvc.config.errors import SettingError
from novasvc.config.files import ini_name
from novasvc.config.ini import lookup_order, substitute
from novasvc.config.masking import masked_url
from novasvc.config.model import DEFINITIONS, Settings
from novasvc.config.raw_value import RawValue, definition_of
from novasvc.config.sections.host import default_state_dir

Foreign = dict[tuple[str, str], str]
"""(section, option) -> value, for options that are not our settings."""

_ORIGINS_OF_DEFAULTS = ("state_dir", "binary")
"""Settings from which the defaults of other settings are computed."""

_DEEPEST = 30
"""Most references that follow each other; fewer than would exhaust Python's stack."""

_LONGEST = 100_000
"""Most characters of a value with its references replaced."""


class UndefinedOptionError(LookupError):
    """A value refers to an option that has no value. The argument is the name after the dollar sign."""


class ReferenceChainError(ValueError):
    """References lead in a circle, too deep, or to a text that is too long. The argument is the problem."""


@attrs.define
class Substitution:
    """Replaces references to options by their values, as oslo.config does.

    A reference to a setting yields its final value, from the source of highest precedence or the default.

    :param given: setting name -> the value of highest precedence.
    :param foreign: the options of INI files that are not our settings.
    :param environ: the variables that the default of state_dir depends on.
    """

    _given: Mapping[str, RawValue]
    _foreign: Foreign
    _environ: Mapping[str, str]
    _resolving: list[str] = attrs.field(factory=list, init=False)
    # Without it, options that refer to the next one twice would take exponential time.
    _resolved: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)

    def applied_to(self, given: RawValue) -> RawValue:
        """Return the value with its references replaced; values of other sources than INI files are left alone.

        :raises SettingError: a reference to an undefined option, or a circular reference.
        """
        if given.section is None or "$" not in given.value:
            return given
        try:
            return attrs.evolve(given, value=self.text(given.section, given.spelling, given.value))
        except UndefinedOptionError as error:
            (name,) = error.args
            # What looks like a reference may be part of a password.
            visible = not given.definition.secret or name in masked_url(given.value)
            named = f"${name}" if visible else "the name after a $"
            raise given.error(
                f"{named} is not an option with a value", "define it in this file, or write $$ for a dollar sign"
            ) from None
        except ReferenceChainError as error:
            raise given.error(str(error), "give one of these options a literal value") from None

    def text(self, section: str, name: str, value: str) -> str:
        """Return an option's value with the references in it replaced.

        :param section: section of the option; see :func:`novasvc.config.ini.normalized`.
        :raises UndefinedOptionError: a reference to an option that has no value.
        :raises ReferenceChainError: a reference that leads back to this option, or to too much.
        """
        here = f"{section}/{name}"
        if here in self._resolved:
            return self._resolved[here]
        if here in self._resolving:
            circle = " -> ".join([*self._resolving[self._resolving.index(here) :], here])
            raise ReferenceChainError(f"circular reference: {circle}")
        if len(self._resolving) == _DEEPEST:
            raise ReferenceChainError(f"more than {_DEEPEST} references follow each other, at last to {here}")
        self._resolving.append(here)
        try:
            text = substitute(value, lambda inner: self._look_up(section, inner))
        finally:
            self._resolving.pop()
        if len(text) > max(_LONGEST, len(value)):
            raise ReferenceChainError(f"the references in {here} make a text of more than {_LONGEST:,} characters")
        self._resolved[here] = text
        return text

    def _look_up(self, section: str, name: str) -> str:
        for group, option in lookup_order(section, name):
            found = self._option(group, option)
            if found is not None:
                return found
        raise UndefinedOptionError(name)

    def _option(self, section: str, option: str) -> str | None:
        """Return an option's value as text; None if there is no such option."""
        name = ini_name(section, option)
        if definition_of(name) is not None:
            value = self._final(name)
            # oslo.config substitutes str(value) for a boolean, so "True", and an empty text for None.
            return "" if value is None else str(value) if isinstance(value, bool) else text_of(value)
        value = self._foreign.get((section, option))
        return None if value is None else self.text(section, option, value)

    def _final(self, name: str) -> Any:
        given = self._given.get(name)
        if given is None:
            return self._default(name)
        given = self._substituted(given)
        # Errors in this value are reported for the value itself, not for the values that refer to it.
        try:
            return given.read()
        except SettingError:
            return given.value

    def _substituted(self, given: RawValue) -> RawValue:
        with suppress(UndefinedOptionError):  # as in _final
            if given.section is not None:
                return attrs.evolve(given, value=self.text(given.section, given.spelling, given.value))
        return given

    def _default(self, name: str) -> Any:
        if name not in DEFINITIONS:
            default = definition_of(name)
            return None if default is None or default.default in {None, "none"} else default.default
        made_of = {}
        for base in _ORIGINS_OF_DEFAULTS:
            if base in self._given:
                with suppress(SettingError):  # as in _final; then the default is made of the default
                    made_of[base] = self._substituted(self._given[base]).read()
        return getattr(Settings(**{"state_dir": default_state_dir(self._environ), **made_of}), name)
