"""Tests for novasvc.rpc.failures.error_state: errors of every kind are made again with their attributes."""

import dataclasses
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any, ClassVar

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.failures.error_state import STATE, make_again, take_apart
from novasvc.rpc.payload import dumps, loads


class Reason(Enum):
    SOLD = "sold"
    LOST = "lost"


@dataclasses.dataclass
class Line:
    item: str
    amount: int = 1


class PlainError(Exception):
    """Its args are a sentence; its attributes are set by its constructor."""

    def __init__(self, item: str, left: int = 0, *, shelf: str = "A") -> None:
        super().__init__(f"{item}: {left} left")
        self.item, self.left, self.shelf = item, left, shelf


class LaterError(PlainError):
    """Sets more attributes later."""

    def found(self) -> None:
        raise NotImplementedError


@attrs.define
class AttrsError(Exception):
    item: str
    when: datetime
    line: Line
    _reasons: list[Reason] = attrs.field(factory=list, kw_only=True)

    def __str__(self) -> str:
        return f"{self.item}: {self._reasons}"


@attrs.frozen
class FrozenError(Exception):
    item: str


@dataclasses.dataclass
class DataError(Exception):
    item: str
    left: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenDataError(Exception):
    item: str


class NovaError(Exception):
    """As exceptions of OpenStack's services: a format, and keyword arguments."""

    msg_fmt: ClassVar[str] = "no %(what)s"

    def __init__(self, message: str | None = None, **kwargs: Any) -> None:
        self.kwargs = kwargs
        super().__init__(message or self.msg_fmt % kwargs)


class ReducedError(Exception):
    """As classes that are to be pickled."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self._number = code

    def __reduce__(self) -> Any:
        return ReducedError, (self._number,)


class CodedError(Exception):
    """Its constructor cannot be called with what is known."""

    _texts: ClassVar[dict[int, str]] = {1: "one"}

    def __init__(self, code: int) -> None:
        super().__init__(self._texts[code])
        self.number = code


class AnyError(Exception):
    def __init__(self, *args: Any, code: int = 0) -> None:
        super().__init__(*args)
        self.code = code


class SplitError(Exception):
    """Stores something else under the name of a parameter."""

    def __init__(self, items: str, when: datetime) -> None:
        super().__init__(items)
        self.items, self.when = items.split(","), when.isoformat()


class MessageError(Exception):
    """Has no attributes at all."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)


class PositionalError(Exception):
    def __init__(self, item: str, /, left: int = 0, *others: Any) -> None:
        super().__init__(item, left, *others)
        self.item, self.left = item, left


class OrderedError(Exception):
    def __init__(self, item: str, /, text: str = "", left: int = 0) -> None:
        super().__init__(text)
        self.item, self.left = item, left


class CopiedError(Exception):
    """Pickle is to call a function."""

    def __reduce__(self) -> Any:
        return CopiedError.make, self.args

    @classmethod
    def make(cls, *args: Any) -> "CopiedError":
        return cls(*args)


class StrictError(Exception):
    """Its constructor refuses what it has stored."""

    def __init__(self, item: str) -> None:
        super().__init__(item)
        self.item = item.encode("ascii").hex()
        if len(item) > 4:
            raise ValueError(item)


class NovaLikeError(Exception):
    """Has an attribute that is called kwargs, and does not take it."""

    def __init__(self, item: str) -> None:
        super().__init__(item)
        self.item, self.kwargs = item, {"color": "green"}


class DiskError(OSError):
    pass


class SlotError(Exception):
    __slots__ = ("path", "unset")

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.path = place


class BareError(Exception):
    def __init__(self) -> None:
        super().__init__("always the same")


WHEN = datetime(2026, 11, 29, 12, tzinfo=UTC)

EXAMPLES: tuple[Exception, ...] = (
    PlainError("tea"),
    PlainError("tea", 2, shelf="B"),
    AttrsError("tea", WHEN, Line("tea", 3), reasons=[Reason.LOST]),
    FrozenError("tea"),
    DataError("tea", left=2),
    FrozenDataError(item="tea"),
    NovaError(what="tea"),
    NovaError("a text", what="tea"),
    ReducedError(7),
    CodedError(1),
    AnyError("a", 2, code=3),
    SplitError("a,b", WHEN),
    MessageError("hello"),
    PositionalError("tea", 2, 3),
    OrderedError("tea", "text", 7),
    CopiedError("x"),
    StrictError("tea"),
    NovaLikeError("tea"),
    DiskError(28, "full", "/x"),
    SlotError("/x"),
    BareError(),
    Exception("x", 1),
    LookupError(),
)


def crossed(error: Exception, kind: type[Exception] | None = None, **changes: Any) -> Exception:
    """Return what becomes of an error on the wire.

    :param kind: the class there, if it is another.
    :param changes: fields that are changed on the way.
    """
    return make_again(kind or type(error), {**loads(dumps(take_apart(error), "the error")), **changes})


def attributes(error: Exception) -> dict[str, Any]:
    found = {name: value for name, value in vars(error).items() if not name.startswith("__")}
    if attrs.has(type(error)):
        found.update((field.name, getattr(error, field.name)) for field in attrs.fields(type(error)))
    return found


