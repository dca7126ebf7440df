"""The specification of a server: pickled, with the modules that a worker imports to rebuild it."""

import base64
import io
import pickle
import sys
from types import FunctionType
from typing import Any

import attrs
from twisted.application.service import IService

from novasvc.errors import describe
from novasvc.interfaces import IPreloading
from novasvc.workers.errors import NotPreforkableError


@attrs.frozen
class ServerSpecification:
    """A pickled server.

    :param name: the server's name.
    :param server: the pickle, in base64.
    :param modules: modules of its classes and functions, and those that it names to preload.
    """

    name: str
    server: str
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


class _ModuleRecorder(pickle.Pickler):
    """A pickler that records the modules of classes and functions."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.modules: set[str] = set()

    def persistent_id(self, obj: Any) -> None:
        """Record the module of each object; return None, so that pickling is unchanged."""
        if isinstance(obj, type | FunctionType):
            self.modules.add(obj.__module__)


def make_specification(server: Any) -> ServerSpecification:
    """Pickle a server.

    :param server: provides IService, or is a function that takes a reactor and returns an IService.
    :raises NotPreforkableError: it is neither, or cannot be pickled.
    """
    name = server_name(server)
    if not IService.providedBy(server) and not callable(server):
        problem = f"{type(server).__name__} is neither an IService nor a function that makes one"
        raise NotPreforkableError(name, problem, "give a service, or a function that takes the reactor and returns one")
    file = io.BytesIO()
    packer = _ModuleRecorder(file)
    try:
        packer.dump(server)
    except Exception as error:
        remedy = "use picklable values, or give a module-level function that takes the reactor and returns a service"
        raise NotPreforkableError(name, f"it cannot be pickled: {describe(error)}", remedy) from error
    modules = packer.modules.union(IPreloading(server).preload if IPreloading.providedBy(server) else ())
    specification = ServerSpecification(name, base64.b64encode(file.getvalue()).decode(), frozenset(modules))
    if "__main__" in modules and specification.main is None:
        remedy = "define it in an importable module"
        raise NotPreforkableError(name, "it uses classes or functions defined in an interactive session", remedy)
    return specification


def server_name(server: Any) -> str:
    """Return the name of a server: its name, topic or ``__name__``, or else its class's name."""
    for attribute in ("name", "topic", "__name__"):
        name = getattr(server, attribute, None)
        if isinstance(name, str):
            return name
    return type(server).__name__
