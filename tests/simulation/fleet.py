"""The fleet that the project simulates: stores with all kinds of methods, conductors, and callers."""

from typing import Any

from twisted.internet.task import deferLater

from novasvc import Manager, RequestContext, periodic_task, rpc
from novasvc.registry.conductor import Conductor
from novasvc.testing.simulation import Caller, Simulation


class Store(Manager):
    """Methods of both kinds, a handler of events, and a task of the fleet."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.failed: set[str] = set()

    async def _work(self, seconds: float) -> None:
        if seconds:
            await deferLater(self.attachments.reactor, seconds, lambda: None)

    @rpc.expose
    async def once(self, context: RequestContext, token: str, seconds: float = 0.0) -> str:
        await self._work(seconds)
        return token

    @rpc.expose(idempotent=True)
    async def again(self, context: RequestContext, token: str, seconds: float = 0.0) -> str:
        await self._work(seconds)
        return token

    @rpc.expose
    async def relay(self, context: RequestContext, token: str, twice: bool) -> str:
        method = "again" if twice else "once"
        stores = self.attachments.rpc.prepare(topic="store", idempotent=twice)
        return await stores.call(context, method, token=token)

    @rpc.event("order.*")
    async def note(self, context: RequestContext, payload: dict[str, Any]) -> None:
        token = payload["token"]
        if payload["fails"] and self.host == "store1" and token not in self.failed:
            self.failed.add(token)
            raise LookupError(token)
        await self._work(payload["seconds"])

    @periodic_task(spacing=10, scope="fleet")
    async def count(self, context: RequestContext) -> None:
        await self._work(7.0)


async def shop(caller: Caller) -> None:
    draw = caller.random
    hosts = [node.host for node in caller.simulation.nodes if node.topic == "store"]
    number = 0
    while not caller.over:
        await caller.pause(draw.expovariate(0.8))
        number += 1
        token = f"{caller.host}-{number}"
        seconds = draw.choice((0.0, 0.0, 0.0, 0.5, 5.0))
        server = draw.choice(hosts) if draw.random() < 0.3 else None
        timeout = draw.choice((2.0, 15.0, 30.0, 60.0))
        what = draw.random()
        if what < 0.3:
            asking = caller.call("store", "once", server=server, timeout=timeout, token=token, seconds=seconds)
        elif what < 0.6:
            asking = caller.call("store", "again", server=server, timeout=timeout, token=token, seconds=seconds)
        elif what < 0.7:
            asking = caller.call("store", "relay", timeout=timeout, token=token, twice=draw.random() < 0.5)
        elif what < 0.75:
            asking = caller.emit("order.placed", {"token": token, "seconds": seconds, "fails": draw.random() < 0.2})
        elif what < 0.85:
            asking = caller.cast("store", "again", server=server, token=token, seconds=seconds)
        else:
            asking = caller.cast("store", "once", server=server, token=token, seconds=seconds)
        asking.addErrback(lambda failure: None)


def build(simulation: Simulation) -> None:
    """Add a fleet whose size the seed decides: mostly small, sometimes of dozens of nodes."""
    source = simulation.seed.source("fleet")
    large = source.random() < 0.01
    conductors = source.choice((0, 0, 1, 2))
    for number in range(conductors):
        simulation.node(Conductor, host=f"conductor{number + 1}", topic="conductor")
    for number in range(60 if large else source.choice((2, 3, 3, 5))):
        simulation.node(Store, host=f"store{number + 1}", topic="store", db_allowed=not conductors)
    for number in range(8 if large else source.choice((1, 1, 2))):
        simulation.caller(f"shop{number + 1}", shop)
