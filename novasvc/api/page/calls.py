"""How a service's node is called from the page."""

from typing import Any

from novasvc.api.backend import Backend
from novasvc.api.errors import APIError, as_api_error
from novasvc.context import RequestContext
from novasvc.errors import NovasvcError, RPCTimeoutError, StateError, UndeliverableError, UnknownTaskError
from novasvc.registry.record import ServiceRecord

PATIENCE = 2.0
"""Seconds that a node has to answer."""


async def call_node(backend: Backend, record: ServiceRecord, method: str, **args: Any) -> Any:
    """Call a method that every node has.

    :param method: of the namespace "node".
    :raises APIError: 409 it serves no topic, or cannot do that now; 404 it has no such task; 504 it does not
        answer in time; 503 it is not there, or the broker is not; 502 it answered with an error.
    """
    return await _call(backend, record, "node", method, **args)


async def ping_node(backend: Backend, record: ServiceRecord) -> float:
    """Return the seconds that a node takes to answer; otherwise as :func:`call_node`."""
    begun = backend.reactor.seconds()
    await _call(backend, record, "baseapi", "ping", arg=1)
    return float(backend.reactor.seconds() - begun)


async def _call(backend: Backend, record: ServiceRecord, namespace: str, method: str, **args: Any) -> Any:
    name = f"{record.binary}@{record.host}"
    if record.topic is None:
        raise APIError(409, f"{name} serves no topic, so it cannot be asked anything")
    try:
        client = backend.client.prepare(
            topic=record.topic, server=record.host, namespace=namespace, version="1.0", timeout=PATIENCE
        )
        return await client.call(RequestContext.admin(), method, **args)
    except RPCTimeoutError as error:
        why = f": {error.unconfirmed}" if error.unconfirmed else ""
        raise APIError(504, f"{name} did not answer within {PATIENCE:g} s{why}") from None
    except UndeliverableError as error:
        raise APIError(503, f"{name} is not there: {error}") from None
    except UnknownTaskError as error:
        raise APIError(404, str(error)) from None
    except StateError as error:
        raise APIError(409, str(error)) from None
    except NovasvcError as error:
        raise as_api_error(error) or APIError(502, f"{name} answered: {error}") from error
