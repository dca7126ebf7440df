"""Make middleware of the names in the settings, or of what a program composes."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from zope.interface import Invalid
from zope.interface.verify import verifyObject

from novasvc.errors import describe
from novasvc.interfaces import IMiddleware
from novasvc.middleware.chain import name_of
from novasvc.middleware.errors import MiddlewareError
from novasvc.middleware.invocation import KINDS


def load_middleware(given: Iterable[Any]) -> list[Any]:
    """Return middleware in the given order, each once imported, made and checked.

    :param given: dotted names of classes, "package.module.Class" or "package.module:Class"; classes, which are called
        without arguments; or providers of :class:`novasvc.interfaces.IMiddleware`.
    :raises MiddlewareError: one cannot be imported or made, or is no middleware.
    """
    return [_checked(_made(each)) for each in given]


def _made(given: Any) -> Any:
    factory = _load(given) if isinstance(given, str) else given
    if not isinstance(factory, type):
        return factory
    try:
        return factory()
    except MiddlewareError:
        raise
    except (Exception, SystemExit) as error:
        subject = given if isinstance(given, str) else f"{factory.__module__}.{factory.__qualname__}"
        remedy = "fix it; it is called without arguments"
        raise MiddlewareError(subject, f"its constructor raised {describe(error)}", remedy) from error


def _load(path: str) -> Any:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise MiddlewareError(path, "the name has no module", 'write "package.module.Class"')
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        remedy = f"install {error.name}, or add its folder to PYTHONPATH"
        raise MiddlewareError(path, f"there is no module {error.name!r}", remedy) from error
    except (Exception, SystemExit) as error:
        raise MiddlewareError(path, f"importing {module_name} raised {describe(error)}", "fix the module") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        problem = f"{module_name} has no class {name!r}"
        raise MiddlewareError(path, problem, 'write "package.module.Class" in rpc_middleware')
    return found


def _checked(middleware: Any) -> Any:
    try:
        verifyObject(IMiddleware, middleware)
    except Invalid as error:
        problem = f"it does not provide IMiddleware: {' '.join(str(error).split())}"
        remedy = "decorate the class with @implementer(novasvc.interfaces.IMiddleware), with kinds and handle()"
        raise MiddlewareError(name_of(middleware), problem, remedy) from None
    kinds = middleware.kinds
    if not isinstance(kinds, frozenset | set) or not kinds or not kinds <= KINDS:
        problem = f"its kinds are {kinds!r:.100}"
        raise MiddlewareError(name_of(middleware), problem, f"give a set of some of {', '.join(sorted(KINDS))}")
    return middleware
