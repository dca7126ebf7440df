"""What a worker is told to do: its server, made fit for the way into another process."""

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
    """A server on its way.

    :param name: of the server, for people.
    :param server: pickled, in base64.
    :param modules: that it is made of.
    """

    name: str
    server: str
    modules: frozenset[str]

    @property
    def main(self) -> tuple[str, str] | None:
        """The program's main module, if the server is made of what that defines.

        :return: "module" and its name, if it was run by ``python -m``; else "path" and its path.
        """
        main = sys.modules["__main__"]
        if "__main__" not in self.modules:
            return None
        spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        if spec is not None:
            return "module", spec.name
        return None if path is None else ("path", path)


class _ModuleRecorder(pickle.Pickler):
    """Remembers the modules that classes and functions come from."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.modules: set[str] = set()

    def persistent_id(self, obj: Any) -> None:
        """Look at each object; all are pickled by value or by name."""
        if isinstance(obj, type | FunctionType):
            self.modules.add(obj.__module__)


def make_specification(server: Any) -> ServerSpecification:
    """Pickle a server.

    :param server: provides IService, or takes a reactor and returns such a one.
    :raises NotPreforkableError: it is neither, or pickle cannot carry it.
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
    """Name a server: its own name, a node's topic, or its class."""
    for attribute in ("name", "topic", "__name__"):
        name = getattr(server, attribute, None)
        if isinstance(name, str):
            return name
    return type(server).__name__
