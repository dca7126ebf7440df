"""Tests for novasvc.workers.specification: what can be brought into a worker."""

import sys
import threading
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
from twisted.application.service import IService, MultiService, Service
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from novasvc.interfaces import IPreloading, ISpecification, ISpecified
from novasvc.workers.errors import NotPreforkableError
from novasvc.workers.specification import (
    PickledServer,
    ServiceSpecification,
    pickle_server,
    server_name,
    unpickle_server,
)


class Sleeper(Service):
    """A service of a test, with all that a user's may have."""

    def __init__(self, name: str | None = "sleeper", **options: Any) -> None:
        if name is not None:
            self.setName(name)
        self.options = options


@implementer(IPreloading)
@attrs.define
class Maker:
    """Makes a service in the worker."""

    seconds: float
    preload: tuple[str, ...] = ()

    def __call__(self, reactor: Any) -> Service:
        return Sleeper(seconds=self.seconds)


def make_sleeper(reactor: Any) -> Service:
    return Sleeper()


def unpacked(pickled: PickledServer) -> Any:
    return unpickle_server(pickled.data, None)


@implementer(ISpecification)
@attrs.frozen
class Plan:
    """What a test's service is made of."""

    name: str
    others: tuple[Any, ...] = ()

    def build(self, reactor: Any) -> Any:
        made = Planned(self.name)
        made.reactor, made.others = reactor, self.others
        return made


@implementer(ISpecified)
class Planned(Service):
    """A service that gives a specification, and cannot be pickled itself."""

    reactor: Any = None

    def __init__(self, name: str) -> None:
        self.setName(name)
        self.lock = threading.Lock()
        self.others: tuple[Any, ...] = ()

    def specification(self) -> Plan:
        return Plan(str(self.name), self.others)


class MakeSpecificationTests(SynchronousTestCase):
    """What pickle can carry."""

    def problem(self, server: Any) -> str:
        return str(self.assertRaises(NotPreforkableError, pickle_server, server))

    def test_service(self) -> None:
        """A service arrives as it was."""
        pickled = pickle_server(Sleeper(path=Path("/x")))
        self.assertEqual(pickled.name, "sleeper")
        arrived = unpacked(pickled)
        self.assertTrue(IService.providedBy(arrived))
        self.assertEqual((arrived.name, arrived.options), ("sleeper", {"path": Path("/x")}))

    def test_tree(self) -> None:
        """A service arrives with those that are in it."""
        tree = MultiService()
        tree.setName("tree")
        Sleeper().setServiceParent(tree)
        arrived = unpacked(pickle_server(tree))
        self.assertEqual([each.name for each in arrived], ["sleeper"])

    def test_function(self) -> None:
        """A function of a module arrives by its name."""
        pickled = pickle_server(make_sleeper)
        self.assertEqual((pickled.name, pickled.modules), ("make_sleeper", {__name__}))
        self.assertIs(unpacked(pickled), make_sleeper)

    def test_callable(self) -> None:
        """An object that makes the service arrives with what it knows."""
        pickled = pickle_server(Maker(2.5))
        self.assertEqual((pickled.name, unpacked(pickled)), ("Maker", Maker(2.5)))

    def test_partial(self) -> None:
        """A function with some of its arguments arrives with them."""
        arrived = unpacked(pickle_server(partial(Sleeper, "other")))
        self.assertEqual(arrived.args, ("other",))

    def test_modules(self) -> None:
        """It is known which modules it is made of, however deep they are in it."""
        modules = pickle_server(Sleeper(inner=[{"deep": Maker(1.0)}, SynchronousTestCase])).modules
        self.assertTrue({__name__, "twisted.trial._synctest"} <= modules, modules)

    def test_preload(self) -> None:
        """It may name modules that only its workers import."""
        self.assertIn("wave", pickle_server(Maker(1.0, preload=("wave",))).modules)

    def test_changes_nothing(self) -> None:
        """The server itself is none the worse for it."""
        server = Sleeper(seconds=1)
        pickle_server(server)
        self.assertEqual((server.name, server.options, server.running), ("sleeper", {"seconds": 1}, 0))

    def test_no_service(self) -> None:
        """What is no service and makes none is refused."""
        self.assertEqual(
            self.problem(7),
            "int cannot run in a worker: int is neither an IService nor a function that makes one; "
            "give a service, or a function that takes the reactor and returns one",
        )

    def test_not_by_pickle(self) -> None:
        """What pickle cannot carry is refused, with pickle's reason and what to do."""

        def local(reactor: Any) -> Service:
            raise NotImplementedError

        for server, name, reason in (
            (local, "local", "local"),
            (lambda reactor: Sleeper(), "<lambda>", "lambda"),
            (Sleeper("api", lock=threading.Lock()), "api", "lock"),
            (Sleeper("api", file=sys.__stdout__), "api", "TextIOWrapper"),
            (Sleeper("api", generator=(each for each in ())), "api", "generator"),
        ):
            problem = self.problem(server)
            self.assertIn(f"{name} cannot run in a worker: it cannot be pickled: ", problem)
            self.assertIn(reason, problem)
            self.assertIn("give a module-level function that takes the reactor and returns a service", problem)

    def test_raises_when_pickled(self) -> None:
        """Whatever its own reduction raises, is told as the reason."""

        class Broken(Service):
            def __getstate__(self) -> dict[str, Any]:
                raise ZeroDivisionError("of its own")

        self.assertIn("ZeroDivisionError: of its own", self.problem(Broken()))


