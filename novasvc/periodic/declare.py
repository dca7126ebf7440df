"""The decorator that declares a periodic task, and the search for declared tasks."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import tzinfo
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, overload

import attrs

from novasvc.errors import DeclarationError
from novasvc.periodic.term import Scope

if TYPE_CHECKING:
    from novasvc.periodic.cron import CronLine

_MARK = "_novasvc_periodic_task"
_MAX_FLEET_NAME = 255
"""Characters of a task's name in the table of leases."""

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
    :param scope: how many processes run it; None for the setting default_task_scope.
    :param cron: the cron line, in place of a spacing; None if it has none.
    """

    where: str
    name: str
    spacing: float
    run_immediately: bool
    enabled: bool
    external_process_ok: bool
    timeout: float | None
    scope: Scope | None = None
    cron: "CronLine | None" = None

    @property
    def in_every_pass(self) -> bool:
        """Whether it runs in every pass, because it has neither a spacing nor a cron line."""
        return self.spacing == 0 and self.cron is None


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
    scope: Scope | None = None,
    cron: str | None = None,
    timezone: str | tzinfo = "UTC",
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
    scope: Scope | None = None,
    cron: str | None = None,
    timezone: str | tzinfo = "UTC",
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
    :param scope: "worker" runs it in each worker process, "node" in one process of each node, "fleet" in one process of
        all nodes of the topic, which holds a lease in the database; ``context.fencing`` is then its fencing number.
        None is the setting ``default_task_scope``, "node" by default.
    :param cron: a cron line of five fields, in place of ``spacing``: ``30 3 * * *``.
    :param timezone: the time zone of the cron line, by name or as a tzinfo; the same on all hosts. See Note [Daylight
        saving time] in :mod:`novasvc.periodic.cron`.
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
            scope=scope,
        )
        _check(declaration)
        if cron is not None:
            declaration = attrs.evolve(declaration, cron=_cron(declaration, cron, timezone))
        elif timezone != "UTC":
            remedy = 'add cron="...", or leave timezone out'
            raise DeclarationError(declaration.where, "timezone is given without cron", remedy)
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
    if declared.scope not in (None, *get_args(Scope)):
        choices = " or ".join(f'"{scope}"' for scope in get_args(Scope))
        raise DeclarationError(where, f"scope={declared.scope!r} is not a scope", f"give {choices}")
    if declared.scope == "fleet" and not (name == name.strip() and 0 < len(name) <= _MAX_FLEET_NAME):
        problem = f"name={name!r} cannot be the name of a lease"
        raise DeclarationError(where, problem, f"give 1 to {_MAX_FLEET_NAME} characters without spaces around them")


def _cron(declared: Declaration, cron: object, timezone: object) -> "CronLine":
    # Imported here: most managers have no cron lines.
    from novasvc.periodic.cron import parse_cron  # noqa: PLC0415

    if declared.spacing != 0:
        problem = f"spacing={declared.spacing!r} and cron={cron!r} contradict each other"
        raise DeclarationError(declared.where, problem, "give one of them")
    return parse_cron(declared.where, cron, timezone)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
