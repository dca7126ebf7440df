"""Tell the living start of a service that another one was refused."""

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from novasvc.context import RequestContext
from novasvc.node.runtime import Runtime
from novasvc.registry.errors import ServiceTwinError
from novasvc.registry.heartbeat import ServiceIdentity
from novasvc.rpc import Client

_log = Logger()

_TIMEOUT = 2.0
"""Seconds to reach the broker and send the message."""


async def tell_twin(runtime: Runtime, topic: str, identity: ServiceIdentity, error: ServiceTwinError) -> None:
    """Tell the living start of a service that this one was refused, if that is possible at once.

    :param error: why this one was refused.
    """
    telling = Deferred.fromCoroutine(_tell(runtime, topic, identity, error))
    try:
        await telling.addTimeout(_TIMEOUT, runtime.reactor)
    except Exception as problem:  # noqa: BLE001 - this start ends in any case, and has logged why
        _log.debug("the other start of {node} was not told: {problem}", node=identity, problem=problem)


async def _tell(runtime: Runtime, topic: str, identity: ServiceIdentity, error: ServiceTwinError) -> None:
    transport = await runtime.broker.acquire()
    try:
        client = Client(transport, clock=runtime.reactor, signer=runtime.signer)
        twin = client.prepare(topic=topic, server=identity.host, namespace="node", version="1.2")
        try:
            await twin.cast(
                RequestContext.admin(), "twin_refused", machine=runtime.machine, incarnation=error.incarnation
            )
        finally:
            await client.close()
    finally:
        await runtime.broker.release()
