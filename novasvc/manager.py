"""The base class of users' managers, and the functions that import and make a manager by name."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from novasvc.context import RequestContext
from novasvc.errors import ProblemError, describe
from novasvc.interfaces import IManager, IServiceRegistry
from novasvc.periodic import TaskRunner
from novasvc.rpc import Client, EventEmitter
from novasvc.rpc.blocking import BlockingClient

_GREATEST_VERSION = 2**31 - 1
"""The largest number that the column ``version`` holds."""


class ManagerError(ProblemError):
    """A manager class cannot be imported, instantiated or used; the subject is its dotted or bare name."""

    about = "manager {!r}"


@attrs.frozen(kw_only=True)
class ManagerResources:
    """The resources that a node gives its manager before init_host, as ``manager.attachments``.

    :param reactor: the clock and reactor of this process.
    :param rpc: calls other services: ``rpc.prepare(topic="compute").call(context, "ping")``.
    :param tasks: the runner of this manager's periodic tasks.
    :param registry: the registered services.
    :param events: publishes events: ``events.emit(context, "order.placed", payload)``.
    :param run_blocking: runs a function in a thread and returns a Deferred of its result. A thread cannot be
        interrupted: a cancelled call fires when the function has ended.
    :param worker: the number of this worker process, from 1, which it keeps when it is restarted; None without
        a supervisor.
    :param incarnation: the number of this start of the service: a fencing token, greater than that of every earlier
        start. None in a WSGI service, and where the registry keeps no numbers.
    :param observe: makes an observer of the fleet: ``observe(observer, name)`` returns a
        :class:`novasvc.registry.observer.FleetObserver`, for the manager to start and stop.
    """

    reactor: IReactorTime
    rpc: Client
    tasks: TaskRunner
    registry: IServiceRegistry
    events: EventEmitter
    run_blocking: Callable[..., Deferred[Any]]
    worker: int | None = None
    incarnation: int | None = None
    observe: Callable[..., Any] | None = None

    @cached_property
    def blocking(self) -> BlockingClient:
        """The RPC client for methods that run in a thread: each call waits there for its result."""
        calls = getattr(self.reactor, "blocking_calls", None)  # of a fleet in a test, which has no threads
        client = BlockingClient(self.rpc, reactor=self.reactor, events=self.events, _calls=calls)
        return client.prepare()  # a prepared one cannot be closed


Attachments = ManagerResources
"""The name of :class:`ManagerResources` before 0.2."""


@implementer(IManager)
class Manager:
    """The base class of managers: RPC methods, periodic tasks, and hooks around start and stop.

    Only methods decorated with :func:`novasvc.rpc.expose` can be called by others. Methods decorated
    with :func:`novasvc.periodic.periodic_task` run at an interval, and those decorated with
    :func:`novasvc.rpc.event` handle events. A hook may return a value, a
    Deferred or a coroutine; if a hook fails during the start, the start fails.

    :param host: the name of the host this manager serves.
    Source: nova.manager.Manager.
    """

    additional_endpoints: Sequence[object] = ()
    """More objects whose exposed methods are served on the manager's topic."""

    service_version = 0
    """Written to the row's ``version``: a whole number, at most 2,147,483,647. Raise it when peers must be able to tell
    this code from older code.
    """

    attachments: ManagerResources

    def __init__(self, host: str) -> None:
        self.host = host

    def attach(self, attachments: ManagerResources) -> None:
        """Store the node's resources; see :class:`novasvc.interfaces.IManager`."""
        self.attachments = attachments

    def init_host(self) -> Any:
        """Prepare this host. No messages are consumed yet."""

    def pre_start_hook(self) -> Any:
        """Prepare further, before the first message can arrive."""

    def post_start_hook(self) -> Any:
        """Continue once messages can arrive."""

    def cleanup_host(self) -> Any:
        """Clean up. The calls in flight and the running tasks have ended."""

    def periodic_tasks(self, context: RequestContext, raise_on_error: bool = False) -> Deferred[float]:  # noqa: FBT001, FBT002 - Nova's signature
        """Run the tasks that are due; see :class:`novasvc.interfaces.IManager`."""
        return self.attachments.tasks.run_due(context, raise_on_error=raise_on_error)


def check_manager(path: str, /, **kwargs: Any) -> None:
    """Check that a manager can be imported and that its constructor accepts the arguments, without a call.

    :param path: "package.module.Class" or "package.module:Class".
    :param kwargs: for the constructor.
    :raises ManagerError: the manager cannot be used.
    """
    factory = _load(path)
    if isinstance(factory, type) and not IManager.implementedBy(factory):
        raise ManagerError(path, "it does not provide IManager", "derive the class from novasvc.Manager")
    accepted = _signature(factory)
    if accepted is None:
        return
    try:
        accepted.bind(**kwargs)
    except TypeError as error:
        raise _mismatch(path, accepted, kwargs, error) from None


def _signature(factory: Callable[..., Any]) -> Signature | None:
    """Return the signature of a factory; None if it has none, because it is not written in Python."""
    try:
        return signature(factory)
    except (TypeError, ValueError):
        return None


