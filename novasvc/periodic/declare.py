"""The decorator that declares a periodic task, and the search for declared tasks."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, TypeVar, overload

import attrs

from novasvc.errors import DeclarationError

_MARK = "_novasvc_periodic_task"

_Method = TypeVar("_Method", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class Declaration:
    """The options of one declared task.

    :param where: "module.Class.method".
    :param name: the task's name in logs, metrics and commands; unique in its manager.
    :param spacing: seconds between runs; 0 runs in every pass, negative never.
    :param run_immediately: due in the first pass.
    :param enabled: whether it runs at all.
    :param external_process_ok: it starts other programs, which a setting may forbid.
    :param timeout: seconds after which a run is cancelled, or None.
    """

    where: str
    name: str
    spacing: float
    run_immediately: bool
    enabled: bool
    external_process_ok: bool
    timeout: float | None


@overload
def periodic_task(method: _Method, /) -> _Method: ...


@overload
def periodic_task(
    *,
    spacing: float = 0,
    run_immediately: bool = False,
    enabled: bool = True,
    external_process_ok: bool = False,
    name: str | None = None,
    timeout: float | None = None,
) -> Callable[[_Method], _Method]: ...


def periodic_task(
    method: Any = None,
    /,
    *,
    spacing: float = 0,
    run_immediately: bool = False,
    enabled: bool = True,
    external_process_ok: bool = False,
    name: str | None = None,
    timeout: float | None = None,
) -> Any:
    """Declare a method as a periodic task. Use it bare or with options.

    The method takes ``(self, context)``, where the context is an admin
    :class:`~novasvc.context.RequestContext`, and returns a value, a Deferred or a coroutine. A run
    ends when that fires, and runs of one task never overlap. The method itself is not changed.

    A subclass inherits the tasks of its base classes. A method that overrides a task is a task only
    if it is decorated too.

    :param spacing: seconds between runs; 0 runs in every pass, negative never.
    :param run_immediately: run in the first pass, not one spacing after the start.
    :param enabled: False never runs the task.
    :param external_process_ok: the task starts other programs; it runs only if the setting
        ``run_external_periodic_tasks`` allows that.
    :param name: the name in logs and metrics; the method's name by default.
    :param timeout: seconds, > 0, after which a run is cancelled; None for no limit.
    :raises DeclarationError: an option or the method's signature is invalid.
    Source: nova.manager.periodic_task.
    """

    def declare(function: Any) -> Any:
        declaration = Declaration(
            where=_where(function),
            name=name or function.__name__,
            spacing=spacing,
            run_immediately=run_immediately,
            enabled=enabled,
            external_process_ok=external_process_ok,
            timeout=timeout,
        )
        _check(declaration)
        setattr(function, _MARK, declaration)
        return function

    return declare if method is None else declare(method)


def declared_tasks(owner: object) -> Iterator[tuple[Declaration, Callable[[Any], Any]]]:
    """Yield the tasks of an object: base classes first, in the order of declaration.

    :return: pairs of a declaration and the bound method.
    """
    for attribute, declarations in _declarations_by_class(owner):
        if declarations[0] is not None:
            yield declarations[0], getattr(owner, attribute)


def overridden_tasks(owner: object) -> Iterator[Declaration]:
    """Yield the tasks of base classes that an undecorated attribute overrides."""
    for _, declarations in _declarations_by_class(owner):
        if declarations[0] is None:
            yield next(declaration for declaration in declarations if declaration is not None)


def _declarations_by_class(owner: object) -> Iterator[tuple[str, Sequence[Declaration | None]]]:
    """Yield each attribute that is a task in some class, with its declaration or None per class, most derived first."""
    classes = type(owner).__mro__
    for attribute in dict.fromkeys(name for cls in reversed(classes) for name in vars(cls)):
        declarations = [_declaration(vars(cls)[attribute]) for cls in classes if attribute in vars(cls)]
        if any(declarations):
            yield attribute, declarations


def _declaration(attribute: object) -> Declaration | None:
    # Only functions: other objects, such as mocks, may have any attribute.
    return getattr(attribute, _MARK, None) if isinstance(attribute, FunctionType) else None


def _where(method: object) -> str:
    """Return "module.Class.method", after a check that the function can be called as a task."""
    if not isinstance(method, FunctionType):
        where, kind = f"@periodic_task({method!r})", type(method).__name__
        remedy = "pass the options by name, as in @periodic_task(spacing=60), directly above the method"
        raise DeclarationError(where, f"it decorates a {kind}, not a method", remedy)
    where = f"{method.__module__}.{method.__qualname__}"
    try:
        inspect.signature(method).bind("self", "context")
    except TypeError as error:
        remedy = f"write def {method.__name__}(self, context)"
        raise DeclarationError(where, f"it cannot be called with a context: {error}", remedy) from None
    return where


def _check(declared: Declaration) -> None:
    where = declared.where
    if not _is_number(declared.spacing):
        problem = f"spacing={declared.spacing!r} is not a number"
        raise DeclarationError(where, problem, "give seconds, or 0 for every pass")
    if declared.timeout is not None and not (_is_number(declared.timeout) and declared.timeout > 0):
        problem = f"timeout={declared.timeout!r} is not a number above 0"
        raise DeclarationError(where, problem, "give seconds, or None for no limit")
    name: object = declared.name
    if not isinstance(name, str):
        problem = f"name={name!r} is not a name"
        raise DeclarationError(where, problem, "give text, or leave it out")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
