"""Where the command works: the settings, and the database that they name."""

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from novasvc.config import Configuration, load
from novasvc.interfaces import IServiceRegistry

_T = TypeVar("_T")


@attrs.define(slots=False)
class CommandContext:
    """What the options in front of the command's name say.

    :param files: configuration files; none is those of the environment.
    :param options: of the command line, by name; None is "not given".
    :param environ: the process's variables.
    """

    files: tuple[Path, ...]
    options: Mapping[str, Any]
    environ: Mapping[str, str]

    @cached_property
    def configuration(self) -> Configuration:
        """The settings, and where each is from.

        :raises ConfigurationError: they have an error.
        """
        return load(self.files, self.environ, self.options)

    def with_registry(self, function: Callable[[IServiceRegistry], Awaitable[_T]]) -> _T:
        """Do something with the registry, and return its result.

        :param function: takes the open registry.
        :raises MissingDatabaseError: no node has run here yet; nothing is created.
        :raises DatabaseError: the database cannot be used.
        """
        # Here, because Twisted's reactor and SQLAlchemy take most of a second, and `--help` needs neither.
        from novasvc.cli.registry import with_registry  # noqa: PLC0415

        return with_registry(self.configuration.settings, function)


pass_command_context = click.make_pass_decorator(CommandContext)
