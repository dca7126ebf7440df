"""RPC calls from the page to a service's node."""

from typing import Any

from novasvc.api.backend import Backend
from novasvc.api.errors import APIError, as_api_error
from novasvc.errors import NovasvcError, StateError
from novasvc.fleet.calls import NodeCalls
from novasvc.periodic.errors import UnknownTaskError
from novasvc.registry.record import ServiceRecord
from novasvc.rpc.errors import RPCTimeoutError, UndeliverableError

TIMEOUT = 2.0
"""Seconds in which a node has to respond."""
VERSIONS = {"history": "1.3", "troubles": "1.3"}
"""The versions of the node API that have these methods; the others are in all."""


async def call_node(backend: Backend, record: ServiceRecord, method: str, **args: Any) -> Any:
    """Call a method of the node API, which every node has.

    :param method: a method of the namespace "node"; nodes of earlier versions do not have all of them.
    :raises APIError: 409 if the node serves no topic, or its state does not allow this; 404 if it has no such task; 504
        if it does not respond in time; 503 if the node or the broker is unreachable; 502 if it responds with an error.
    """
    return await _call(backend, record, "node", method, VERSIONS.get(method, "1.0"), **args)


async def ping_node(backend: Backend, record: ServiceRecord) -> float:
    """Ping a node, and return its response time in seconds. Raises what :func:`call_node` does."""
    begun = backend.reactor.seconds()
    await _call(backend, record, "baseapi", "ping", "1.0", arg=1)
    return float(backend.reactor.seconds() - begun)


async def _call(backend: Backend, record: ServiceRecord, namespace: str, method: str, version: str, **args: Any) -> Any:
    name = record.name
    if record.topic is None:
        raise APIError(409, f"{name} serves no topic, so it cannot be called")
    try:
        return await NodeCalls(backend.client, backend.reactor).call(record, namespace, version, method, TIMEOUT, args)
    except RPCTimeoutError as error:
        problem = error.unsent or error.unconfirmed
        why = f": {problem}" if problem else ""
        raise APIError(504, f"{name} did not respond within {TIMEOUT:g} s{why}") from None
    except UndeliverableError as error:
        raise APIError(503, f"{name} is unreachable: {error}") from None
    except UnknownTaskError as error:
        raise APIError(404, str(error)) from None
    except StateError as error:
        raise APIError(409, str(error)) from None
    except NovasvcError as error:
        raise as_api_error(error) or APIError(502, f"{name} responded with an error: {error}") from error
