"""What a worker reports of its server, in messages of bounded size."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from twisted.application.service import IService, IServiceCollection
from twisted.internet.defer import gatherResults
from twisted.logger import Logger

from novasvc.interfaces import IDescribable, IHealthy, IInspectable
from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import Document
from novasvc.workers.pipe import MAX_MESSAGE_LENGTH

_log = Logger()

_MAX_OPERATIONS = 10_000
"""Request ids of running operations in one report."""

_MAX_CALLS = 200
"""Running calls in one report."""

_MAX_TEXT_LENGTH = 200
"""Characters of each text that a caller chooses, such as a request id."""

_ENVELOPE = 16 * 1024
"""Bytes of a metrics message reserved for everything but the metrics, separators included."""


def waited_for(server: IService | None) -> str | None:
    """Return the dependency that the start of a server waits for; None if none."""
    return next((part.waiting_for for part in _inspectable(server) if part.waiting_for), None)


def count_calls(server: IService | None) -> int:
    """Return how many calls are under way."""
    return sum(len(part.running_calls()) for part in _inspectable(server))


def count_served() -> int:
    """Return how many RPC calls and HTTP requests this process has served, whatever became of them."""
    return sum(each.count for family in (metrics.served_seconds, metrics.request_seconds) for _, each in family)


def running_calls(server: IService | None) -> list[dict[str, Any]]:
    """Return the calls under way; see :meth:`novasvc.interfaces.IInspectable.running_calls`."""
    calls = [call for part in _inspectable(server) for call in part.running_calls()]
    return [{name: truncated(value) for name, value in call.items()} for call in calls[:_MAX_CALLS]]


def operations(server: IService | None) -> list[str]:
    """Return the request ids of the operations under way."""
    known = {request_id for part in _inspectable(server) for request_id in part.operations_under_way()}
    return [truncated(request_id) for request_id in known][:_MAX_OPERATIONS]


def truncated(value: Any) -> Any:
    """Truncate a value that callers choose, such as a request id."""
    return value if value is None or isinstance(value, int | float) else str(value)[:_MAX_TEXT_LENGTH]


def fit_message(documents: list[Document]) -> list[Document]:
    """Return the metrics that fit into one message; drop the largest ones if they do not."""
    sizes = {document["name"]: len(json.dumps(document)) for document in documents}
    while sum(sizes.values()) > MAX_MESSAGE_LENGTH - _ENVELOPE:
        largest = max(sizes, key=lambda name: sizes[name])
        _log.error("dropping metric {name}: the report is too large for one message", name=largest)
        del sizes[largest]
    return [document for document in documents if document["name"] in sizes]


async def health_of(services: Iterable[IService]) -> list[dict[str, Any]]:
    """Collect the health of services, concurrently.

    :param services: those that provide :class:`~novasvc.interfaces.IHealthy` are asked.
    :return: one report per service.
    """
    healthy = [IHealthy(part) for part in services if IHealthy.providedBy(part)]
    return await gatherResults([part.health() for part in healthy], consumeErrors=True)


async def descriptions(services: Iterable[IService], what: str) -> list[dict[str, Any]] | None:
    """Collect what services tell of themselves.

    :param services: those that provide :class:`~novasvc.interfaces.IDescribable` are asked.
    :param what: see there.
    :return: one description per service; None if they do not fit into one message.
    """
    described = [IDescribable(part) for part in services if IDescribable.providedBy(part)]
    told: list[dict[str, Any]] = await gatherResults(
        [part.describe_process(what) for part in described], consumeErrors=True
    )
    return told if len(json.dumps(told)) < MAX_MESSAGE_LENGTH - _ENVELOPE else None


def parts(server: IService | None) -> Iterator[IService]:
    """Iterate over a server and, recursively, its child services."""
    if server is None:
        return
    yield server
    if IServiceCollection.providedBy(server):
        for part in server:
            yield from parts(part)


def _inspectable(server: IService | None) -> Iterator[IInspectable]:
    return (IInspectable(part) for part in parts(server) if IInspectable.providedBy(part))
