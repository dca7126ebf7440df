"""Tests for `novasvc describe`, and for what a node tells for it."""

import dataclasses
from datetime import datetime
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, periodic_task, rpc
from novasvc.cli.describe import described
from novasvc.context import RequestContext
from novasvc.testing import FleetMixin


@rpc.error(name="shop.errors.OutOfStock")
class OutOfStock(Exception):  # noqa: N818 - a user's
    """An item is out of stock.

    More of it.
    """

    def __init__(self, item: str, left: int = 0) -> None:
        super().__init__(item)
        self.item, self.left = item, left


class Closed(Exception):  # noqa: N818 - as above
    pass


@dataclasses.dataclass
class Line:
    item: str
    amount: int = 1


@dataclasses.dataclass
class Order:
    number: int
    due: datetime | None = None


class Stock(Manager):
    @rpc.expose(version="1.2", idempotent=True, expected=(LookupError, OutOfStock, Closed), timeout=5)
    def reserve(self, context: RequestContext, line: Line, *, note: str = "") -> int:
        """Reserve an amount of an item.

        More of it.
        """
        return line.amount

    @rpc.expose
    def anything(self, context, value=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return value

    @rpc.expose(allow="admin")
    def drop(self, context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        pass

    @rpc.event("order.*", "order")
    def on_order(self, context: RequestContext, payload: Order) -> None:
        """Reserve what was ordered."""

    @periodic_task(spacing=60)
    def count(self, context: RequestContext) -> None:
        """Count."""


class DescribeTests(FleetMixin, SynchronousTestCase):
    def setUp(self) -> None:
        self.fleet.start(Stock, host="h1")
        client = self.fleet.client(topic="stock", namespace="node", version="1.1")
        self.answer: dict[str, Any] = self.fleet.run(client.call(RequestContext(), "interface"))

    def test_text(self) -> None:
        """Methods are shown as callers write them, with what their decorator says; tasks with their spacing."""
        expected = (
            "stock on h1 (novasvc-stock)\n\nmethods\n  anything(value=None)\n      version 1.2\n"
            "  drop()\n      version 1.2; needs the identity admin\n"
            "  reserve(line: Line, *, note: str = '') -> int\n      Reserve an amount of an item.\n"
            "      version 1.2; raises LookupError, OutOfStock, Closed; idempotent; timeout 5 s\n\n"
            "types\n  Line  {item: string, amount: integer = 1}\n"
            "  Order  {number: integer, due: date-time | null = null}\n\n"
            "errors\n  OutOfStock(item: str, left: int = 0)  shop.errors\n      An item is out of stock.\n"
            f"  Closed  {__name__}\n\n"
            "events\n  order.*, order  on_order\n      Reserve what was ordered.\n\n"
            "tasks\n  count  every 60 s, once a node"
        )
        self.assertEqual(described(self.answer), expected)
        self.assertIn("  ping(arg: Any)", described(self.answer, everything=True).replace("typing.", ""))

    def test_schema(self) -> None:
        """A program gets the JSON Schemas of arguments and result."""
        rows = {row["method"]: row for row in self.answer["methods"]}
        schema = rows["reserve"]["schema"]
        self.assertEqual(schema["result"], {"type": "integer"})
        self.assertEqual(schema["$defs"]["Line"]["properties"]["amount"], {"type": "integer", "default": 1})
        self.assertIsNone(rows["anything"]["schema"])

    def test_errors(self) -> None:
        """A program gets the names of the errors on the wire."""
        names = [(error["module"], error["name"]) for error in self.answer["errors"]]
        self.assertEqual(names, [("shop.errors", "OutOfStock"), (__name__, "Closed")])

    def test_empty(self) -> None:
        """A manager without exposed methods gets a hint, and no control character of a peer reaches the terminal."""
        answer = {"topic": "t\x1b", "host": "h", "binary": "b", "methods": [], "tasks": []}
        self.assertEqual(
            described(answer), "t\\x1b on h (b)\n\nmethods\n  none: decorate a method of the manager with @rpc.expose"
        )
