"""What a worker makes its server of: a value, pickled in the supervisor and built in the worker."""

import base64
import io
import pickle
import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import attrs
from twisted.application.service import IService
from zope.interface import implementer

from novasvc.errors import describe
from novasvc.interfaces import IPreloading, ISpecification, ISpecified
from novasvc.workers.errors import NotPreforkableError, SpecificationError


@implementer(ISpecification)
@attrs.frozen
class ServiceSpecification:
    """A service as its constructor and the arguments for it.

    :param kind: the class, or a function that returns the service.
    :param name: for setName; None leaves the service the name that it gets by construction.
    """

    kind: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = attrs.field(factory=dict)
    name: str | None = None

    def build(self, reactor: Any) -> Any:
        """Call the constructor; see :class:`~novasvc.interfaces.ISpecification`."""
        service = self.kind(*self.arguments, **self.options)
        if self.name is not None:
            service.setName(self.name)
        return service


def check_constructor(server: Any, base: type[Any]) -> None:
    """Check that a server's constructor takes the arguments of its base class's constructor.

    :raises SpecificationError: the class has a constructor of its own, and so its own way to be made again.
    """
    if type(server).__init__ is not base.__init__:
        problem = f"{type(server).__name__} has a constructor of its own"
        remedy = "override specification() there to return what the constructor was given"
        raise SpecificationError(server_name(server), problem, remedy)


@attrs.frozen
class PickledServer:
    """A pickled server.

    :param name: the server's name.
    :param data: the pickle, in base64, for :func:`unpickle_server`.
    :param modules: modules of its classes and functions, and those that it names to preload.
    """

    name: str
    data: str
    modules: frozenset[str]

    @property
    def main(self) -> tuple[str, str] | None:
        """The program's main module, if the server uses what it defines.

        :return: ("module", its name) if it was run by ``python -m``, else ("path", its path); or None.
        """
        main = sys.modules["__main__"]
        if "__main__" not in self.modules:
            return None
        spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        if spec is not None:
            return "module", spec.name
        return None if path is None else ("path", path)


# Note [Services in a pickle]
#
# Users give workers what pickle can carry: a function, a service of their own, a collection of services. Wherever an
# ISpecified service is found in it, its specification is pickled in its place, as a persistent object of pickle: it
# is numbered, and pickled where it is met first. The reader builds it with the worker's reactor. A part of a
# service that refers to the service, as each child does to its parent, finds None there: the service is only built
# when all that it is made of has been read, and adds its parts itself.


class _Pickler(pickle.Pickler):
    """Pickles a server, and records the modules of its classes and functions; see Note [Services in a pickle]."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.modules: set[str] = set()
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Return (number, specification) of an ISpecified object, later its number; None for all others."""
        if isinstance(obj, type | FunctionType):
            self.modules.add(obj.__module__)
            return None
        if not ISpecified.providedBy(obj):
            return None
        number = self._numbers.get(id(obj))
        if number is not None:
            return number
        number = self._numbers[id(obj)] = len(self._numbers)
        return number, ISpecified(obj).specification()


class _Unpickler(pickle.Unpickler):
    """Reads what :class:`_Pickler` has written."""

    def __init__(self, file: io.BytesIO, reactor: Any) -> None:
        super().__init__(file)
        self._reactor = reactor
        self._built: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        """Build an object from (number, specification), or return the one with this number."""
        if isinstance(pid, int):
            return self._built.get(pid)
        number, specification = pid
        built = self._built[number] = specification.build(self._reactor)
        return built


def pickle_server(server: Any) -> PickledServer:
    """Pickle a server.

    :param server: provides IService or ISpecification, or is a function that takes a reactor and returns an IService.
    :raises NotPreforkableError: it is none of these, or cannot be pickled.
    """
    name = server_name(server)
    if not IService.providedBy(server) and not ISpecification.providedBy(server) and not callable(server):
        problem = f"{type(server).__name__} is neither an IService nor a function that makes one"
        raise NotPreforkableError(name, problem, "give a service, or a function that takes the reactor and returns one")
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(server)
    except SpecificationError as error:
        raise NotPreforkableError(name, error.problem, error.remedy) from error
    except Exception as error:
        remedy = "use picklable values, or give a module-level function that takes the reactor and returns a service"
        raise NotPreforkableError(name, f"it cannot be pickled: {describe(error)}", remedy) from error
    modules = pickler.modules.union(IPreloading(server).preload if IPreloading.providedBy(server) else ())
    pickled = PickledServer(name, base64.b64encode(file.getvalue()).decode(), frozenset(modules))
    if "__main__" in modules and pickled.main is None:
        remedy = "define it in an importable module"
        raise NotPreforkableError(name, "it uses classes or functions defined in an interactive session", remedy)
    return pickled


def unpickle_server(data: str, reactor: Any) -> Any:
    """Return what was pickled: a service, or a function that takes a reactor and returns one.

    :param data: of :class:`PickledServer`; it comes from the supervisor, which the worker trusts as itself.
    :param reactor: of this process.
    :raises NovasvcError: a service cannot be made.
    """
    server = _Unpickler(io.BytesIO(base64.b64decode(data)), reactor).load()
    return server.build(reactor) if ISpecification.providedBy(server) else server


def server_name(server: Any) -> str:
    """Return the name of a server: its name, topic or ``__name__``, or else its class's name."""
    for attribute in ("name", "topic", "__name__"):
        name = getattr(server, attribute, None)
        if isinstance(name, str):
            return name
    return type(server).__name__
