"""Tests for novasvc.manager: how a manager is imported and made, and how that fails."""

import importlib
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import ManagerError
from novasvc.manager import Manager, make_manager


class Good(Manager):
    """A manager."""

    def __init__(self, host: str, color: str = "blue") -> None:
        super().__init__(host)
        self.color = color


class NoManager:
    """A class that is not a manager."""

    def __init__(self, host: str) -> None:
        self.host = host


def dict_of(**kwargs: Any) -> dict[str, Any]:
    """Return no manager."""
    return kwargs


NOT_A_CLASS = 7


class MakeManagerTests(SynchronousTestCase):
    """Tests for novasvc.manager.make_manager."""

    def setUp(self) -> None:
        self.module = types.ModuleType("some_managers")
        self.module.Good, self.module.NoManager, self.module.NOT_A_CLASS = Good, NoManager, NOT_A_CLASS
        sys.modules["some_managers"] = self.module
        self.addCleanup(sys.modules.pop, "some_managers")

    def problem(self, manager: Any, **kwargs: Any) -> str:
        return str(self.assertRaises(ManagerError, make_manager, manager, host="h1", **kwargs))

    def write_module(self, name: str, text: str) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        sys.path.insert(0, str(folder))
        self.addCleanup(sys.path.remove, str(folder))

    def test_dotted_names(self) -> None:
        """A manager is named by module and class, separated by a dot or a colon."""
        for name in ("some_managers.Good", "some_managers:Good"):
            manager = make_manager(name, host="h1", color="red")
            self.assertEqual((type(manager), manager.host, manager.color), (Good, "h1", "red"))

    def test_class(self) -> None:
        """A class is accepted in place of its name."""
        self.assertEqual(make_manager(Good, host="h1").host, "h1")

    def test_other_callables(self) -> None:
        """A partial, or an object that can be called, is accepted; if it fails, the error names its class."""
        self.assertEqual(make_manager(partial(Good, color="red"), host="h1").color, "red")
        self.assertIn(
            "manager 'functools.partial': its constructor takes (host", self.problem(partial(Good), hots="h2")
        )
        self.assertIn("manager 'builtins.min': its constructor raised TypeError", self.problem(min))

    def test_no_module(self) -> None:
        """A module that does not exist is named, with a remedy."""
        self.assertIn("there is no module 'nowhere'; install it", self.problem("nowhere.managers.Good"))

    def test_missing_dependency(self) -> None:
        """A module that imports a missing package is distinguished from a module that does not exist."""
        self.write_module("needs_something_odd", "import something_odd\n")
        self.assertIn(
            "needs_something_odd imports 'something_odd', which is not installed", self.problem("needs_something_odd.A")
        )

    def test_module_that_raises(self) -> None:
        """A module that raises at import is reported with the error."""
        self.write_module("raises_at_import", "x = 1\nx / 0\n")
        self.assertRegex(
            self.problem("raises_at_import.A"), r"importing raises_at_import raised ZeroDivisionError: .*import.py:2"
        )

    def test_no_class(self) -> None:
        """A class that the module lacks is reported with the classes that it has."""
        self.assertIn("some_managers has no 'Goood'; it has: Good, NoManager", self.problem("some_managers.Goood"))

    def test_module(self) -> None:
        """A module in place of a class is reported as such, with a class of it, imported or not."""
        self.write_module("jobs_of_test", "class Queue:\n    pass\n\nfrom collections import OrderedDict\n")
        self.module.jobs = importlib.import_module("jobs_of_test")
        expected = "it is a module, not a class; give a class of it, such as jobs_of_test:Queue"
        self.assertIn(expected, self.problem("some_managers.jobs"))
        folder = Path(self.mktemp()).absolute()
        for name in ("queue", "empty"):
            path = folder / "package_of_test" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("class Queue: ...\n" if name == "queue" else "")
        sys.path.insert(0, str(folder))
        self.addCleanup(sys.path.remove, str(folder))
        self.assertIn("such as package_of_test.queue:Queue", self.problem("package_of_test.queue"))
        self.assertIn("it defines no classes; write package_of_test.empty:Class", self.problem("package_of_test.empty"))

    def test_no_dot(self) -> None:
        """A name without a module is refused; the error shows the right form."""
        self.assertIn('the name has no module; write "package.module.Class"', self.problem("Good"))

    def test_not_callable(self) -> None:
        """An object that is not callable is refused; the error names its type."""
        self.assertIn("it is a int, not a class", self.problem("some_managers.NOT_A_CLASS"))

    def test_not_a_manager(self) -> None:
        """A class that does not provide IManager, or a function that makes none, is refused with the base class."""
        self.assertIn("it made a dict, which does not provide IManager", self.problem(dict_of))
        self.assertIn(
            "it does not provide IManager; derive the class from novasvc.Manager",
            self.problem("some_managers.NoManager"),
        )

    def test_service_version(self) -> None:
        """A service_version that no registry can store is refused, before the service starts."""
        self.patch(Good, "service_version", 2**31 - 1)
        make_manager(Good, host="h1")
        for version in (20260921001, -1, "2"):
            self.patch(Good, "service_version", version)
            self.assertIn(
                f"its service_version is {version!r}; give a whole number from 0 to 2147483647",
                self.problem(Good),
            )

    def test_constructor_that_raises(self) -> None:
        """A constructor that raises is reported with the error and the names, not the values, of its arguments."""
        text = self.problem("some_managers.Good", colour="hunter2")
        self.assertIn("unexpected keyword argument 'colour'", text)
        self.assertIn("but was given (host, colour)", text)
        self.assertNotIn("hunter2", text)

    def test_attachments_in_constructor(self) -> None:
        """A constructor that uses the attachments, which are set later, is told where they can be used."""

        class Early(Manager):
            def __init__(self, host: str) -> None:
                super().__init__(host)
                self.rpc = self.attachments.rpc

        text = self.problem(Early)
        self.assertIn("'Early' object has no attribute 'attachments'", text)
        self.assertIn("attachments is set later, before init_host: move what uses it to def init_host(self)", text)
