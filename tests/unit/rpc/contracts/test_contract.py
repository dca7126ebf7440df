"""Tests for novasvc.rpc.contracts.contract."""

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Awaitable
from typing import Annotated, Any, Final, Literal, TypedDict

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, InvalidArgumentsError, ResultNotSerializableError
from novasvc.rpc.contracts.contract import Contract, contract_of
from novasvc.rpc.contracts.description import describe_methods
from novasvc.rpc.payload import dumps, loads
from tests.support.rpc_rig import RPCCase


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
        contract = contract_of(function, "m", "shop.Stock.m")
        assert contract is not None
        return contract

    def converted(self, function: Any, args: dict[str, Any]) -> Any:
        """Convert arguments as the dispatcher does."""
        contract = self.contract(function)
        fitting = args if contract.shape is None else contract.shape.fit(args)
        return msgspec.convert(fitting, contract.arguments, str_keys=True)

    def refused(self, function: Any, **args: Any) -> str:
        error = self.assertRaises(msgspec.ValidationError, self.converted, function, args)
        return str(self.contract(function).invalid_arguments(error))


class ArgumentsTests(ContractCase):
    def test_converted(self) -> None:
        """Nested classes, enums, UUIDs and times are made of their JSON."""

        def place(self: Any, context: Any, order: Order, price: decimal.Decimal) -> None: ...

        lines = [{"item": "tea", "amount": 2, "unit": "g"}, {"item": "pot"}]
        order = {"number": NUMBER, "lines": lines, "due": "2026-11-29T10:00:00Z"}
        converted = self.converted(place, {"order": order, "price": "1.20"})
        due = dt.datetime(2026, 11, 29, 10, tzinfo=dt.UTC)
        expected = Order(uuid.UUID(NUMBER), [Line("tea", 2, Unit.GRAM), Line("pot")], due)
        self.assertEqual(converted, {"order": expected, "price": decimal.Decimal("1.20")})

    def test_wrong(self) -> None:
        """An error names the path to the wrong value, what was expected, and what came."""

        def place(self: Any, context: Any, order: Order, amount: int = 1) -> None: ...

        order = {"number": NUMBER, "lines": [{"item": "tea", "amount": "2"}]}
        self.assertIn("'m': order.lines[0].amount: expected int, got str", self.refused(place, order=order))
        self.assertIn("'m': amount: expected int, got float", self.refused(place, amount=1.5))
        self.assertIn("'m': order: object missing required field lines", self.refused(place, order={"number": NUMBER}))
        self.assertIn(
            "order.lines[0].unit: invalid enum value 'kg'; allowed: 'g', 'pc'",
            self.refused(place, order={**order, "lines": [{"item": "a", "unit": "kg"}]}),
        )

    def test_allowed(self) -> None:
        """The error about a wrong value of an enum or a Literal lists those that are allowed, wherever it is."""
        many = enum.IntEnum("Many", [f"A{number}" for number in range(30)])

        def place(
            self: Any,
            context: Any,
            either: Literal["a", "b"] | None = None,
            named: dict[str, Unit] | None = None,
            pair: tuple[int, Unit] | None = None,
            units: Annotated[list[Unit], msgspec.Meta(max_length=3)] | None = None,
            number: many | None = None,  # type: ignore[valid-type]
        ) -> None: ...

        units = "allowed: 'g', 'pc'"
        self.assertIn("allowed: 'a', 'b'", self.refused(place, either="c"))
        self.assertIn(units, self.refused(place, named={"x": "kg"}))
        self.assertIn(f"pair[1]: invalid enum value 'kg'; {units}", self.refused(place, pair=[1, "kg"]))
        self.assertIn(units, self.refused(place, units=["g", "kg"]))
        self.assertIn("allowed: 1, 2, 3, 4", self.refused(place, number=99))
        self.assertIn("20 and 10 more", self.refused(place, number=99))

    def test_none(self) -> None:
        """A method without annotations has no contract."""

        def bare(self, context, one):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            """Has no annotations."""

        self.assertIs(contract_of(bare, "m", "shop.Stock.m"), None)

    def test_constraints(self) -> None:
        """Bounds of msgspec.Meta are checked."""

        def take(self: Any, context: Any, amount: Annotated[int, msgspec.Meta(ge=1, le=10)]) -> None: ...

        self.assertEqual(self.converted(take, {"amount": 10}), {"amount": 10})
        self.assertIn("amount: expected int <= 10", self.refused(take, amount=11))

    def test_integer_keys(self) -> None:
        """JSON has keys of text only; those of an annotated dict are converted."""

        def take(self: Any, context: Any, by_number: dict[int, str]) -> None: ...

        self.assertEqual(self.converted(take, {"by_number": {"7": "a"}}), {"by_number": {7: "a"}})


