"""The commands of the control protocol: arguments, validation, execution."""

import json
import os
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from novasvc._version import __version__
from novasvc.interfaces import ISupervisor
from novasvc.workers.errors import SupervisionError


@attrs.define
class RequestError(SupervisionError):
    """A malformed request, or one with an unknown command or invalid arguments.

    :param problem: what is wrong.
    :param remedy: what to send instead.
    """

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


@attrs.define
class UnfinishedError(SupervisionError):
    """A command that was running when the supervisor shut down.

    :param command: the command with its arguments.
    """

    command: str

    def __str__(self) -> str:
        return f"the supervisor is shutting down; {self.command} may be incomplete"


@attrs.frozen
class _Argument:
    """An argument of a command.

    :param kind: description of valid values, for messages.
    :param fits: returns whether a JSON value is valid.
    :param required: must be given; an optional argument may also be null.
    """

    kind: str
    fits: Callable[[Any], bool]
    required: bool = False

    def takes(self, value: Any) -> bool:
        return (value is None and not self.required) or self.fits(value)


def _is_integer(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


_COMMANDS: Mapping[str, Mapping[str, _Argument]] = {
    "workers": {},
    "resize": {
        "count": _Argument("an integer >= 1", lambda value: _is_integer(value, 1), required=True),
        "server": _Argument("a string, or null", lambda value: isinstance(value, str)),
    },
    "drain": {"number": _Argument("an integer >= 0, or null", lambda value: _is_integer(value, 0))},
    "reload": {"wait": _Argument("true or false, or null for true", lambda value: isinstance(value, bool))},
    "restart": {},
    "inspect": {
        "what": _Argument('"describe" or "history"', lambda value: value in ("describe", "history"), required=True)
    },
    "dump": {},
    "metrics": {},
    "health": {},
    "who": {},
}


@attrs.frozen
class Command:
    """A valid command.

    :param arguments: all arguments of the command; None for those not given.
    """

    command: str
    arguments: Mapping[str, Any]

    @property
    def changes(self) -> bool:
        """Whether it changes the supervisor, and so is logged."""
        return self.command in {"resize", "drain", "reload", "restart"}

    @property
    def drains_all(self) -> bool:
        """Whether the supervisor shuts down after it."""
        return self.command == "restart" or (self.command == "drain" and self.arguments["number"] is None)

    @classmethod
    def parse(cls, line: bytes) -> "Command":
        """Parse and validate a line.

        :raises RequestError: the line is not a valid request.
        """
        names = ", ".join(_COMMANDS)
        example = 'a request is one line, such as {"command": "workers"}'
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the request is not JSON: {error}", example) from None
        if not isinstance(given, dict) or "command" not in given:
            raise RequestError('the request is not an object with the key "command"', example)
        command = given.pop("command")
        if not isinstance(command, str) or command not in _COMMANDS:
            raise RequestError(f"there is no command {reprlib.repr(command)}", f"there are: {names}")
        takes = _COMMANDS[command]
        for name, value in given.items():
            if name not in takes:
                raise RequestError(f"{command} takes no argument {reprlib.repr(name)}", _usage(command))
            if not takes[name].takes(value):
                raise RequestError(f"{command}: invalid {name} {reprlib.repr(value)}", f"give {takes[name].kind}")
        missing = [name for name, argument in takes.items() if argument.required and name not in given]
        if missing:
            raise RequestError(f"{command} lacks the argument {missing[0]}", _usage(command))
        return cls(command, {name: given.get(name) for name in takes})

    async def execute(self, supervisor: ISupervisor) -> Any:
        """Execute the command.

        :return: the result, as JSON types.
        :raises NovasvcError: the supervisor rejects it.
        """
        match self.command:
            case "workers":
                return list(supervisor.workers())
            case "resize":
                supervisor.resize(**self.arguments)
            case "drain":
                await supervisor.drain(**self.arguments)
            case "restart":
                supervisor.restart()
            case "reload" if self.arguments["wait"] is False:
                supervisor.begin_reload()
            case "reload" | "dump" | "metrics" | "health" as query:
                queries: Mapping[str, Callable[[], Any]] = {
                    "reload": supervisor.reload,
                    "dump": supervisor.dump,
                    "metrics": supervisor.metrics,
                    "health": supervisor.health,
                }
                return list(await queries[query]())
            case "inspect":
                return list(await supervisor.inspect(**self.arguments))
            case "who":
                return {"pid": os.getpid(), "version": __version__, "reloads": supervisor.reload_report()}
        return None

    def __str__(self) -> str:
        arguments = ", ".join(
            f"{name}={reprlib.repr(value)}" for name, value in self.arguments.items() if value is not None
        )
        return f"{self.command}({arguments})"


def _usage(command: str) -> str:
    takes = _COMMANDS[command]
    if not takes:
        return "it takes no arguments"
    return "it takes " + " and ".join(f"{name} ({argument.kind})" for name, argument in takes.items())
