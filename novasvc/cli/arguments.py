"""The arguments of a call on the command line: NAME=VALUE, where a VALUE may be JSON."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click

_LIKE_JSON = ('"', "[", "{")
_OF_PYTHON = {"True": "true", "False": "false", "None": "null"}


def read_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """Parse NAME=VALUE arguments; a value that is valid JSON is passed as JSON, any other as a string.

    A value that looks as if it was meant as JSON is passed as a string with a warning on standard error.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        problem = ""
        if not equals:
            problem = f"{text!r} is not NAME=VALUE: arguments are passed by name, such as item={text}."
        elif not name.isidentifier():
            problem = f"{text!r} is not NAME=VALUE: {name!r} cannot be the name of an argument."
        elif name in arguments:
            problem = f"The argument {name!r} is given twice."
        if problem:
            raise click.UsageError(problem, click.get_current_context(silent=True))
        try:
            arguments[name] = json.loads(value)
        except (ValueError, RecursionError) as error:
            arguments[name] = value
            doubt = _doubt(value, error)
            if doubt:
                click.echo(f"novasvc: {text} is sent as a string: {doubt}", err=True)
    return arguments


def _doubt(value: str, error: Exception) -> str:
    """Return why a value was perhaps not meant as a string; "" if nothing speaks against it."""
    if value in _OF_PYTHON:
        return f"JSON writes {_OF_PYTHON[value]}"
    if value.startswith("'"):
        return "JSON has no single quotes, and the shell did not remove these"
    if value.startswith(_LIKE_JSON):
        return f"it is not valid JSON ({error}). Put JSON in single quotes for the shell, such as 'sizes=[1, 2]'"
    return ""


def notes_on_types(arguments: Mapping[str, Any], problem: str) -> Iterable[str]:
    """Yield a note for each argument that a service refused and that was perhaps not sent as what it was meant to be.

    :param problem: of an InvalidArgumentsError; names the refused argument as "$.name" or "name".
    """
    for name, value in arguments.items():
        if isinstance(value, str) and name in problem and value[:1] in {*"0123456789-+."}:
            yield f"{name}={value} is not a number in JSON, so it was sent as a string"
        elif not isinstance(value, str | list | dict) and f"{name}: expected str, got" in problem:
            text = json.dumps(value)
            yield f"{text} is JSON, so it was not sent as a string: write {name}='\"{text}\"'"
