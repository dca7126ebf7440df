"""Tests for novasvc.rpc.payload."""

import dataclasses
import json
import math
from collections import OrderedDict
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any
from uuid import UUID

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.payload import _encode_without_c, dumps, loads

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=20,
)


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


@attrs.frozen
class Box:
    size: Size


@dataclasses.dataclass
class Line:
    item: str
    sizes: list[Size]
    box: Box


@attrs.define
class Unset:
    size: int = attrs.field(init=False)


@dataclasses.dataclass
class Peer:
    peer: Any = None


class HiddenError(Exception):
    def __repr__(self) -> str:
        raise LookupError("no text")


class Lazy:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("outside of a request")


class DumpsTests(SynchronousTestCase):
    def sent(self, value: Any) -> Any:
        return json.loads(dumps(value, "value"))

    @given(JSON)
    def test_json(self, value: Any) -> None:
        """JSON types arrive as they were sent."""
        self.assertEqual(loads(dumps(value, "value")), value)

    @given(JSON)
    def test_without_c_code(self, value: Any) -> None:
        """A Python without the json module's C accelerator encodes the same text."""
        self.assertEqual("".join(_encode_without_c(value, 0)), dumps(value, "value"))

    def test_after_errors(self) -> None:
        """A value that cannot be encoded leaves no state behind: its parts can still be encoded."""
        part: list[Any] = [{}]
        for _ in range(3):
            self.assertRaises(ValueError, dumps, [part, object()], "value")
            self.assertEqual(dumps([part, part], "value"), "[[{}], [{}]]")

    def test_objects(self) -> None:
        """Dataclasses and attrs objects are sent as their fields, members of enums as their values, however nested."""
        value = Line("tea", [Size.LARGE], Box(Size.SMALL))
        self.assertEqual(self.sent({"line": value}), {"line": {"item": "tea", "sizes": ["l"], "box": {"size": "s"}}})
        self.assertRaises(ValueError, dumps, Line, "value")

    def test_mapping(self) -> None:
        """Types that JSON lacks are converted as OpenStack's services convert them."""
        uuid = UUID("9f6ae680-70e7-4f74-af90-d9ac77ceb40f")
        east = timezone(timedelta(hours=3))
        for value, expected in (
            (datetime(2020, 1, 2, 3, 4, 5, 6), "2020-01-02T03:04:05.000006"),  # noqa: DTZ001 - they are in use
            (datetime(2020, 1, 2, 3, 4, 5, tzinfo=east), "2020-01-02T03:04:05.000000"),
            (date(2020, 1, 2), "2020-01-02"),
            (uuid, str(uuid)),
            ("h\u00e9".encode(), "h\u00e9"),
            ((1, (2,)), [1, [2]]),
            ({1}, [1]),
            (frozenset([1]), [1]),
            (Decimal("1.10"), "1.10"),
            (ip_address("::1"), "::1"),
            (ip_network("10.0.0.0/8"), "10.0.0.0/8"),
            (ValueError("x", 1), "ValueError('x', 1)"),
            ({1: {2.5: None}}, {"1": {"2.5": None}}),
            (OrderedDict(a=1), {"a": 1}),
            (10**400, 10**400),
        ):
            self.assertEqual(self.sent(value), expected)
            self.assertEqual(self.sent({"deep": [value]}), {"deep": [expected]})

    def test_not_a_number(self) -> None:
        """NaN and infinities are encoded as OpenStack's services write them."""
        self.assertEqual(dumps([math.nan, math.inf, -math.inf], "value"), "[NaN, Infinity, -Infinity]")

    def test_ascii(self) -> None:
        """Strings are encoded as ASCII, with surrogate pairs."""
        self.assertEqual(dumps("\u00e9\U0001f600", "value"), '"\\u00e9\\ud83d\\ude00"')

    def test_misfit(self) -> None:
        """A value that JSON cannot hold is named by its place and type, without its contents."""
        a_key: Any = {("secret", 2): 1}
        for value, problem in (
            (object(), "value is of type object"),
            ({"a": [1, {"b": self.sent}]}, "value['a'][1]['b'] is of type method"),
            ({"a": (1, b"\xffsecret")}, "value['a'][1] is bytes that are not valid UTF-8"),
            ({"a": {Decimal}}, "is of type type"),
            ({"a": a_key}, "value['a'] has a key of type tuple"),
            ([datetime(2020, 1, 2), 1j], "value[1] is of type complex"),  # noqa: DTZ001 - they are in use
            ([timedelta(1)], "value[0] is of type datetime.timedelta"),
        ):
            error = self.assertRaises(ValueError, dumps, value, "value")
            self.assertIn(problem, str(error))
            self.assertNotIn("secret", str(error))

    def test_first_misfit(self) -> None:
        """Of several values that JSON cannot hold, the first is named."""
        error = self.assertRaises(ValueError, dumps, {"a": [1, object()], "b": 1j}, "value")
        self.assertIn("value['a'][1]", str(error))

    def test_endless(self) -> None:
        """A circular value, and one that is nested too deeply, are refused with different errors."""
        endless: list[Any] = []
        endless.append({"again": endless})
        self.assertIn("contains a circular reference", str(self.assertRaises(ValueError, dumps, endless, "value")))
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        self.assertIn("too deeply", str(self.assertRaises(ValueError, dumps, deep, "value")))
        while deep:  # take it apart: to free so deep a list is recursive, too
            deep = deep.pop()

    def test_unreadable(self) -> None:
        """A value whose own code raises an error, whichever, is refused as any other that JSON cannot hold."""
        endless = Peer()
        endless.peer = Peer(endless)
        with self.assertRaises(AttributeError) as raised:
            _ = Unset().size  # its text depends on the version of Python
        unset = f"which cannot be read: AttributeError: {raised.exception}"
        for value, problem in (
            (Unset(), f"value is of type {__name__}.Unset, {unset}"),
            ({"a": [Unset()]}, f"value['a'][0] is of type {__name__}.Unset, {unset}"),
            ([Peer(Unset())], f"value[0] is of type {__name__}.Peer, {unset}"),
            (
                [HiddenError()],
                f"value[0] is of type {__name__}.HiddenError, which cannot be read: LookupError: no text",
            ),
            (
                [Lazy()],
                f"value[0] is of type {__name__}.Lazy, which cannot be read: RuntimeError: outside of a request",
            ),
            ([endless], f"value[0] is of type {__name__}.Peer, which contains itself or is nested too deeply"),
        ):
            self.assertEqual(str(self.assertRaises(ValueError, dumps, value, "value")), problem)


class LoadsTests(SynchronousTestCase):
    def test_blanks(self) -> None:
        """White space around a value is ignored."""
        for text in ('{"a": 1}', ' {"a": 1}', '{"a": 1}\n\t '):
            self.assertEqual(loads(text), {"a": 1})

    def test_rubbish(self) -> None:
        """Text that is not JSON, or goes on after the value, raises ValueError."""
        for text in ("", "{", "{}{}", '{"a": 1} x', "{'a': 1}", "nul", "[1,]", "9" * 5000):
            self.assertRaises(ValueError, loads, text)
