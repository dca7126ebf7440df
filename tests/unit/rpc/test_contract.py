"""Tests for novasvc.rpc.contract."""

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Awaitable
from typing import Annotated, Any

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DeclarationError, InvalidArgumentsError, ResultNotSerializableError
from novasvc.rpc.contract import Contract, contract_of


class Unit(enum.Enum):
    GRAM = "g"
    PIECE = "pc"


@dataclasses.dataclass
class Line:
    item: str
    amount: int = 1
    unit: Unit = Unit.PIECE


@attrs.frozen
class Order:
    number: uuid.UUID
    lines: list[Line]
    due: dt.datetime | None = None


class Plain:
    """A class that JSON knows nothing of."""


NUMBER = "6c84fb90-12c4-11e1-840d-7b25c5ee775a"


class ContractCase(SynchronousTestCase):
    def contract(self, function: Any) -> Contract:
        return contract_of(function, "m", "shop.Stock.m")

    def refused(self, contract: Contract, **args: Any) -> str:
        return str(self.assertRaises(InvalidArgumentsError, contract.convert_arguments, args))


class ArgumentsTests(ContractCase):
    def test_converted(self) -> None:
        """Nested classes, enums, UUIDs and times are made of their JSON."""

        def place(self: Any, context: Any, order: Order, price: decimal.Decimal) -> None: ...

        lines = [{"item": "tea", "amount": 2, "unit": "g"}, {"item": "pot"}]
        order = {"number": NUMBER, "lines": lines, "due": "2026-11-29T10:00:00Z"}
        converted = self.contract(place).convert_arguments({"order": order, "price": "1.20"})
        due = dt.datetime(2026, 11, 29, 10, tzinfo=dt.UTC)
        expected = Order(uuid.UUID(NUMBER), [Line("tea", 2, Unit.GRAM), Line("pot")], due)
        self.assertEqual(converted, {"order": expected, "price": decimal.Decimal("1.20")})

    def test_wrong(self) -> None:
        """An error names the path to the wrong value, what was expected, and what came."""

        def place(self: Any, context: Any, order: Order, amount: int = 1) -> None: ...

        contract = self.contract(place)
        order = {"number": NUMBER, "lines": [{"item": "tea", "amount": "2"}]}
        self.assertIn("'m': order.lines[0].amount: expected int, got str", self.refused(contract, order=order))
        self.assertIn("'m': amount: expected int, got float", self.refused(contract, amount=1.5))
        self.assertIn(
            "'m': order: object missing required field lines", self.refused(contract, order={"number": NUMBER})
        )
        self.assertIn(
            "invalid enum value 'kg'", self.refused(contract, order={**order, "lines": [{"item": "a", "unit": "kg"}]})
        )

    def test_as_it_is(self) -> None:
        """What has no annotation, or Any, is left as it is, whatever it is."""

        def loose(self: Any, context: Any, one, two: Any = None, *, three: object = 1, **more: int) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

        args = {"one": [1], "two": {"a": 1}, "three": None, "four": "x"}
        self.assertEqual(self.contract(loose).convert_arguments(args), args)

        def bare(self, context, one):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            """Has no annotations."""

        self.assertIs(self.contract(bare).convert_arguments(args), args)

    def test_mixed(self) -> None:
        """Arguments with and without annotations reach the method together."""

        def mixed(self: Any, context: Any, when: dt.date, what) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

        converted = self.contract(mixed).convert_arguments({"when": "2026-11-29", "what": "2026-11-29"})
        self.assertEqual(converted, {"when": dt.date(2026, 11, 29), "what": "2026-11-29"})

    def test_constraints(self) -> None:
        """Bounds of msgspec.Meta are checked."""

        def take(self: Any, context: Any, amount: Annotated[int, msgspec.Meta(ge=1, le=10)]) -> None: ...

        contract = self.contract(take)
        self.assertEqual(contract.convert_arguments({"amount": 10}), {"amount": 10})
        self.assertIn("amount: expected int <= 10", self.refused(contract, amount=11))

    def test_integer_keys(self) -> None:
        """JSON has keys of text only; those of an annotated dict are converted."""

        def take(self: Any, context: Any, by_number: dict[int, str]) -> None: ...

        self.assertEqual(self.contract(take).convert_arguments({"by_number": {"7": "a"}}), {"by_number": {7: "a"}})