DESCRIBED = msgspec.Meta(description="d")


class UnknownFieldTests(ContractCase):
    """See Note [Unknown fields] in novasvc.rpc.contracts.shape."""

    def test_refused(self) -> None:
        """A field that a class does not have is refused, however nested; the error has the path and the fields."""

        def place(self: Any, context: Any, order: Order, by_name: dict[str, Line] | None = None) -> None: ...

        order = {"number": NUMBER, "lines": [{"item": "tea"}]}
        self.assertEqual(
            self.refused(place, order={**order, "lines": [{"item": "tea"}, {"item": "tea", "amout": 2}]}),
            "invalid arguments for 'm': order.lines[1]: object contains unknown field amout; its fields are: amount, "
            "item, unit",
        )
        self.assertIn("'m': order: object contains unknown field gift", self.refused(place, order={**order, "gift": 1}))
        named = {"a": {"item": "tea", "x": 1}}
        self.assertIn("by_name.a: object contains unknown field x", self.refused(place, order=order, by_name=named))

    def test_kinds(self) -> None:
        """Tuples, unions, TypedDicts, recursive and tagged classes are read, too."""

        def take(
            self: Any,
            context: Any,
            pair: tuple[int, Line] | Line,
            typed: Typed,
            tree: Tree,
            either: Small | Large,
        ) -> None: ...

        right: dict[str, Any] = {
            "pair": [1, {"item": "tea"}],
            "typed": {"line": {"item": "tea"}},
            "tree": {"children": [{"children": []}]},
            "either": {"type": "Large", "lines": [{"item": "tea"}]},
        }
        converted = self.converted(take, right)
        self.assertEqual((converted["pair"], converted["either"]), ((1, Line("tea")), Large([Line("tea")])))
        wrong = {"item": "tea", "x": 1}
        for name, value, path in (
            ("pair", [1, wrong], "pair[1]"),
            ("pair", wrong, "pair"),
            ("typed", {"line": wrong}, "typed.line"),
            ("typed", {"x": 1}, "typed"),
            ("tree", {"children": [{"children": [{"x": 1}]}]}, "tree.children[0].children[0]"),
            ("either", {"type": "Large", "lines": [wrong]}, "either.lines[0]"),
        ):
            expected = f"'m': {path}: object contains unknown field x"
            self.assertIn(expected, self.refused(take, **{**right, name: value}))

    def test_described(self) -> None:
        """A description in an annotation changes nothing, wherever it is."""

        def take(
            self: Any,
            context: Any,
            line: Annotated[Line, DESCRIBED],
            many: list[Annotated[Line, DESCRIBED]],
            either: Annotated[Small, DESCRIBED] | Annotated[Large, DESCRIBED],
            optional: Annotated[Annotated[Line, DESCRIBED] | int, DESCRIBED] | None,
        ) -> None: ...

        right: dict[str, Any] = {
            "line": {"item": "tea"},
            "many": [{"item": "tea"}],
            "either": {"type": "Large", "lines": [{"item": "tea"}]},
            "optional": {"item": "tea"},
        }
        self.assertEqual(self.converted(take, right)["optional"], Line("tea"))
        wrong = {"item": "tea", "x": 1}
        for name, value, path in (
            ("line", wrong, "line"),
            ("many", [wrong], "many[0]"),
            ("either", {"type": "Large", "lines": [wrong]}, "either.lines[0]"),
            ("optional", wrong, "optional"),
        ):
            expected = f"'m': {path}: object contains unknown field x"
            self.assertIn(expected, self.refused(take, **{**right, name: value}))

    def test_structs(self) -> None:
        """A msgspec.Struct decides by itself: by default it accepts what it does not know."""

        def take(self: Any, context: Any, open_one: Small, closed: Closed) -> None: ...

        right = {"open_one": {"type": "Small", "number": 1, "new": 1}, "closed": {"number": 1}}
        self.assertEqual(self.converted(take, right), {"open_one": Small(1), "closed": Closed(1)})
        error = self.refused(take, **{**right, "closed": {"number": 1, "new": 1}})
        self.assertIn("closed: object contains unknown field new", error)

    def test_many(self) -> None:
        """An error stays short, however many names a caller sends, and however long they are."""

        def take(self: Any, context: Any, line: Line) -> None: ...

        error = self.refused(take, line={f"{'x' * 1000}{number}": 1 for number in range(1000)})
        self.assertLess(len(error), 1000)

    def test_nothing_to_read(self) -> None:
        """A contract without objects and times has no shape, and its calls pay nothing."""

        def take(self: Any, context: Any, names: list[str], counts: dict[str, int], unit: Unit) -> None: ...

        self.assertIsNone(self.contract(take).shape)


