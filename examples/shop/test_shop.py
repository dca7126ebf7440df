"""Tests for the shop: both managers in one process, in memory, on a clock that the test advances."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc import RequestContext
from novasvc.service import Service
from novasvc.testing import memory_runtime

GOODS = {"tea": {"cents": 500, "left": 10}, "cup": {"cents": 500, "left": 3}}


class ShopTests(SynchronousTestCase):
    """Calls through the whole path: message, contract, method, reply."""

    def setUp(self) -> None:
        self.runtime = memory_runtime()
        stock = Service("a", "shop-stock", "stock", "shop.Stock", runtime=self.runtime, goods=GOODS)
        self.orders = Service("a", "shop-orders", "orders", "shop.Orders", runtime=self.runtime)
        for service in (stock, self.orders):
            self.successResultOf(service.start())
            self.addCleanup(service.stop)

    def call(self, topic: str, method: str, **arguments: Any) -> Any:
        called = self.orders.rpc.prepare(topic=topic).call(RequestContext(), method, **arguments)
        self.runtime.reactor.pump([0] * 20)
        return called

    def test_all_or_nothing(self) -> None:
        """An order that cannot be filled changes nothing."""
        lines = [{"item": "tea", "amount": 2}, {"item": "cup", "amount": 9}]
        failure = self.failureResultOf(self.call("orders", "place", lines=lines), LookupError)
        self.assertIn("9 of 'cup' wanted, 3 left", failure.getErrorMessage())
        self.assertEqual(self.successResultOf(self.call("stock", "left")), {"tea": 10, "cup": 3})
