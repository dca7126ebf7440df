"""Errors in a configuration."""

from collections.abc import Sequence

import attrs

from novasvc.errors import NovasvcError


@attrs.define
class SettingError(NovasvcError):
    """One invalid, unknown or missing setting.

    :param setting: the name as the source spells it: "report_interval", "NOVASVC_HOST", "--host".
    :param value: the value as text, secrets masked; None if there is none.
    :param source: origin of the value: a file and its section or table, a variable, an option, "default".
    :param problem: what is wrong, without a full stop.
    :param remedy: what to do, without a full stop.
    """

    setting: str
    value: str | None
    source: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value}"
        return f"{self.setting}{given} (from {self.source}): {self.problem}; {self.remedy}"


@attrs.define
class ConfigurationError(NovasvcError):
    """All errors in a configuration.

    :param errors: at least one error.
    """

    errors: Sequence[SettingError]

    def __str__(self) -> str:
        if len(self.errors) == 1:
            return f"the configuration has an error: {self.errors[0]}"
        lines = "".join(f"\n  - {error}" for error in self.errors)
        return f"the configuration has {len(self.errors)} errors:{lines}"


SettingsError = ConfigurationError
"""Old name of :class:`ConfigurationError`; deprecated, to be removed in 1.0."""