EAST = dt.timezone(dt.timedelta(hours=2))
NOON = dt.datetime(2026, 11, 29, 12, tzinfo=dt.UTC)


class TimeTests(ContractCase):
    """See Note [Times without an offset] in novasvc.rpc.contracts.shape."""

    def test_arguments(self) -> None:
        """A time without an offset is in UTC; one with an offset keeps it; the method always gets an aware one."""

        def take(self: Any, context: Any, at: dt.datetime, more: dict[str, list[dt.datetime | None]]) -> None: ...

        more = {"a": ["2026-11-29T12:00:00.000000", None, "2026-11-29T14:00:00+02:00"]}
        converted = self.converted(take, {"at": "2026-11-29 12:00:00", "more": more})
        self.assertEqual(converted, {"at": NOON, "more": {"a": [NOON, None, NOON]}})
        self.assertEqual(converted["more"]["a"][2].utcoffset(), dt.timedelta(hours=2))
        self.assertEqual(self.converted(take, {"at": "2026-11-29t12:00:00", "more": {}})["at"], NOON)
        self.assertIn("at: invalid RFC3339 encoded datetime", self.refused(take, at="noon", more={}))

    def test_described(self) -> None:
        """A time with a description in its annotation is aware, and has its format in the schema."""

        def take(self: Any, context: Any, at: Annotated[dt.datetime, DESCRIBED] | None) -> None: ...

        self.assertEqual(self.converted(take, {"at": "2026-11-29T12:00:00"}), {"at": NOON})
        given = self.contract(take).schema()["$defs"]["m_arguments"]["properties"]
        self.assertIn({"description": "d", "type": "string", "format": "date-time-local"}, given["at"]["anyOf"])

    def test_naive(self) -> None:
        """A method that asks for naive times gets them."""

        def take(self: Any, context: Any, at: Annotated[dt.datetime, msgspec.Meta(tz=False)]) -> None: ...

        self.assertIsNone(self.converted(take, {"at": "2026-11-29T12:00:00"})["at"].tzinfo)

    def test_results(self) -> None:
        """A time in a result is converted to UTC before its offset is dropped; a naive one is sent as it is."""

        def read(self: Any, context: Any) -> list[dt.datetime]: ...

        east, naive = NOON.astimezone(EAST), NOON.replace(tzinfo=None)
        plain = self.contract(read).convert_result([NOON, east, naive])
        self.assertEqual(loads(dumps(plain, "value")), ["2026-11-29T12:00:00.000000"] * 3)

    def test_schema(self) -> None:
        """Times have their format in the schemas, wherever they are: that of times without an offset."""
        aware, naive = (Annotated[dt.datetime, msgspec.Meta(tz=tz)] for tz in (True, False))

        def read(  # type: ignore[valid-type]
            self: Any,
            context: Any,
            at: dt.datetime | None,
            many: list[dt.datetime],
            order: Order | list[dt.datetime],
            zoned: aware | None,
            bare: naive,
        ) -> tuple[int, dt.datetime]: ...

        schema = self.contract(read).schema()
        time = {"type": "string", "format": "date-time-local", "description": "A time in UTC, without an offset."}
        given = schema["$defs"]["m_arguments"]["properties"]
        self.assertIn(time, given["at"]["anyOf"])
        self.assertIn(time, given["zoned"]["anyOf"])
        self.assertEqual(given["bare"], {"type": "string", "format": "date-time-local"})
        self.assertEqual(given["many"]["items"], time)
        self.assertIn({"type": "array", "items": time}, given["order"]["anyOf"])
        self.assertIn(time, schema["$defs"]["Order"]["properties"]["due"]["anyOf"])
        self.assertEqual(schema["result"]["prefixItems"][1], time)


