"""The settings of the environment: read, followed by services that have no others, and logged."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.logger import Logger

from novasvc.config import Configuration, load
from novasvc.config.definition import text_of
from novasvc.config.show import changes, rows
from novasvc.node.runtime import Runtime, process_runtime, set_process_runtime

_log = Logger()


def read_environment() -> Configuration:
    """Read the settings of the environment.

    :raises ConfigurationError: lists all their errors.
    """
    return load((), os.environ, {})


@contextmanager
def environment(configuration: Configuration, reactor: Any) -> Iterator[None]:
    """Make services that are given no runtime take these settings, from now on unless this context fails."""
    before = process_runtime(reactor)
    set_process_runtime(Runtime.from_settings(configuration.settings, reactor))
    try:
        yield
    except BaseException:
        set_process_runtime(before)
        raise


def log_changes(before: Configuration, after: Configuration) -> None:
    """Log changed settings, with secrets masked, and new warnings."""
    for row in changes(before, after):
        _log.info("reload: {setting} changed from {before} to {after}", **row)
    _log_warnings(warning for warning in after.warnings if warning not in before.warnings)


def log_settings(configuration: Configuration) -> None:
    """Log all settings at debug level, with secrets masked, and the warnings of their files."""
    _log_warnings(configuration.warnings)
    _log.debug("effective settings:")
    for row in rows(configuration):
        _log.debug(
            "{name} = {value} ({origin})", name=row["Setting"], value=text_of(row["Value"]), origin=row["Origin"]
        )


def _log_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        _log.warn("{warning}", warning=warning)
