"""Log the settings of a process at its start, and what a reload changed."""

from collections.abc import Iterable

from twisted.logger import Logger

from novasvc.config import Configuration
from novasvc.config.definition import text_of
from novasvc.config.show import changes, rows

_log = Logger()


def log_settings(configuration: Configuration) -> None:
    """Log all settings at debug level, with secrets masked, and the warnings about their files."""
    _log_warnings(configuration.warnings)
    _log.debug("effective settings:")
    for row in rows(configuration):
        _log.debug(
            "{name} = {value} ({origin})", name=row["Setting"], value=text_of(row["Value"]), origin=row["Origin"]
        )


def log_changes(before: Configuration, after: Configuration) -> list[dict[str, str]]:
    """Log the settings that a reload changed, with secrets masked, and new warnings.

    :return: the changes; see :func:`novasvc.config.show.changes`.
    """
    changed = changes(before, after)
    for row in changed:
        _log.info("reload: {setting} changed from {before} to {after}", **row)
    _log_warnings(warning for warning in after.warnings if warning not in before.warnings)
    return changed


def _log_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        _log.warn("{warning}", warning=warning)
