"""Say more about a call that failed: the names that were probably meant, and what the service offers."""

import re
from collections.abc import Mapping
from typing import Any

import attrs

from novasvc.cli.arguments import notes_on_types
from novasvc.cli.output import printable
from novasvc.cli.suggestion import nearest
from novasvc.config import Settings
from novasvc.context import RequestContext
from novasvc.listing import list_some
from novasvc.rpc.errors import (
    InvalidArgumentsError,
    NoSuchMethodError,
    RPCError,
    RPCTimeoutError,
    UndeliverableError,
    UnsupportedVersionError,
)
from novasvc.rpc.failures.origin import origin_of, set_origin
from novasvc.rpc.target import Target

_TIMEOUT = 1.5
"""Seconds that the search for better names may take; the call has failed already."""

_SHOWN = 8
"""Most names in one error."""

FRAMEWORK = frozenset({"node", "baseapi"})
"""Namespaces that every service has."""

Topics = Mapping[str, set[str]]
"""Known topics, each with the hosts that it is served on."""


@attrs.define
class CallFailedError(RPCError):
    """A call of the command failed, and this is why and what to do.

    :param text: the whole text, already printable.
    """

    text: str

    def __str__(self) -> str:
        return self.text


async def explained(
    error: RPCError,
    settings: Settings,
    client: Any,
    reactor: Any,
    target: Target,
    request: tuple[str, Mapping[str, Any]],
) -> RPCError:
    """Return the error of a failed call with what else is known: the names that were probably meant, who is down.

    It is the error itself if nothing else is known.

    :param client: a :class:`novasvc.rpc.Client` on an open transport.
    :param request: the method, "" for none, and its arguments.
    """
    method, arguments = request
    asking = client.prepare(topic=target.topic, server=target.server, fanout=False, timeout=_TIMEOUT)
    match error:
        case UndeliverableError():
            # Not the whole target: the host may be what is wrong.
            hint = await _of_target(error, settings, asking.prepare(server=None), reactor, target)
        case NoSuchMethodError() | UnsupportedVersionError():
            hint = _of_method(error, await described_methods(asking), target, method)
        case InvalidArgumentsError() if error.method == method:
            hint = _of_arguments(error, await described_methods(asking), target, arguments)
        case RPCTimeoutError(registered=None, silent=False, unconfirmed="", unsent=""):
            hint = await _of_timeout(error, settings, reactor, target)
        case _:
            hint = None
    if hint is None:
        return error
    failed, origin = CallFailedError(printable(hint)), origin_of(error)
    if origin is not None:
        set_origin(failed, origin)
    return failed


async def described_methods(client: Any) -> list[dict[str, Any]]:
    """Ask a service for its methods, as :func:`novasvc.rpc.contracts.description.describe_methods` returns them.

    :param client: prepared for the target, with a timeout.
    :return: [] if the service does not say; those of oslo.messaging cannot.
    """
    asking = client.prepare(namespace="node", version="1.1", idempotent=True)
    try:
        answer = await asking.call(RequestContext.admin(), "interface")
        return [dict(row) for row in answer["methods"]]
    except Exception:  # noqa: BLE001 - whatever it is, there is no hint, and the call's own error is reported
        return []


async def known_topics(settings: Settings, reactor: Any) -> Topics:
    """Return the topics of this host's processes, or with a broker those of the services table.

    :raises Exception: the database of the services table cannot be used.
    """
    if not settings.uses_broker:
        from novasvc.transport.local.directory import served_topics  # noqa: PLC0415 - `--help` does not need it

        return served_topics(settings.socket_dir, _TIMEOUT)
    from twisted.internet.defer import Deferred  # noqa: PLC0415

    return await Deferred.fromCoroutine(_registered_topics(settings, reactor)).addTimeout(_TIMEOUT, reactor)


async def _registered_topics(settings: Settings, reactor: Any) -> Topics:
    from novasvc.cli.database import require_database  # noqa: PLC0415 - see known_topics
    from novasvc.registry.sql.services import connect_registry  # noqa: PLC0415

    require_database(settings.database_url)
    registry = connect_registry(settings.database_url, reactor=reactor, migrate=False)
    topics: dict[str, set[str]] = {}
    try:
        await registry.open()
        for record in await registry.list(None, None, None):
            if record.topic:
                topics.setdefault(record.topic, set()).add(record.host)
    finally:
        await registry.close()
    return topics