def dotted_name(factory: Callable[..., Any]) -> str:
    """Return the dotted name of a class or function; of another callable, such as a partial, that of its class."""
    kind = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{kind.__module__}.{kind.__qualname__}"


def _mismatch(path: str, accepted: Signature, given: Iterable[str], error: TypeError) -> ManagerError:
    names = ", ".join(str(parameter.replace(annotation=Parameter.empty)) for parameter in accepted.parameters.values())
    problem = f"its constructor takes ({names}), but was given ({', '.join(given)}): {error}"
    remedy = "fix the constructor, or the options in its [[service]] table"
    if "host" not in accepted.parameters:
        remedy = "its first parameter is host: def __init__(self, host): super().__init__(host)"
    return ManagerError(path, problem, remedy)


def make_manager(manager: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a manager from its class or the dotted name of its class.

    :param manager: "package.module.Class" or "package.module:Class", or a class or other factory.
    :param args: for the constructor.
    :param kwargs: for the constructor.
    :return: a provider of :class:`novasvc.interfaces.IManager`.
    :raises ManagerError: the manager cannot be imported or made, does not provide IManager, or its service_version
        cannot be stored.
    """
    factory = _load(manager) if isinstance(manager, str) else manager
    path = manager if isinstance(manager, str) else dotted_name(factory)
    if isinstance(factory, type) and not IManager.implementedBy(factory):
        raise ManagerError(path, "it does not provide IManager", "derive the class from novasvc.Manager")
    try:
        made = factory(*args, **kwargs)
    except TypeError as error:
        accepted = _signature(factory)
        called = error.__traceback__ is None or error.__traceback__.tb_next is not None
        if accepted is not None and not called:
            raise _mismatch(path, accepted, [*(type(arg).__name__ for arg in args), *kwargs], error) from error
        raise _raised(path, error, args, kwargs) from error
    except (Exception, SystemExit) as error:
        raise _raised(path, error, args, kwargs) from error
    if not IManager.providedBy(made):
        raise ManagerError(
            path,
            f"it made a {type(made).__name__}, which does not provide IManager",
            "derive the class from novasvc.Manager",
        )
    version = getattr(made, "service_version", 0)
    if not isinstance(version, int) or not 0 <= version <= _GREATEST_VERSION:
        problem = f"its service_version is {version!r:.100}"
        raise ManagerError(path, problem, f"give a whole number from 0 to {_GREATEST_VERSION}")
    return made


def _raised(path: str, error: BaseException, args: Sequence[object], kwargs: Iterable[str]) -> ManagerError:
    given = ", ".join([*(type(arg).__name__ for arg in args), *kwargs])
    remedy = f"fix it, or the arguments it was given ({given})"
    if isinstance(error, AttributeError) and error.name == "attachments":
        remedy = "attachments is set later, before init_host: move what uses it to def init_host(self)"
    return ManagerError(path, f"its constructor raised {describe(error)}", remedy)


def _remedy(module: str) -> str:
    """Return what to do about a module that is not found."""
    path = Path.cwd().joinpath(*module.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return f"it is in the current directory: set PYTHONPATH=., or use `novasvc run {module}...`"
    close = get_close_matches(module, [each.stem for each in Path.cwd().glob("*") if each.stem.isidentifier()], n=1)
    return (f"did you mean {close[0]!r}? Or " if close else "") + "install it, or add its folder to PYTHONPATH"


def _load(path: str) -> Callable[..., Any]:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise ManagerError(path, "the name has no module", 'write "package.module.Class"')
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            problem, remedy = f"there is no module {error.name!r}", _remedy(error.name)
        else:
            problem = f"{module_name} imports {error.name!r}, which is not installed"
            remedy = f"install {error.name}"
        raise ManagerError(path, problem, remedy) from error
    except (Exception, SystemExit) as error:
        raise ManagerError(path, f"importing {module_name} raised {describe(error)}", "fix the module") from error
    loaded: Any = getattr(module, name, None)
    if loaded is None or isinstance(loaded, ModuleType):
        inner = loaded or _submodule(f"{module_name}.{name}")
        if inner is not None:
            classes = _classes(inner)
            example = f"{inner.__name__}:{classes[0] if classes else 'Class'}"
            remedy = f"give a class of it, such as {example}" if classes else f"it defines no classes; write {example}"
            raise ManagerError(path, "it is a module, not a class", remedy)
        classes = _classes(module)
        remedy = f"it has: {', '.join(classes)}" if classes else "it defines no classes"
        raise ManagerError(path, f"{module_name} has no {name!r}", remedy)
    if not callable(loaded):
        raise ManagerError(path, f"it is a {type(loaded).__name__}, not a class", 'write "package.module.Class"')
    return cast("Callable[..., Any]", loaded)


def _submodule(name: str) -> ModuleType | None:
    """Import a module that was named where a class was wanted; None if there is none, or it cannot be imported."""
    try:
        return import_module(name)
    except (Exception, SystemExit):  # noqa: BLE001 - of the user's code
        return None


def _classes(module: ModuleType) -> list[str]:
    """Return the names of the public classes of a module that may be managers, those that it defines itself first."""
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and not value.__module__.startswith("novasvc.") and name[0] != "_"
    }
    return sorted(found, key=lambda name: (found[name].__module__ != module.__name__, name))
