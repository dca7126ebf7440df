"""Tests for the shop: both managers in one process, in memory, on a clock that the tests advance."""

import pytest
from shop import Orders, OutOfStockError, Stock

from novasvc.testing import Fleet

GOODS = {"tea": {"cents": 500, "left": 10}, "cup": {"cents": 500, "left": 3}}


async def test_all_or_nothing(fleet: Fleet) -> None:
    """An order that cannot be filled changes nothing."""
    fleet.start(Stock, goods=GOODS)
    fleet.start(Orders)
    with pytest.raises(OutOfStockError, match="only 3 of cup left"):
        await fleet.call("orders", "place", lines=[{"item": "tea", "amount": 2}, {"item": "cup", "amount": 9}])
    assert await fleet.call("stock", "left") == {"tea": 10, "cup": 3}


async def test_stock_is_away(fleet: Fleet) -> None:
    """An order fails when the stock does not answer in time; a later one is taken."""
    fleet.start(Stock, goods=GOODS)
    fleet.start(Orders)
    fleet.faults.drop("stock", "reserve", times=1)
    with pytest.raises(Exception, match="no reply from stock"):
        await fleet.call("orders", "place", lines=[{"item": "tea"}])
    assert (await fleet.call("orders", "place", lines=[{"item": "tea"}]))["number"] == 1
