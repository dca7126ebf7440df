"""Tests for novasvc.rpc.failures.origin."""

import dataclasses
import json
from typing import Any

import attrs
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.rpc.failures.origin import (
    MAX_SERVICES,
    Origin,
    add_note,
    decode_origin,
    encode_origin,
    set_origin,
    with_origin,
)
from tests.unit.rpc.test_payload import JSON

STOCK = Origin(topic="stock", method="reserve", host="h2", worker=1, request_id="req-1")
ORDER = Origin(topic="order", method="buy", host="h1", request_id="req-1")


@attrs.frozen
class FrozenError(Exception):
    item: str


@dataclasses.dataclass(frozen=True)
class FrozenDataError(Exception):
    item: str


class OriginTests(SynchronousTestCase):
    def test_text(self) -> None:
        """An origin is shown with what is known of it."""
        for origin, text in (
            (STOCK, "stock.reserve on h2 worker 1; request req-1"),
            (
                attrs.evolve(STOCK, through=(ORDER,)),
                "stock.reserve on h2 worker 1, through order.buy on h1; request req-1",
            ),
            (Origin(topic="stock", method="reserve"), "stock.reserve"),
            (Origin(host="h1"), "a service on h1"),
        ):
            self.assertEqual(str(origin), text)

    def test_of_error(self) -> None:
        """An error of any class has an origin only after it was set; its text gets it once."""
        for error in (ValueError("x"), FrozenError("x"), FrozenDataError("x"), OSError(2, "gone")):
            self.assertIsNone(rpc.origin_of(error))
            self.assertEqual(with_origin(error, "text"), "text")
            set_origin(error, STOCK)
            add_note(error, "a note")
            self.assertIs(rpc.origin_of(error), STOCK)
            self.assertEqual(error.__notes__, ["a note"])
            text = with_origin(error, "text")
            self.assertEqual(text, f"text (from {STOCK})")
            self.assertEqual(with_origin(error, text), text)

    def test_wire(self) -> None:
        """An origin grows by each service that lets the error through."""
        error: Exception = ValueError()
        for here, expected in ((STOCK, STOCK), (ORDER, attrs.evolve(STOCK, through=(ORDER,)))):
            origin = decode_origin(json.loads(json.dumps(encode_origin(error, here))))
            self.assertEqual(origin, expected)
            error = ValueError()
            set_origin(error, expected)

    def test_bound(self) -> None:
        """Of a long chain the first and the last services are kept."""
        error = ValueError()
        set_origin(error, attrs.evolve(STOCK, through=(ORDER,) * 100))
        last = attrs.evolve(ORDER, host="last")
        services = encode_origin(error, last)
        self.assertEqual((len(services), services[0]["topic"], services[-1]["host"]), (MAX_SERVICES, "stock", "last"))

    def test_hostile(self) -> None:
        """Long, unprintable or mistyped fields are bounded or dropped."""
        value: Any = [{"host": "h" * 1000, "topic": "a\x1b[2J", "method": 1, "worker": True, "request_id": None}]
        origin = decode_origin(value)
        assert origin is not None
        self.assertEqual((len(origin.host or ""), origin.topic, origin.method, origin.worker), (255, "", "", None))

    @given(JSON)
    def test_anything(self, value: Any) -> None:
        """Any JSON is an origin or none."""
        self.assertIsInstance(decode_origin(value), Origin | None)
