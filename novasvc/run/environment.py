"""Read settings from the environment, and make them the process's default."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from novasvc.config import Configuration, load
from novasvc.node.runtime import Runtime, process_runtime, set_process_runtime


def load_from_environment() -> Configuration:
    """Read the settings of the environment.

    :raises ConfigurationError: lists all their errors.
    """
    return load((), os.environ, {})


@contextmanager
def default_settings(configuration: Configuration, reactor: Any) -> Iterator[None]:
    """Set the process's default settings; restore the previous ones if the block raises.

    Services that are given no runtime take the default settings.
    """
    before = process_runtime(reactor)
    set_process_runtime(Runtime.from_settings(configuration.settings, reactor))
    try:
        yield
    except BaseException:
        set_process_runtime(before)
        raise
