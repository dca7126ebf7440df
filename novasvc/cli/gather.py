"""Print the answers of all services of a topic, as they arrive."""

import json
from typing import Any

import click

from novasvc.cli.output import printable


async def print_answers(gathering: Any, *, as_json: bool) -> int:
    """Print a line for each host, and who is missing.

    :param gathering: a :class:`novasvc.rpc.Gathering`.
    :param as_json: print a JSON object for each host: {"host", "result"} or {"host", "error": its class and text}.
    :return: the exit status: 1 if a host failed or is missing, or none has answered.
    """
    count = failures = 0
    async for reply in gathering:
        count += 1
        failures += reply.error is not None
        error = None if reply.error is None else f"{type(reply.error).__name__}: {reply.error}"
        if as_json:
            answer = {"result": reply.result} if error is None else {"error": error}
            click.echo(json.dumps({"host": reply.host, **answer}))
            continue
        host = "(host unknown)" if reply.host is None else printable(reply.host)
        if error is None:
            result = reply.result if isinstance(reply.result, str) else json.dumps(reply.result, ensure_ascii=False)
            click.echo(f"{host}: {printable(result)}")
        else:
            click.echo(f"{host}: {printable(error)}", err=True)
    missing = gathering.missing
    if missing:
        click.echo(f"no answer from {', '.join(map(printable, missing))}", err=True)
    elif missing is None:
        click.echo("who is missing is unknown: this host does not reach the registry", err=True)
    elif not gathering.expected:
        click.echo("who is missing is unknown: the registry of this host knows no such service that is up", err=True)
    return int(bool(failures or missing or not count))
