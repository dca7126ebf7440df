"""What ``$name`` in a value of an INI file stands for: another setting, or another program's option."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs

from novasvc.config.definition import text_of
from novasvc.config.files import ini_name
from novasvc.config.ini import UndefinedOptionError, candidates, substitute
from novasvc.config.masking import masked_url
from novasvc.config.model import DEFINITIONS, Settings
from novasvc.config.raw_value import RawValue, definition_of
from novasvc.config.sections.host import default_state_dir
from novasvc.errors import SettingError

Foreign = dict[tuple[str, str], str]
"""Values by section and name that are no settings of ours."""

_ORIGINS_OF_DEFAULTS = ("state_dir", "binary")
"""Settings that the defaults of others are made of."""


class CircularReferenceError(ValueError):
    """Values name each other in a circle.

    :param names: in the order in which they do; the last is the first.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(" -> ".join(names))


@attrs.define
class Substitution:
    """Puts the values of options in the place of their names, as oslo.config does.

    A name means what the setting is in the end, whichever source that is from, or its default.

    :param given: all settings that are given, by name.
    :param foreign: the options of INI files that are not ours.
    :param environ: what the default of state_dir depends on.
    """

    _given: Mapping[str, RawValue]
    _foreign: Foreign
    _environ: Mapping[str, str]
    _resolving: list[str] = attrs.field(factory=list, init=False)

    def applied_to(self, given: RawValue) -> RawValue:
        """Return a value with its names replaced; the same, unless it is one of an INI file.

        :raises SettingError: it has a name that no option has, or that leads back to itself.
        """
        if given.section is None or "$" not in given.value:
            return given
        try:
            return attrs.evolve(given, value=self.text(given.section, given.written, given.value))
        except UndefinedOptionError as error:
            # What looks like a name may be a part of a password.
            visible = not given.definition.secret or error.name in masked_url(given.value)
            named = f"${error.name}" if visible else "what follows a $ in it"
            raise given.error(
                f"{named} is no option that has a value", "give it one in this file, or write $$ for a dollar sign"
            ) from None
        except CircularReferenceError as error:
            raise given.error(f"it leads back to itself: {error}", "give one of them a value of its own") from None

    def text(self, section: str, name: str, value: str) -> str:
        """Return an option's value with the names in it replaced.

        :param section: of the option; see :func:`novasvc.config.ini.normalized`.
        :raises UndefinedOptionError: a name that no option has.
        :raises CircularReferenceError: a name that leads back to this option.
        """
        here = f"{section}/{name}"
        if here in self._resolving:
            raise CircularReferenceError([*self._resolving[self._resolving.index(here) :], here])
        self._resolving.append(here)
        try:
            return substitute(value, lambda inner: self._look_up(section, inner))
        finally:
            self._resolving.pop()

    def _look_up(self, section: str, name: str) -> str:
        for group, option in candidates(section, name):
            found = self._option(group, option)
            if found is not None:
                return found
        raise UndefinedOptionError(name)

    def _option(self, section: str, option: str) -> str | None:
        """Return an option's value as text; None if there is no such option."""
        name = ini_name(section, option)
        if definition_of(name) is not None:
            value = self._final(name)
            # As str does it, which is what oslo.config uses: "True", and nothing for None.
            return "" if value is None else str(value) if isinstance(value, bool) else text_of(value)
        value = self._foreign.get((section, option))
        return None if value is None else self.text(section, option, value)

    def _final(self, name: str) -> Any:
        given = self._given.get(name)
        if given is None:
            return self._default(name)
        # What is wrong with it is said where it is given.
        with suppress(UndefinedOptionError):
            if given.section is not None:
                given = attrs.evolve(given, value=self.text(given.section, given.written, given.value))
        try:
            return given.read()
        except SettingError:
            return given.value

    def _default(self, name: str) -> Any:
        if name not in DEFINITIONS:
            default = definition_of(name)
            return None if default is None or default.default in {None, "none"} else default.default
        made_of = {base: self._final(base) for base in _ORIGINS_OF_DEFAULTS if base in self._given}
        return getattr(Settings(**{"state_dir": default_state_dir(self._environ), **made_of}), name)