class SpecifiedTests(SynchronousTestCase):
    """Services that are made again from a value; see Note [Services in a pickle]."""

    def test_interfaces(self) -> None:
        """What is pickled in place of a service, is a specification."""
        verifyObject(ISpecified, Planned("x"))
        verifyObject(ISpecification, Planned("x").specification())
        verifyObject(ISpecification, ServiceSpecification(Sleeper))

    def test_built(self) -> None:
        """A service is built in the worker, with the worker's reactor."""
        made = unpickle_server(pickle_server(Planned("api")).data, reactor := object())
        self.assertIs(made.reactor, reactor)
        self.assertEqual(made.name, "api")

    def test_value(self) -> None:
        """A specification can be launched itself."""
        self.assertIsInstance(unpacked(pickle_server(Plan("api"))), Planned)

    def test_within(self) -> None:
        """A service is built wherever it is in what is pickled, once, however often it is met."""
        tree = MultiService()
        Planned("part").setServiceParent(tree)
        arrived = unpacked(pickle_server(Sleeper(trees=[tree], services=list(tree))))
        (again,) = arrived.options["trees"]
        (part,) = again
        self.assertIs(again.getServiceNamed("part"), part)
        self.assertEqual(arrived.options["services"], [part])
        self.assertIsInstance(part.lock, type(threading.Lock()))

    def test_of_each_other(self) -> None:
        """A part that refers to the service that is made of it, finds nothing there."""
        whole, part = Planned("whole"), Sleeper()
        part.parent, whole.others = whole, (part,)  # type: ignore[assignment]
        (again,) = unpacked(pickle_server(whole)).others
        self.assertIsNone(again.parent)

    def test_constructor(self) -> None:
        """The constructor is called with what it was called with before, and the name is set behind it."""
        made = ServiceSpecification(Sleeper, ("first",), {"seconds": 1}, "second").build(None)
        self.assertEqual((made.name, made.options), ("second", {"seconds": 1}))
        self.assertEqual(ServiceSpecification(Sleeper).build(None).name, "sleeper")


class MainTests(SynchronousTestCase):
    """Servers of a program's main module."""

    def main(self, file: str | None) -> ModuleType:
        module = ModuleType("__main__")
        if file is not None:
            module.__file__ = file
        # Not by patching sys.modules: pickle knows the real one.
        self.addCleanup(sys.modules.__setitem__, "__main__", sys.modules["__main__"])
        sys.modules["__main__"] = module
        return module

    def server(self, module: ModuleType) -> Any:
        class Mine(Service):
            name = "mine"

        Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
        module.Mine = Mine  # type: ignore[attr-defined]
        return Mine()

    def test_script(self) -> None:
        """A server of a script needs the script to be run again, and that is all that is told of it."""
        pickled = pickle_server(self.server(self.main("/srv/run.py")))
        self.assertEqual((pickled.main, pickled.modules), (("path", "/srv/run.py"), {"__main__"}))

    def test_module(self) -> None:
        """So does one of a module that was run by ``python -m``."""
        main = self.main("/srv/program/__main__.py")
        main.__spec__ = ModuleSpec("program.__main__", None)
        self.assertEqual(pickle_server(self.server(main)).main, ("module", "program.__main__"))

    def test_elsewhere(self) -> None:
        """A server of another module does not."""
        self.main("/srv/run.py")
        self.assertIsNone(pickle_server(make_sleeper).main)

    def test_interactive(self) -> None:
        """A server that was typed in cannot be had in another process."""
        error = self.assertRaises(NotPreforkableError, pickle_server, self.server(self.main(None)))
        self.assertEqual(
            str(error),
            "mine cannot run in a worker: it uses classes or functions defined in an interactive session; "
            "define it in an importable module",
        )


class NameTests(SynchronousTestCase):
    """What a server is called."""

    def test_names(self) -> None:
        """Its own name comes first, then a node's topic, then that of the function, then its class."""

        class Topical(Service):
            topic = "compute"

        for server, name in (
            (Sleeper("api"), "api"),
            (Topical(), "compute"),
            (make_sleeper, "make_sleeper"),
            (Maker(1.0), "Maker"),
            (Sleeper(None), "Sleeper"),
        ):
            self.assertEqual(server_name(server), name)
