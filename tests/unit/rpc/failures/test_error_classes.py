"""Tests for novasvc.rpc.failures.error_classes: the table of the exception classes that cross the wire as themselves."""

from typing import Any

import attrs
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from novasvc import errors, rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, InvalidArgumentsError
from novasvc.rpc.failures.error_classes import ErrorClasses, WireName, error_classes


class Twin(Exception):  # noqa: N818 - so that its name is short
    pass


class Shelf:
    class Twin(Exception):  # noqa: N818 - as above
        pass


@attrs.define
@rpc.error
class MadeAgainError(Exception):
    """attrs.define stands above, and makes another class."""

    item: str


@rpc.error(name="warehouse.errors.Elsewhere")
class NamedError(Exception):
    pass


class TableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = ErrorClasses()

    def test_name(self) -> None:
        """A class has the name of its module and itself, or the given one; a class that was not added has none."""
        self.table.add(Twin)
        self.table.add(KeyError, WireName("a.b", "C"))
        self.assertEqual(self.table.name_of(Twin), (Twin.__module__, "Twin"))
        self.assertIs(self.table.find(WireName(Twin.__module__, "Twin")), Twin)
        self.assertEqual(str(self.table.name_of(KeyError)), "a.b.C")
        self.assertIs(self.table.find(WireName("a.b", "C")), KeyError)
        self.assertIsNone(self.table.name_of(Shelf.Twin))
        self.assertIsNone(self.table.find(WireName("builtins", "KeyError")))

    def test_again(self) -> None:
        """A class may be added twice."""
        for _ in range(2):
            self.table.add(Twin, WireName("a", "B"))
            self.table.add(Twin)
        self.assertEqual(self.table.name_of(Twin), ("a", "B"))

    def test_two_classes(self) -> None:
        """Two classes of one name are an error that names both, and how to give one another name."""
        self.table.add(Twin)
        error = self.assertRaises(DeclarationError, self.table.add, Shelf.Twin)
        self.assertEqual(error.subject, f"{__name__}.Shelf.Twin")
        self.assertIn(f"{__name__}.Twin is registered under the same name", error.problem)
        self.assertIn("rpc.error(name=", error.remedy)
        self.table.add(Shelf.Twin, WireName("shelf", "Twin"))
        self.assertIs(self.table.find(WireName("shelf", "Twin")), Shelf.Twin)

    def test_two_names(self) -> None:
        """One class under two names is an error."""
        self.table.add(Twin, WireName("a", "B"))
        error = self.assertRaises(DeclarationError, self.table.add, Twin, WireName("a", "C"))
        self.assertIn("registered as a.B already", error.problem)

    def test_defined_again(self) -> None:
        """A class that is defined again, as by a reload of its module, replaces the former one."""

        def define() -> type[Exception]:
            class Reloaded(Exception):  # noqa: N818 - as above
                pass

            return Reloaded

        first, second = define(), define()
        for each in (first, second):
            self.table.add(each)
        self.assertIs(self.table.find(WireName(__name__, "Reloaded")), second)
        self.assertIsNone(self.table.name_of(first))

    def test_made_again(self) -> None:
        """A class that a decorator above rpc.error replaces is known by the class that stays."""
        self.assertIs(error_classes.find(WireName(__name__, "MadeAgainError")), MadeAgainError)
        self.assertEqual(error_classes.name_of(MadeAgainError), (__name__, "MadeAgainError"))


class DecoratorTests(SynchronousTestCase):
    def test_named(self) -> None:
        """The name on the wire may be another than the class's own."""
        self.assertEqual(error_classes.name_of(NamedError), ("warehouse.errors", "Elsewhere"))
        self.assertIs(rpc.error(NamedError), NamedError)

    def test_no_exception(self) -> None:
        """Only exception classes can be registered."""
        for wrong in (int, KeyboardInterrupt, ValueError("x"), "shop.OutOfStock", lambda: None):
            error = self.assertRaises(DeclarationError, rpc.error, wrong)
            self.assertIn("is not an exception class", str(error))

    def test_unfit(self) -> None:
        """Exceptions that control a coroutine or a Deferred are refused."""
        for base in (StopIteration, StopAsyncIteration, CancelledError):
            error = self.assertRaises(DeclarationError, rpc.error, type("Own", (base,), {}))
            self.assertIn(f"a {base.__name__} of its own", error.problem)

    def test_own_rules(self) -> None:
        """Python's exceptions need no registration, and those of novasvc are refused."""
        self.assertIs(rpc.error(ValueError), ValueError)
        self.assertIsNone(error_classes.name_of(ValueError))
        error = self.assertRaises(DeclarationError, rpc.error, errors.RPCTimeoutError)
        self.assertIn("WIRE_ERRORS", error.problem)

    def test_invalid_names(self) -> None:
        """A name on the wire has a module, and is not one whose errors have rules of their own."""
        for name, problem in (
            ("OutOfStock", "is not a name"),
            ("shop..OutOfStock", "is not a name"),
            ("", "is not a name"),
            ("builtins.ValueError", "rules of their own"),
            ("novasvc.errors.StateError", "rules of their own"),
            ("oslo_messaging.rpc.dispatcher.NoSuchMethod", "rules of their own"),
        ):
            error = self.assertRaises(DeclarationError, rpc.error(name=name), Twin)
            self.assertIn(problem, error.problem)
            self.assertEqual(error.subject, f"{__name__}.Twin")


class ExpectedTests(SynchronousTestCase):
    def test_registers(self) -> None:
        """An error that a method declares as expected is registered by that, under its name if it has one."""

        class DeclaredError(Exception):
            pass

        @rpc.expose(expected=(DeclaredError, NamedError, KeyError, InvalidArgumentsError, CancelledError))
        def method(self: Any, context: RequestContext) -> None: ...

        self.assertIs(error_classes.find(WireName(__name__, "DeclaredError")), DeclaredError)
        self.assertEqual(error_classes.name_of(NamedError), ("warehouse.errors", "Elsewhere"))
        for kind in (KeyError, InvalidArgumentsError, CancelledError):
            self.assertIsNone(error_classes.name_of(kind))
