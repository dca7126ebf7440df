"""A manager with every kind of type, and with names that are hard to write in Python; also as another version."""

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from typing import Any, Dict, List, Literal, NamedTuple, TypedDict  # noqa: UP035 - methods hide list and dict

import attrs
import msgspec

from novasvc import Manager, RequestContext, rpc


class Unit(enum.Enum):
    GRAM = "g"
    PIECE = "pc"


class Level(enum.IntEnum):
    LOW = -1
    HIGH = 1


@dataclasses.dataclass
class Line:
    item: str
    amount: int = 1
    unit: Unit = Unit.PIECE
    list: List[str] = dataclasses.field(default_factory=list)  # noqa: UP006
    date: dt.date | None = None


@dataclasses.dataclass
class Tree:
    children: "list[Tree]"
    parent: "Tree | None" = None


@attrs.frozen
class Order:
    number: uuid.UUID
    lines: list[Line]
    price: decimal.Decimal
    due: dt.datetime | None = None
    level: Level = Level.LOW
    first: Line = attrs.field(factory=lambda: Line("first"))


Odd = TypedDict("Odd", {"class": str, "from": int, "tree": Tree}, total=False)


class Point(NamedTuple):
    x: int
    y: float


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    age: int


class Wild(Manager):
    @rpc.expose(version="1.3", expected=(LookupError,))
    def place(
        self, context: RequestContext, order: Order, note: str = "", *, urgent: bool = False, unit: Unit = Unit.GRAM
    ) -> Order:
        r"""Place an order: "now" or \ later, and \""" too."""
        return order

    @rpc.expose
    def list(self, context: RequestContext, limit: int | None = None) -> List[Line]:  # noqa: UP006
        return [Line("tea", 2)]

    @rpc.expose
    def dict(self, context: RequestContext, keys: Dict[str, dt.datetime]) -> Dict[str, dt.datetime]:  # noqa: UP006
        return keys

    @rpc.expose
    def anything(self, context, value=None, size=3):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return [value, size]

    @rpc.expose
    def many(self, context: RequestContext, first: int, **more: Any) -> Dict[str, Any]:  # noqa: UP006
        return {"first": first, **more}

    @rpc.expose
    def odd(
        self,
        ctxt: RequestContext,
        context: Odd,
        pet: Cat | Dog | None = None,
        point: Point | None = None,
        kind: Literal["a", 'b"'] = "a",
    ) -> Odd:
        return context if pet is None else Odd(tree=Tree([]))

    @rpc.expose
    def trees(self, context: RequestContext, tree: Tree) -> Tree:
        return tree

    @rpc.expose
    def nothing(self, context: RequestContext) -> None:
        """Return nothing."""

    @rpc.expose(version="2.1")
    def newer(self, context: RequestContext) -> tuple[int, str]:
        return (1, "a")

    @rpc.expose(namespace="admin")
    def reset(self, context: RequestContext) -> set[int]:
        return {1}


class OtherWild(Manager):
    """The same topic in another version."""

    @rpc.expose(version="1.3")
    def list(self, context: RequestContext, limit: str | None = None) -> List[int]:  # noqa: UP006
        return [1]

    @rpc.expose(version="1.3")
    def trees(self, context: RequestContext, tree: List[int]) -> None:  # noqa: UP006
        """Take another type."""