class MakeAgainTests(SynchronousTestCase):
    def test_kinds(self) -> None:
        """Class, args, text and attributes are kept, whatever the class is made with."""
        for error in EXAMPLES:
            again = crossed(error)
            self.assertEqual((type(again), again.args, str(again)), (type(error), error.args, str(error)))
            self.assertEqual(attributes(again), attributes(error))

    def test_oslo(self) -> None:
        """A caller that uses oslo.messaging calls the class with args and kwargs, and gets an equal error."""
        for error in EXAMPLES:
            if not isinstance(error, CodedError | SplitError):
                fields = loads(dumps(take_apart(error), "the error"))
                again = type(error)(*fields["args"], **fields["kwargs"])
                self.assertEqual(vars(again).keys(), vars(error).keys())
                self.assertEqual(getattr(again, "item", None), getattr(error, "item", None))
        del fields[STATE]
        self.assertEqual(type(make_again(PlainError, {"args": ["tea"]})), PlainError)

    def test_slots_and_members(self) -> None:
        """Attributes in slots are kept, and those that a built-in class has."""
        self.assertEqual(crossed(SlotError("/x")).path, "/x")  # type: ignore[attr-defined]
        disk = crossed(DiskError(28, "full", "/x"))
        self.assertEqual((disk.errno, disk.filename), (28, "/x"))  # type: ignore[attr-defined]

    def test_later_attributes(self) -> None:
        """Attributes that were set after the constructor, private ones too, are kept."""
        error: Any = LaterError("tea", 1)
        error.left, error.shelf, error._seen = 5, {"deep": [1, None]}, True
        again: Any = crossed(error)
        self.assertEqual((again.left, again.shelf, again._seen), (5, {"deep": [1, None]}, True))

    def test_types(self) -> None:
        """Attributes with annotations have the annotated types again: datetimes, enums, dataclasses."""
        again: Any = crossed(AttrsError("tea", WHEN, Line("tea", 3), reasons=[Reason.LOST]))
        self.assertEqual((again.when, again.line, again._reasons), (WHEN, Line("tea", 3), [Reason.LOST]))
        self.assertEqual(again.args, ("tea", WHEN, Line("tea", 3), [Reason.LOST]))

    def test_not_json(self) -> None:
        """Attributes that JSON cannot hold are left out, and a note names them and their types."""
        error: Any = PlainError("tea", 1)
        error.lock, error.path, error.self = threading.Lock(), PurePath("/x"), error
        error.data = b"\xff"
        again: Any = crossed(error)
        self.assertEqual((type(again), again.item), (PlainError, "tea"))
        for name in ("lock", "path", "data"):
            self.assertFalse(hasattr(again, name), name)
        (note,) = again.__notes__
        self.assertRegex(
            note, r"not sent, because JSON cannot hold them: lock \(lock\), path \(PurePosixPath\), data \(b"
        )

    def test_argument_not_json(self) -> None:
        """An error whose constructor needs what JSON cannot hold is made without the constructor."""
        again: Any = crossed(DataError(threading.Lock(), 3))  # type: ignore[arg-type]
        self.assertEqual((type(again), again.left, again.args), (DataError, 3, ("<lock>", 3)))
        self.assertIn("item (lock)", again.__notes__[0])

    def test_cyclic(self) -> None:
        """An attribute that contains itself is left out."""
        error: Any = PlainError("tea")
        error.loop = []
        error.loop.append(error.loop)
        self.assertIn("loop (list)", crossed(error).__notes__[0])


def class_with(constructor: Callable[..., None]) -> type[Exception]:
    return type("PlainError", (Exception,), {"__init__": constructor})


class VersionTests(SynchronousTestCase):
    """The class of the caller is of another version than that of the service."""

    def test_new_argument(self) -> None:
        """A new argument with a default gets it; an argument that is gone is an attribute still."""

        def constructor(self: Any, item: str, color: str = "green") -> None:
            Exception.__init__(self, item)
            self.item, self.color = item, color

        again: Any = crossed(PlainError("tea", 2), class_with(constructor))
        self.assertEqual((again.item, again.color, again.left, str(again)), ("tea", "green", 2, "tea: 2 left"))

    def test_required_argument(self) -> None:
        """A new argument without a default is an error that names it."""

        def constructor(self: Any, item: str, warehouse: str) -> None: ...

        error = self.assertRaises(TypeError, crossed, PlainError("tea"), class_with(constructor))
        self.assertIn("missing 1 required positional argument: 'warehouse'", str(error))

    def test_other_type(self) -> None:
        """An attribute that does not fit its annotation stays as it was sent."""

        def constructor(self: Any, item: int, left: float) -> None: ...

        again: Any = crossed(PlainError("tea", 2), class_with(constructor))
        self.assertEqual((again.item, again.left), ("tea", 2))

    def test_none(self) -> None:
        """An annotated attribute may be None, as often when its default is."""
        self.assertIsNone(crossed(DataError(None)).item)  # type: ignore[arg-type, attr-defined]


class HostileTests(SynchronousTestCase):
    def test_methods(self) -> None:
        """A peer's attributes hide no method, and none with two underscores is set."""
        state = {
            "constructor": None,
            "args": [],
            "attributes": {"found": 1, "with_traceback": 1, "__class__": 1, "__notes__": 1, "x": 2},
        }
        again: Any = make_again(LaterError, {STATE: state})
        self.assertTrue(callable(again.found) and callable(again.with_traceback))
        self.assertEqual(vars(again), {"x": 2})

    def test_forms(self) -> None:
        """Fields of another form raise, and are not taken apart."""
        for fields in (
            {"args": "tea"},
            {"args": ["tea"], "kwargs": []},
            {STATE: []},
            {STATE: {"args": "tea"}},
            {STATE: {"attributes": ["tea"]}},
            {STATE: {"omitted": "tea"}},
        ):
            error = self.assertRaises(TypeError, make_again, Exception, fields)
            self.assertIn(" is a ", str(error))
        self.assertEqual(json.dumps(make_again(Exception, {STATE: {}}).args), "[]")
