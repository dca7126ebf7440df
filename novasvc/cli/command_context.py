"""What all commands share: the settings, and access to the registry."""

import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

if TYPE_CHECKING:
    from novasvc.cli.fleet_connections import FleetConnections
    from novasvc.cli.thread_reactor import ThreadReactor
    from novasvc.config import Configuration
    from novasvc.interfaces import IServiceRegistry

_T = TypeVar("_T")


@attrs.define(slots=False)
class CommandContext:
    """The sources of the settings; click passes it to each command.

    :param files: configuration files; if empty, those of ``NOVASVC_CONFIG``.
    :param options: name of an option in front of the command's name -> value; None is "not given".
    :param environ: environment variables.
    """

    files: tuple[Path, ...]
    options: Mapping[str, Any]
    environ: Mapping[str, str]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "CommandContext":
        """Make a context of the options in front of the command's name, and of the environment.

        :param options: parameters of :func:`novasvc.cli.program.program` -> value.
        """
        given = {name.replace("_", "-"): value for name, value in options.items() if name not in {"files", "version"}}
        return cls(tuple(options.get("files") or ()), given, os.environ)

    @cached_property
    def configuration(self) -> "Configuration":
        """The settings and their origins, loaded on first use.

        :raises ConfigurationError: the settings have errors.
        """
        # Imported here, because `--help` and the completion of a command's name need no settings.
        from novasvc.config import load  # noqa: PLC0415

        return load(self.files, self.environ, self.options)

    def with_registry(
        self, function: Callable[["IServiceRegistry"], Awaitable[_T]], reactor: "ThreadReactor | None" = None
    ) -> _T:
        """Call a function with the open registry on a reactor, and return its result.

        :param function: takes the open registry.
        :param reactor: see :func:`novasvc.cli.registry.with_registry`.
        :raises ProblemError: there is no database file yet; none is created.
        :raises DatabaseError: the database cannot be used.
        """
        # Imported here, because SQLAlchemy takes most of a second, and `--help` does not need it.
        from novasvc.cli.registry import with_registry  # noqa: PLC0415

        return with_registry(self.configuration.settings, function, reactor)

    def with_fleet(self, function: Callable[["FleetConnections"], Coroutine[Any, Any, _T]]) -> _T:
        """Call a function with the connections to the fleet on the reactor, and return its result.

        :param function: takes the connections; the registry is open.
        :raises ProblemError: there is no database file yet; none is created.
        :raises DatabaseError: the database cannot be used.
        """
        from novasvc.cli.fleet_connections import with_fleet  # noqa: PLC0415 - as above

        return with_fleet(self.configuration.settings, function)


pass_command_context = click.make_pass_decorator(CommandContext)