async def _of_target(
    error: UndeliverableError, settings: Settings, asking: Any, reactor: Any, target: Target
) -> str | None:
    try:
        topics = await known_topics(settings, reactor)
    except Exception:  # noqa: BLE001 - as described_methods
        return None
    text = str(error)
    if not settings.uses_broker:
        where = f"state_dir = {str(settings.state_dir)!r}"
        text = f"no server for {target}: no process of this user on this host serves it with {where}"
    hosts = topics.get(target.topic)
    if hosts is None:
        meant = nearest(target.topic, topics)
        if meant:
            return f"{text}; did you mean the topic {meant!r}?"
        here = f"topics here: {list_some(sorted(topics), _SHOWN)}"
        return f"{text}; {here if topics else 'start one, or check the state_dir'}"
    if target.server is None:
        return text
    if any(row["method"] == target.server for row in await described_methods(asking)):
        called = f"`novasvc call {target.topic} {target.server} [NAME=VALUE]...`"
        return f"{text}; {target.server!r} is a method of {target.topic}, and in TOPIC.HOST a host: write {called}"
    meant = nearest(target.server, hosts)
    hint = f"did you mean {target.topic}.{meant}?" if meant else f"it is served on: {list_some(sorted(hosts), _SHOWN)}"
    return f"{text}; {hint}"


async def _of_timeout(error: RPCTimeoutError, settings: Settings, reactor: Any, target: Target) -> str | None:
    """Ask the registry again, now that it is imported: before the timeout, that took too long for its answer."""
    from twisted.internet.defer import Deferred  # noqa: PLC0415 - see known_topics

    from novasvc.cli.remote import count_services  # noqa: PLC0415 - it imports this module

    try:
        asking = Deferred.fromCoroutine(count_services(settings, reactor, target))
        found = await asking.addTimeout(_TIMEOUT, reactor)
    except Exception:  # noqa: BLE001 - as described_methods
        return None
    return str(attrs.evolve(error, registered=found.registered, up=found.up))


def _of_method(
    error: NoSuchMethodError | UnsupportedVersionError, rows: list[dict[str, Any]], target: Target, method: str
) -> str | None:
    if not rows:
        return None
    own = {row["method"] for row in rows if row["namespace"] == target.namespace}
    same = next((row for row in rows if row["method"] == method), None)
    text = f"{target} exposes no method {method!r}"
    if same is not None:
        namespace = f"--namespace {same['namespace']} " if same["namespace"] else ""
        return f"{error}; call it with {namespace}--version {same['version']}"
    if not own - FRAMEWORK and target.namespace is None:
        return f"{text}, nor any other: decorate the methods of its manager with @rpc.expose"
    meant = nearest(method, own)
    if meant:
        return f"{text}; did you mean {meant!r}? `novasvc describe {target}` lists all"
    return f"{text}; it has: {list_some(sorted(own), _SHOWN)}. Check the name, or decorate the method with @rpc.expose"


def _of_arguments(
    error: InvalidArgumentsError, rows: list[dict[str, Any]], target: Target, arguments: Mapping[str, Any]
) -> str | None:
    row = next((row for row in rows if row["method"] == error.method and row["namespace"] == target.namespace), None)
    parts = [str(error), *notes_on_types(arguments, error.problem)]
    if row is not None:
        known = argument_names(row["signature"])
        for name in arguments:
            meant = None if name in known else nearest(name, {*known} - {*arguments})
            parts += [f"did you mean {meant}=?"] if meant else []
        parts.append(f"it takes {row['signature'].partition(' -> ')[0]}")
    return "; ".join(parts) if len(parts) > 1 else None


def argument_names(signature: str) -> list[str]:
    """Return the names of the arguments in a signature, such as "(item: str, amount: int = 1) -> str"."""
    # Texts that are default values may contain what looks like an argument.
    without_texts = re.sub(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", "''", signature)
    return re.findall(r"(?:^\(|, )(\w+)(?=[:=,)])", without_texts)
