"""Tests for novasvc.periodic.declare."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import DeclarationError
from novasvc.periodic import periodic_task
from novasvc.periodic.declare import declared_tasks, overridden_tasks


class Base:
    """Two tasks, and a method that is not a task."""

    @periodic_task
    def sync_power(self, context: RequestContext) -> str:
        """Return the object that ran it."""
        return "base"

    @periodic_task(spacing=10, run_immediately=True, external_process_ok=True, name="reap", timeout=5)
    def _reap(self, context: RequestContext) -> str:
        return "reaped"

    def plain(self, context: RequestContext) -> None:
        """Do nothing."""


class DecoratorTests(SynchronousTestCase):
    """Tests for the decorator, on one method."""

    def refused(self, **options: Any) -> DeclarationError:
        def method(self: object, context: object) -> None: ...

        return self.assertRaises(DeclarationError, periodic_task(**options), method)

    def test_bare(self) -> None:
        """Without options a task runs in every pass, under the method's name."""
        declaration, _ = next(iter(declared_tasks(Base())))
        self.assertEqual(
            (declaration.name, declaration.spacing, declaration.run_immediately, declaration.enabled),
            ("sync_power", 0, False, True),
        )
        self.assertIsNone(declaration.timeout)

    def test_options(self) -> None:
        """The options are kept as they were given."""
        declaration = next(declared for declared, _ in declared_tasks(Base()) if declared.name == "reap")
        self.assertEqual((declaration.spacing, declaration.timeout), (10, 5))
        self.assertTrue(declaration.run_immediately and declaration.external_process_ok)

    def test_method_stays_callable(self) -> None:
        """A decorated method can still be called like any other."""
        self.assertEqual(Base().sync_power(RequestContext.admin()), "base")

    def test_spacing_that_is_no_number(self) -> None:
        """A spacing that is not a number is refused, with the method's name and the value."""
        for spacing in ("60", None, True, float("nan"), float("inf")):
            error = self.refused(spacing=spacing)
            self.assertIn("refused.<locals>.method", str(error))
            self.assertIn(f"spacing={spacing!r} is not a number", str(error))

    def test_timeout_not_above_zero(self) -> None:
        """A timeout that is not a positive number is refused."""
        for timeout in (0, -1, "5", False):
            self.assertIn(f"timeout={timeout!r} is not a number above 0", str(self.refused(timeout=timeout)))

    def test_name_that_is_no_text(self) -> None:
        """A name that is not a string is refused."""
        self.assertIn("name=7 is not a name", str(self.refused(name=7)))

    def test_no_context_parameter(self) -> None:
        """A method that does not accept a context is refused."""

        def method(self: object) -> None: ...

        error = self.assertRaises(DeclarationError, periodic_task, method)
        self.assertIn("cannot be called with a context", str(error))
        self.assertIn("write def method(self, context)", str(error))

    def test_parameter_without_default(self) -> None:
        """A method that requires more than a context is refused."""

        def method(self: object, context: object, instance: object) -> None: ...

        error = self.assertRaises(DeclarationError, periodic_task, method)
        self.assertIn("'instance'", str(error))

    def test_positional_spacing(self) -> None:
        """@periodic_task(60) is refused, and the error shows the right form."""
        error = self.assertRaises(DeclarationError, periodic_task, 60)
        self.assertIn("@periodic_task(spacing=60)", str(error))


class InheritanceTests(SynchronousTestCase):
    """Tasks of base classes."""

    def found(self, owner: object) -> dict[str, object]:
        return {declaration.name: method(RequestContext.admin()) for declaration, method in declared_tasks(owner)}

    def test_inherited(self) -> None:
        """A subclass has the tasks of its base classes first, then its own."""

        class Sub(Base):
            @periodic_task
            def more(self, context: RequestContext) -> str:
                return "more"

        self.assertEqual(list(self.found(Sub())), ["sync_power", "reap", "more"])

    def test_overridden_and_decorated(self) -> None:
        """A decorated override replaces method and declaration."""

        class Sub(Base):
            @periodic_task(spacing=7)
            def sync_power(self, context: RequestContext) -> str:
                return "sub after " + super().sync_power(context)

        owner = Sub()
        self.assertEqual(self.found(owner)["sync_power"], "sub after base")
        self.assertEqual([declaration.spacing for declaration, _ in declared_tasks(owner)], [7, 10])
        self.assertEqual(list(overridden_tasks(owner)), [])

    def test_overridden_undecorated(self) -> None:
        """An undecorated override is not a task, and is reported."""

        class Sub(Base):
            def sync_power(self, context: RequestContext) -> str:
                return "never"

        owner = Sub()
        self.assertEqual(list(self.found(owner)), ["reap"])
        self.assertEqual([declaration.name for declaration in overridden_tasks(owner)], ["sync_power"])

    def test_mixin(self) -> None:
        """A task of a mixin is found, wherever the mixin stands among the base classes."""

        class Mixin:
            @periodic_task
            def mixed(self, context: RequestContext) -> str:
                return "mixed"

        self.assertIn("mixed", self.found(type("Left", (Mixin, Base), {})()))
        self.assertIn("mixed", self.found(type("Right", (Base, Mixin), {})()))

    def test_properties_are_not_touched(self) -> None:
        """The search for tasks evaluates no property, and ignores attributes that answer to every name."""

        class Anything:
            def __getattr__(self, name: str) -> str:
                return name

        class Sub(Base):
            anything = Anything()

            @property
            def broken(self) -> None:
                raise AssertionError

        self.assertEqual(list(self.found(Sub())), ["sync_power", "reap"])