class ResultTests(ContractCase):
    def test_converted(self) -> None:
        """A result becomes what JSON has."""

        def read(self: Any, context: Any) -> Order: ...

        plain = {"number": uuid.UUID(NUMBER), "lines": [{"item": "tea", "amount": 1, "unit": "g"}], "due": None}
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

    def test_not_awaited(self) -> None:
        """A result that is still to be awaited is named as what it is."""

        def later(self: Any, context: Any) -> str: ...

        async def coroutine() -> str:
            return "x"

        running = coroutine()
        self.addCleanup(running.close)
        for result, name in ((Deferred(), "Deferred"), (running, "coroutine")):
            error = self.assertRaises(ResultNotSerializableError, self.contract(later).convert_result, result)
            self.assertIn(f"the result is a {name}: an await is missing", str(error))

    def test_later(self) -> None:
        """What a Deferred or an awaitable has in the end is what counts."""

        def deferred(self: Any, context: Any) -> "Deferred[Line]": ...

        def either(self: Any, context: Any) -> "Awaitable[int] | None": ...

        async def coroutine(self: Any, context: Any) -> Line: ...

        def bare(self: Any, context: Any) -> Deferred: ...  # type: ignore[type-arg]

        self.assertEqual([self.contract(each).result for each in (deferred, coroutine)], [Line, Line])
        self.assertIs(contract_of(bare, "m", "shop.Stock.m"), None)
        self.assertEqual(self.contract(either).convert_result(None), None)
        self.assertRaises(ResultNotSerializableError, self.contract(either).convert_result, "x")

    def test_plain(self) -> None:
        """Plain values are themselves; those without an annotation are left alone."""

        def number(self: Any, context: Any) -> int: ...

        def anything(self: Any, context: Any): ...  # type: ignore[no-untyped-def]  # noqa: ANN202

        self.assertIs(contract_of(anything, "m", "shop.Stock.m"), None)
        self.assertEqual(self.contract(number).convert_result(7), 7)
        self.assertRaises(ResultNotSerializableError, self.contract(number).convert_result, None)


