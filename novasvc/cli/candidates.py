"""Candidates for shell completion, from what runs now: topics, hosts, methods, arguments, services, workers.

They appear while somebody types. So each search has a short deadline, and whatever goes wrong, there are no candidates
and no message.
"""

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import click
from click.shell_completion import CompletionItem

from novasvc.cli.command_context import CommandContext

_SOCKETS = 0.5
"""Seconds for the processes of this host to say what they serve."""

_CALL = 1.0
"""Seconds for a service to describe its methods."""

_ALL = 2.0
"""Seconds for a broker or a database, after which the process ends. Imports, however slow the host, are not counted."""

_SAFE = re.compile(r"[\w.:@+=-]+")
"""What a shell takes as it is. A name from another host may have other characters."""

_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _candidates(find: Callable[[CommandContext, click.Context, str], Iterable[str | CompletionItem]]) -> _Complete:
    """Make a function for ``shell_complete`` of one that returns candidates, or raises anything."""

    @wraps(find)
    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
                found = list(find(CommandContext.of(context.find_root().params), context, incomplete))
        except (Exception, SystemExit, KeyboardInterrupt):  # noqa: BLE001 - see the module
            return []
        items = [each if isinstance(each, CompletionItem) else CompletionItem(each) for each in found]
        return [item for item in items if item.value.startswith(incomplete) and _SAFE.fullmatch(item.value)]

    return complete


@contextmanager
def _deadline() -> Iterator[None]:
    """End this process, without a message, if the block takes too long: a thread may be blocked by a database."""

    def expire(_number: int, _frame: FrameType | None) -> None:
        os._exit(0)

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, _ALL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@_candidates
def targets(context: CommandContext, _click: click.Context, incomplete: str) -> Iterable[str]:
    """Return topics; after the dot TOPIC.HOST."""
    found = _topics(context)
    if "." not in incomplete:
        return sorted(found)
    return sorted(f"{topic}.{host}" for topic, hosts in found.items() for host in hosts)


@_candidates
def topics(context: CommandContext, _command: click.Context, _incomplete: str) -> Iterable[str]:
    """Return the topics of the registered services."""
    return sorted(_topics(context))


@_candidates
def hosts(context: CommandContext, command: click.Context, _incomplete: str) -> Iterable[str]:
    """Return the hosts that serve the topic of the command; all hosts if click has not read the topic yet."""
    topic = command.params.get("target")
    return sorted({host for name, hosts in _topics(context).items() if topic in {None, name} for host in hosts})


@_candidates
def methods(context: CommandContext, command: click.Context, _incomplete: str) -> Iterable[CompletionItem]:
    """Return the methods of the target of the command."""
    rows = _methods(context, command)
    return [CompletionItem(row["method"], help=row["summary"]) for row in rows]


@_candidates
def arguments(context: CommandContext, command: click.Context, incomplete: str) -> Iterable[str]:
    """Return NAME= for each argument of the method that is not given yet."""
    # bash splits words at "=": behind it is a value.
    position, words = int(os.environ.get("COMP_CWORD", "0")), os.environ.get("COMP_WORDS", "").split("\n")
    if "=" in incomplete or "=" in words[max(position - 1, 0) : position + 1]:
        return []
    from novasvc.cli.hints import argument_names  # noqa: PLC0415 - others do not need it

    given = {text.partition("=")[0] for text in command.params["arguments"] or ()}
    rows = [row for row in _methods(context, command) if row["method"] == command.params["method"]]
    return [f"{name}=" for row in rows for name in argument_names(row["signature"]) if name not in given]


@_candidates
def services(context: CommandContext, _command: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Return the hosts and ids of the registered services; their UUIDs once one is begun."""
    records = _records(context)
    found = {record.host: "" for record in records}
    found |= {str(record.id): record.name for record in records}
    if incomplete:
        found |= {record.uuid: record.name for record in records}
    return [CompletionItem(value, help=name) for value, name in found.items()]


@_candidates
def service_hosts(context: CommandContext, _command: click.Context, _incomplete: str) -> Iterable[str]:
    """Return the hosts of the registered services."""
    return sorted({record.host for record in _records(context)})


@_candidates
def binaries(context: CommandContext, command: click.Context, _incomplete: str) -> Iterable[str]:
    """Return the binaries of the registered services, on the host if the command has one."""
    host = command.params.get("host") or command.params.get("service")
    return sorted({record.binary for record in _records(context) if host in {None, record.host}})


@_candidates
def worker_numbers(context: CommandContext, _command: click.Context, _incomplete: str) -> Iterable[CompletionItem]:
    """Return the numbers of the workers of this host's supervisor."""
    return [CompletionItem(str(row["number"]), help=str(row["server"])) for row in _workers(context)]


@_candidates
def servers(context: CommandContext, _command: click.Context, _incomplete: str) -> Iterable[str]:
    """Return the names of the servers of this host's supervisor."""
    return sorted({str(row["server"]) for row in _workers(context)})


def _topics(context: CommandContext) -> dict[str, set[str]]:
    settings = context.configuration.settings
    if not settings.uses_broker:
        from novasvc.transport.local.directory import served_topics  # noqa: PLC0415 - others do not need it

        return served_topics(settings.socket_dir, _SOCKETS)
    found: dict[str, set[str]] = {}
    for record in _records(context):
        if record.topic:
            found.setdefault(record.topic, set()).add(record.host)
    return found


def _records(context: CommandContext) -> list[Any]:
    from novasvc.cli.registry import with_registry  # noqa: PLC0415 - others do not need it

    async def read(registry: Any) -> list[Any]:
        return list(await registry.list(None, None, None))

    settings = context.configuration.settings
    with _deadline():
        return with_registry(settings, read)


def _methods(context: CommandContext, command: click.Context) -> list[dict[str, Any]]:
    from novasvc.cli.hints import described_methods  # noqa: PLC0415 - others do not need it
    from novasvc.cli.remote import parse_target, prepare_imports, run_with_client  # noqa: PLC0415

    target = parse_target(command.params["target"], command.params.get("server"))

    async def read(client: Any, _reactor: Any) -> list[dict[str, Any]]:
        rows = await described_methods(client.prepare(timeout=_CALL))
        return [row for row in rows if row["namespace"] == command.params.get("namespace")]

    settings = context.configuration.settings
    prepare_imports(settings)
    with _deadline():
        return run_with_client(settings, attrs.evolve(target, fanout=False), read)


def _workers(context: CommandContext) -> list[dict[str, Any]]:
    from novasvc.cli.control import ask  # noqa: PLC0415 - others do not need it

    rows: list[dict[str, Any]] = ask(context.configuration.settings.control_socket, "workers", timeout=_CALL)
    return rows
