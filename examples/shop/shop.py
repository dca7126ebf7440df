"""A shop of two services: the stock, and the orders that are taken from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from novasvc import Manager, RequestContext, periodic_task, rpc

_log = Logger()


@rpc.error
class OutOfStockError(Exception):
    """There is less of an item than was asked for."""

    def __init__(self, item: str, left: int = 0) -> None:
        super().__init__(f"only {left} of {item} left")
        self.item = item
        self.left = left


@dataclass
class Line:
    """One line of an order."""

    item: str
    amount: int = 1


@dataclass
class Order:
    """An order that was taken."""

    number: int
    lines: list[Line]
    cents: int


class Stock(Manager):
    """Keeps the goods.

    :param goods: by item: its price as "cents", and how many are "left".
    """

    def __init__(self, host: str, goods: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__(host)
        self._cents = {item: good["cents"] for item, good in goods.items()}
        self._left = {item: good["left"] for item, good in goods.items()}

    @rpc.expose(expected=(OutOfStockError,))
    def reserve(self, context: RequestContext, line: Line) -> int:
        """Take goods out of the stock.

        :return: their price in cents.
        :raises OutOfStockError: there are not enough of them.
        """
        left = self._left.get(line.item, 0)
        if not 0 < line.amount <= left:
            raise OutOfStockError(line.item, left)
        self._left[line.item] -= line.amount
        return line.amount * self._cents[line.item]

    @rpc.expose
    def release(self, context: RequestContext, line: Line) -> None:
        """Put reserved goods back."""
        self._left[line.item] += line.amount

    @rpc.expose
    def left(self, context: RequestContext) -> dict[str, int]:
        """Return how many of each item are left."""
        return self._left


class StockAPI(Protocol):
    """The methods of Stock as its callers see them."""

    def reserve(self, context: RequestContext, line: Line) -> Deferred[int]: ...  # noqa: D102
    def release(self, context: RequestContext, line: Line) -> Deferred[None]: ...  # noqa: D102


class Orders(Manager):
    """Takes orders."""

    _numbers = 0

    def init_host(self) -> None:
        """Make the client of the stock."""
        self.stock = rpc.stub(StockAPI, self.attachments.rpc.prepare(topic="stock", timeout=5))

    @rpc.expose(expected=(OutOfStockError,))
    async def place(self, context: RequestContext, lines: list[Line]) -> Order:
        """Reserve all lines of an order, or none.

        :raises OutOfStockError: the stock does not have them.
        """
        cents, reserved = 0, list[Line]()
        try:
            for line in lines:
                cents += await self.stock.reserve(context, line)
                reserved.append(line)
        except OutOfStockError:
            for line in reserved:
                await self.stock.release(context, line)
            raise
        self._numbers += 1
        return Order(self._numbers, lines, cents)

    @periodic_task(spacing=60)
    def report(self, context: RequestContext) -> None:
        """Log how many orders were taken."""
        _log.info("{count} orders so far", count=self._numbers)
