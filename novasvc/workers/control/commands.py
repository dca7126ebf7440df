"""What can be asked of a supervisor from outside: the commands, their arguments, and how they are answered."""

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
    """A request that nobody understands.

    :param problem: what is wrong with it.
    :param remedy: what would be right.
    """

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


@attrs.define
class UnfinishedError(SupervisionError):
    """A request that was under way when the supervisor ended.

    :param command: what was asked for.
    """

    command: str

    def __str__(self) -> str:
        return f"the supervisor is shutting down; {self.command} may be incomplete"


@attrs.frozen
class _Argument:
    """What a command takes.

    :param kind: what it is, for people.
    :param fits: tells whether a JSON value is that.
    :param required: it has to be given; otherwise null is the same as nothing.
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
    "reload": {},
    "dump": {},
    "metrics": {},
    "health": {},
    "who": {},
}


@attrs.frozen
class Command:
    """A request that was understood.

    :param arguments: all that the command takes, None for what was not given.
    """

    command: str
    arguments: Mapping[str, Any]

    @property
    def changes(self) -> bool:
        """Whether something is different afterwards."""
        return self.command in {"resize", "drain", "reload"}

    @property
    def drains_all(self) -> bool:
        """Whether the supervisor ends after this."""
        return self.command == "drain" and self.arguments["number"] is None

    @classmethod
    def parse(cls, line: bytes) -> "Command":
        """Understand a line.

        :raises RequestError: it is no request.
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
        """Do what is asked for.

        :return: JSON.
        :raises NovasvcError: the supervisor refuses.
        """
        match self.command:
            case "workers":
                return list(supervisor.workers())
            case "resize":
                supervisor.resize(**self.arguments)
            case "drain":
                await supervisor.drain(**self.arguments)
            case "reload" | "dump" | "metrics" | "health" as told:
                asked: Mapping[str, Callable[[], Any]] = {
                    "reload": supervisor.reload,
                    "dump": supervisor.dump,
                    "metrics": supervisor.metrics,
                    "health": supervisor.health,
                }
                return list(await asked[told]())
            case "who":
                return {"pid": os.getpid(), "version": __version__}
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
