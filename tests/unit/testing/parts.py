"""Managers for the tests of novasvc.testing."""

from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater

from novasvc import Manager, RequestContext, periodic_task, rpc


class Stock(Manager):
    """What is called."""

    def __init__(self, host: str, items: int = 3) -> None:
        super().__init__(host)
        self.items = items
        self.swept: list[float] = []
        self.placed: list[float] = []
        self.work: list[Deferred[Any]] = []

    @rpc.expose
    def reserve(self, context: RequestContext, amount: int = 1) -> int:
        self.items -= amount
        return self.items

    @rpc.expose(idempotent=True)
    def count(self, context: RequestContext) -> int:
        return self.items

    @rpc.expose
    async def wait(self, context: RequestContext, seconds: float) -> float:
        await deferLater(self.attachments.reactor, seconds)
        return self.attachments.reactor.seconds()

    @rpc.expose(idempotent=True)
    def hang(self, context: RequestContext) -> Deferred[Any]:
        self.work.append(Deferred())
        return self.work[-1]

    @rpc.expose
    def whoami(self, context: RequestContext) -> str | None:
        return context.user_id

    @rpc.event("order.placed")
    def note(self, context: RequestContext, payload: object) -> None:
        self.placed.append(self.attachments.reactor.seconds())

    @periodic_task(spacing=30)
    def sweep(self, context: RequestContext) -> int:
        self.swept.append(self.attachments.reactor.seconds())
        return len(self.swept)

    @periodic_task(spacing=1000)
    def wait_for_work(self, context: RequestContext) -> Deferred[Any]:
        self.work.append(Deferred())
        return self.work[-1]


class Orders(Manager):
    """What calls."""

    @rpc.expose
    async def place(self, context: RequestContext, amount: int = 1) -> Any:
        return await self.attachments.rpc.prepare(topic="stock").call(context, "reserve", amount=amount)

    @rpc.expose
    async def count_all(self, context: RequestContext, hosts: list[str]) -> list[int]:
        clients = [self.attachments.rpc.prepare(topic="stock", server=host) for host in hosts]
        outcomes = await DeferredList([client.call(context, "count") for client in clients], fireOnOneErrback=True)
        return [count for _, count in outcomes]