class DeclarationTests(ContractCase):
    def test_unknown(self) -> None:
        """An annotation that JSON cannot represent, or that cannot be resolved, is an error of the declaration."""

        def custom(self: Any, context: Any, given: list[Plain]) -> None: ...

        def returned(self: Any, context: Any) -> Plain: ...

        def unresolved(self: Any, context: Any, given: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        def binary(self: Any, context: Any, given: list[bytes]) -> None: ...

        def ambiguous(self: Any, context: Any, given: Line | Order) -> None: ...

        def final(self: Any, context: Any, given: Final[int]) -> None: ...  # type: ignore[valid-type]

        for function, text in (
            (final, "an annotation cannot be checked: "),
            (custom, "the annotation of 'given' cannot be checked: "),
            (returned, "the annotation of the result cannot be checked: "),
            (unresolved, "an annotation cannot be resolved: name 'Nowhere' is not defined"),
            (binary, "the annotation of 'given' cannot be checked: bytes has no form in JSON"),
            (ambiguous, "the annotation of 'given' cannot be checked: "),
        ):
            error = self.assertRaises(DeclarationError, self.contract, function)
            self.assertIn(f"shop.Stock.m: {text}", str(error))

    def test_context(self) -> None:
        """The annotation of the context need not be resolvable, as when it is imported for type checkers only."""

        def take(self: Any, context: "Unresolvable", text: str = None) -> None: ...  # type: ignore[name-defined, assignment]  # noqa: F821, RUF013

        self.assertEqual(self.converted(take, {"text": None}), {"text": None})
        self.assertEqual(self.refused(take, text=1), "invalid arguments for 'm': text: expected str | null, got int")

    def test_recursive(self) -> None:
        """Classes may refer to themselves."""

        def walk(self: Any, context: Any, tree: Tree) -> Tree: ...

        converted = self.converted(walk, {"tree": {"children": [{"children": []}]}})
        self.assertEqual(converted, {"tree": Tree([Tree([])])})

    def test_schema(self) -> None:
        """The schema says what a call passes and what it returns."""

        def place(self: Any, context: Any, order: Order, amount: int = 1) -> list[str]: ...

        schema = self.contract(place).schema()
        self.assertEqual(schema["result"], {"type": "array", "items": {"type": "string"}})
        arguments = schema["$defs"]["m_arguments"]
        self.assertEqual((sorted(arguments["properties"]), arguments["required"]), (["amount", "order"], ["order"]))
        self.assertEqual(schema["$defs"]["Line"]["required"], ["item"])

    def test_no_schema(self) -> None:
        """A class with a default that JSON cannot hold is described without a schema, and hides no other method."""
        rows = {row["method"]: row for row in describe_methods(rpc.Endpoints(Odd()))}
        self.assertEqual((rows["odd"]["schema"], rows["odd"]["signature"]), (None, "(value: Marked) -> int"))
        self.assertIsNotNone(rows["even"]["schema"])


@dataclasses.dataclass
class Strict:
    """Raises what is neither a ValueError nor a TypeError."""

    number: int

    def __post_init__(self) -> None:
        if self.number <= 0:
            raise RuntimeError("not above 0")


@dataclasses.dataclass
class Tree:
    children: "list[Tree]"


class Typed(TypedDict, total=False):
    line: Line


class Small(msgspec.Struct, tag=True):
    number: int


class Large(msgspec.Struct, tag=True):
    lines: list[Line]


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    number: int


class Shop:
    """An endpoint that notes what it was called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    @rpc.expose
    def place(self, context: RequestContext, line: Line, when: dt.date, note=None, *, more: Any = 1) -> Line:  # type: ignore[no-untyped-def]  # noqa: ANN001
        self.calls.append((line, when, note, more))
        return line

    @rpc.expose
    async def count(self, context: RequestContext) -> dict[str, dt.datetime]:
        return {"a": dt.datetime(2026, 11, 29, 10, tzinfo=dt.UTC)}

    @rpc.expose
    def strict(self, context: RequestContext, given: Strict) -> Strict:
        given.number = -given.number
        return given

    @rpc.expose
    def raw(self, context: RequestContext) -> bytes:
        return b"abcd"

    @rpc.expose
    def lie(self, context: RequestContext) -> int:
        return "seven"  # type: ignore[return-value]


_MISSING: Any = object()


@dataclasses.dataclass
class Marked:
    value: Any = _MISSING


class Odd:
    @rpc.expose
    def odd(self, context: RequestContext, value: Marked) -> int: ...

    @rpc.expose
    def even(self, context: RequestContext, value: int) -> int: ...


class CallTests(RPCCase):
    """Contracts on the way of a call."""

    def make_endpoint(self) -> Any:
        return Shop()

    def test_converted(self) -> None:
        """The method gets what its annotations say, the caller gets JSON; what is not annotated is as it was sent."""
        calling = self.call("place", line={"item": "tea"}, when="2026-11-29", note="2026-11-29", more={"a": 1})
        self.assertEqual(self.successResultOf(calling), {"item": "tea", "amount": 1, "unit": "pc"})
        expected = (Line("tea"), dt.date(2026, 11, 29), "2026-11-29", {"a": 1})
        self.assertEqual(self.diary.calls, [expected])

    def test_refused(self) -> None:
        """The method does not run with an argument of another type."""
        calling = self.call("place", line={"item": 7}, when="2026-11-29")
        error = self.failureResultOf(calling, InvalidArgumentsError).value
        self.assertEqual((error.method, error.problem), ("place", "line.item: expected str, got int"))
        calling = self.call("place", line={"item": "tea", "amout": 2}, when="2026-11-29")
        error = self.failureResultOf(calling, InvalidArgumentsError).value
        self.assertEqual(error.problem, "line: object contains unknown field amout; its fields are: amount, item, unit")
        self.assertEqual(self.diary.calls, [])

    def test_peers(self) -> None:
        """Times are written as OpenStack's services write them, with and without a contract."""
        self.assertEqual(self.successResultOf(self.call("count")), {"a": "2026-11-29T10:00:00.000000"})

    def test_own_checks(self) -> None:
        """Whatever a class raises when it is made, the caller is answered, and the server goes on."""
        error = self.failureResultOf(self.call("strict", given={"number": 0}), InvalidArgumentsError).value
        self.assertEqual(error.problem, "RuntimeError: not above 0")
        error = self.failureResultOf(self.call("strict", given={"number": 1}), ResultNotSerializableError).value
        self.assertEqual(error.problem, "the result: RuntimeError: not above 0")
        self.assertEqual((self.server.in_flight, self.client.pending), (0, 0))

    def test_bytes(self) -> None:
        """Bytes in a result are sent as text, as they always were."""
        self.assertEqual(self.successResultOf(self.call("raw")), "abcd")

    def test_wrong_result(self) -> None:
        """A result of another type than annotated is an error at the caller, and in the log."""
        error = self.failureResultOf(self.call("lie"), ResultNotSerializableError).value
        self.assertEqual(error.problem, "the result: expected int, got str, by the method's annotation")
