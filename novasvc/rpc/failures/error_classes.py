"""The exception classes that cross the wire as themselves: one table, which the authors of services fill.

A peer's error is rebuilt only if its name is in the table. Nothing that a peer names is imported, or looked up
elsewhere.
"""

import builtins
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, overload

from twisted.internet.defer import CancelledError

from novasvc.errors import DeclarationError

_Class = TypeVar("_Class", bound=type[Exception])

_UNFIT = (StopIteration, StopAsyncIteration, CancelledError)
"""A caller could not tell them from an end, or a cancellation, of its own."""
RESERVED = re.compile(r"(builtins|exceptions|novasvc(\..*)?|oslo_messaging(\..*)?)")
"""Modules whose errors have rules of their own; see :mod:`novasvc.rpc.failures.failure`."""
_NAME = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)\.(?P<name>[^\W\d]\w*)")


class WireName(NamedTuple):
    """The name of a class on the wire.

    :param module: the dotted name of its module.
    :param name: its ``__name__``.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class ErrorClasses:
    """A table of exception classes by their names on the wire."""

    # Note [Classes that are made again]
    #
    # A decorator that stands above @rpc.error may replace the class: attrs.define does, because it makes classes with
    # slots. The table then has a class that nobody raises. Reloading a module makes its classes again, too. So the
    # table is brought up to date at its first use after a change: a class is replaced by the one that its module has
    # under its name by then. This looks up only what an author has registered.

    def __init__(self) -> None:
        self._classes: dict[WireName, type[Exception]] = {}
        self._names: dict[type, WireName] = {}
        self._current = True

    def add(self, error_class: type[Exception], name: WireName | None = None) -> None:
        """Add a class; adding it again changes nothing.

        :param name: its name on the wire; None is that of its module and class.
        :raises DeclarationError: another class has this name, or the class has another name.
        """
        self._update()
        known = self._names.get(error_class)
        name = name or known or WireName(error_class.__module__, error_class.__name__)
        if known is not None and known != name:
            raise DeclarationError(_full_name(error_class), f"it is registered as {known} already", "register it once")
        other = self._classes.get(name)
        if other is not None and _full_name(other) != _full_name(error_class):
            raise DeclarationError(
                _full_name(error_class),
                f"{_full_name(other)} is registered under the same name, {name}",
                'rename one, or give it another name on the wire: rpc.error(name="package.module.Name")',
            )
        self._classes[name] = error_class
        self._current = False

    def find(self, name: WireName) -> type[Exception] | None:
        """Return the class of a name; None if there is none."""
        self._update()
        return self._classes.get(name)

    def name_of(self, error_class: type) -> WireName | None:
        """Return the name of a class; None if it is not registered."""
        self._update()
        return self._names.get(error_class)

    def _update(self) -> None:
        """See Note [Classes that are made again]."""
        if not self._current:
            self._classes = {name: _latest(error_class) for name, error_class in self._classes.items()}
            self._names = {error_class: name for name, error_class in self._classes.items()}
            self._current = True


error_classes = ErrorClasses()
"""The table of this process."""


@overload
def error(error_class: _Class, /, *, name: str | None = None) -> _Class: ...


@overload
def error(*, name: str | None = None) -> Callable[[_Class], _Class]: ...


def error(error_class: Any = None, /, *, name: str | None = None) -> Any:
    """Register an exception class: callers get it as itself, with its attributes. A decorator, bare or with options.

    ::

        @rpc.error
        class OutOfStock(Exception):
            def __init__(self, item: str, left: int = 0) -> None:
                super().__init__(f"{item}: {left} left")
                self.item, self.left = item, left

    The service and its callers import the class from a module that both have, or register classes of the same name.
    In a process that did not register it, and for its callers that use oslo.messaging without
    ``allowed_remote_exmods``, it is a RemoteError. The class registers for its subclasses too: one that the caller
    does not know is raised as its nearest registered base class.

    The error is made again by calling the class with the attributes that have the names of its constructor's
    arguments. So keep each argument in an attribute of the same name, and give new arguments defaults. All attributes
    that JSON can hold are sent, private ones too; those with an annotation are converted to its type.

    A class that ``@rpc.expose(expected=...)`` names is registered by that. A class of another library is registered
    by a call: ``rpc.error(SomeError)``.

    :param name: "package.module.Class", the name on the wire; None is the class's own. Use it to keep the name of a
        class that has moved, or to register a class of one's own for another program's error.
    :raises DeclarationError: it is not an exception class, its errors have rules of their own, or another class is
        registered under this name.
    """

    def register(error_class: Any) -> Any:
        if not isinstance(error_class, type) or not issubclass(error_class, Exception):
            shown = _full_name(error_class) if isinstance(error_class, type) else repr(error_class)
            raise DeclarationError(shown, "it is not an exception class", "derive it from Exception")
        own_name = _full_name(error_class)
        unfit = next((kind for kind in _UNFIT if issubclass(error_class, kind)), None)
        if unfit is not None:
            problem = f"a caller could not tell it from a {unfit.__name__} of its own"
            raise DeclarationError(own_name, problem, "derive it from another class")
        if RESERVED.fullmatch(error_class.__module__):
            if error_class.__module__ == builtins.__name__:
                return error_class  # Rebuilt without being registered.
            problem = "whether it is raised as itself is decided by novasvc.errors.WIRE_ERRORS"
            raise DeclarationError(own_name, problem, "derive a class of your own, and raise and register that")
        error_classes.add(error_class, None if name is None else _wire_name(name, own_name))
        return error_class

    return register if error_class is None else register(error_class)


def register_expected(expected: Iterable[type[Exception]]) -> None:
    """Register the classes that a method declares, but those that have rules of their own.

    :raises DeclarationError: another class is registered under the same name.
    """
    for error_class in expected:
        if not issubclass(error_class, _UNFIT) and not RESERVED.fullmatch(error_class.__module__):
            error_classes.add(error_class)


def _wire_name(text: str, where: str) -> WireName:
    match = _NAME.fullmatch(text)
    if match is None:
        raise DeclarationError(where, f"name={text!r} is not a name", 'write "package.module.Class"')
    if RESERVED.fullmatch(match["module"]):
        raise DeclarationError(
            where, f"name={text!r}: errors of {match['module']} have rules of their own", "choose another"
        )
    return WireName(match["module"], match["name"])


def _full_name(error_class: type) -> str:
    return f"{error_class.__module__}.{error_class.__qualname__}"


def _latest(error_class: type[Exception]) -> type[Exception]:
    """Return the class that a class's module has under its name now; the class itself if there is no such class."""
    found: Any = sys.modules.get(error_class.__module__)
    for part in error_class.__qualname__.split("."):
        found = getattr(found, part, None)  # "<locals>" is no attribute
    if isinstance(found, type) and issubclass(found, Exception) and _full_name(found) == _full_name(error_class):
        return found
    return error_class