class ResultTests(ContractCase):
    def test_converted(self) -> None:
        """A result becomes what JSON has."""

        def read(self: Any, context: Any) -> Order: ...

        plain = {"number": NUMBER, "lines": [{"item": "tea", "amount": 1, "unit": "g"}], "due": None}
        result = Order(uuid.UUID(NUMBER), [Line("tea", 1, Unit.GRAM)])
        self.assertEqual(self.contract(read).convert_result(result), plain)

    def test_wrong(self) -> None:
        """A result of another type is an error, which names the path."""

        def read(self: Any, context: Any) -> list[Line]: ...

        contract = self.contract(read)
        for result, text in (
            (7, "the result: expected array, got int"),
            ([Line("tea", "x")], "the result[0].amount: expected int, got str"),  # type: ignore[arg-type]
            ([Plain()], "the result: "),
        ):
            error = self.assertRaises(ResultNotSerializableError, contract.convert_result, result)
            self.assertIn(text, str(error))

    def test_later(self) -> None:
        """What a Deferred or an awaitable has in the end is what counts."""

        def deferred(self: Any, context: Any) -> "Deferred[Line]": ...

        def either(self: Any, context: Any) -> "Awaitable[int] | None": ...

        async def coroutine(self: Any, context: Any) -> Line: ...

        def bare(self: Any, context: Any) -> Deferred: ...  # type: ignore[type-arg]

        self.assertEqual([self.contract(each).result for each in (deferred, coroutine, bare)], [Line, Line, Any])
        self.assertEqual(self.contract(either).convert_result(None), None)
        self.assertRaises(ResultNotSerializableError, self.contract(either).convert_result, "x")

    def test_plain(self) -> None:
        """Plain values are themselves; those without an annotation are left alone."""

        def number(self: Any, context: Any) -> int: ...

        def anything(self: Any, context: Any): ...  # type: ignore[no-untyped-def]  # noqa: ANN202

        value = Plain()
        self.assertIs(self.contract(anything).convert_result(value), value)
        self.assertEqual(self.contract(number).convert_result(7), 7)
        self.assertRaises(ResultNotSerializableError, self.contract(number).convert_result, None)


class DeclarationTests(ContractCase):
    def test_unknown(self) -> None:
        """An annotation that JSON cannot represent, or that cannot be resolved, is an error of the declaration."""

        def custom(self: Any, context: Any, given: list[Plain]) -> None: ...

        def returned(self: Any, context: Any) -> Plain: ...

        def unresolved(self: Any, context: Any, given: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        def ambiguous(self: Any, context: Any, given: Line | Order) -> None: ...

        for function, text in (
            (custom, "the annotation of 'given' cannot be checked: "),
            (returned, "the annotation of the result cannot be checked: "),
            (unresolved, "an annotation cannot be resolved: name 'Nowhere' is not defined"),
            (ambiguous, "the annotation of 'given' cannot be checked: "),
        ):
            error = self.assertRaises(DeclarationError, self.contract, function)
            self.assertIn(f"shop.Stock.m: {text}", str(error))

    def test_recursive(self) -> None:
        """Classes may refer to themselves."""

        def walk(self: Any, context: Any, tree: Tree) -> Tree: ...

        converted = self.contract(walk).convert_arguments({"tree": {"children": [{"children": []}]}})
        self.assertEqual(converted, {"tree": Tree([Tree([])])})

    def test_schema(self) -> None:
        """The schema says what a call passes and what it returns."""

        def place(self: Any, context: Any, order: Order, amount: int = 1) -> list[str]: ...

        schema = self.contract(place).schema()
        self.assertEqual(schema["result"], {"type": "array", "items": {"type": "string"}})
        self.assertIn("Line", schema["$defs"])


@dataclasses.dataclass
class Tree:
    children: "list[Tree]"
