"""The base class that users write against, and how a manager is found by its name."""

from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from novasvc.context import RequestContext
from novasvc.errors import ManagerError, describe
from novasvc.interfaces import IManager, IServiceRegistry
from novasvc.periodic import TaskRunner
from novasvc.rpc import Client


@attrs.frozen(kw_only=True)
class ManagerResources:
    """What a node gives its manager before init_host.

    :param reactor: the clock and reactor of this process.
    :param rpc: calls other services: ``rpc.prepare(topic="compute").call(context, "ping")``.
    :param tasks: the runner of this manager's periodic tasks.
    :param registry: the registered services, as this node reaches them.
    :param run_blocking: runs a function in a thread, returns a Deferred of its result. Cancelled,
        it fires when the function has ended: a thread cannot be stopped.
    :param worker: the number of the worker that this process is, from 1; it keeps its number when it
        is started again. None where no supervisor is above it.
    """

    reactor: IReactorTime
    rpc: Client
    tasks: TaskRunner
    registry: IServiceRegistry
    run_blocking: Callable[..., Deferred[Any]]
    worker: int | None = None


Attachments = ManagerResources
"""The name of :class:`ManagerResources` before 0.2."""


@implementer(IManager)
class Manager:
    """Does the work of a service: RPC methods, periodic tasks, hooks around start and stop.

    Methods decorated with :func:`novasvc.rpc.expose` can be called by others, and no others can.
    Methods decorated with :func:`novasvc.periodic.periodic_task` are run periodically. A hook may
    return a value, a Deferred or a coroutine; a start whose hook fails has failed.

    :param host: the host it works for.
    Source: nova.manager.Manager.
    """

    additional_endpoints: Sequence[object] = ()
    """More objects with exposed methods, served beside the manager's own."""

    service_version = 0
    """What the row's ``version`` says of this code; raise it when peers must be able to tell."""

    attachments: ManagerResources

    def __init__(self, host: str) -> None:
        self.host = host

    def attach(self, attachments: ManagerResources) -> None:
        """Take what the node gives; see :class:`novasvc.interfaces.IManager`."""
        self.attachments = attachments

    def init_host(self) -> Any:
        """Prepare this host; nothing is consumed yet."""

    def pre_start_hook(self) -> Any:
        """Do what must be done before the first message can arrive."""

    def post_start_hook(self) -> Any:
        """Do what must be done once messages can arrive."""

    def cleanup_host(self) -> Any:
        """Tidy up; the calls in flight and the running tasks have ended."""

    def periodic_tasks(self, context: RequestContext, raise_on_error: bool = False) -> Deferred[float]:  # noqa: FBT001, FBT002 - Nova's signature
        """Run the tasks that are due; see :class:`novasvc.interfaces.IManager`."""
        return self.attachments.tasks.run_due(context, raise_on_error=raise_on_error)


def check_manager(path: str, /, **kwargs: Any) -> None:
    """See that a manager can be imported, and that its constructor takes what it will be given; none is made.

    :param path: "package.module.Class" or "package.module:Class".
    :param kwargs: for the constructor.
    :raises ManagerError: otherwise.
    """
    factory = _load(path)
    if isinstance(factory, type) and not IManager.implementedBy(factory):
        raise ManagerError(path, "it is no IManager", "derive the class from novasvc.Manager")
    try:
        taken = signature(factory)
    except (TypeError, ValueError):  # one that is not written in Python
        return
    try:
        taken.bind(**kwargs)
    except TypeError as error:
        names = ", ".join(str(parameter.replace(annotation=Parameter.empty)) for parameter in taken.parameters.values())
        problem = f"its constructor takes ({names}) and is given ({', '.join(kwargs)}): {error}"
        raise ManagerError(path, problem, "mend the constructor, or the options in its [[service]] table") from None


def make_manager(manager: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a manager from its class or the dotted name of its class.

    :param manager: "package.module.Class" or "package.module:Class", or a class or factory.
    :param args: for the constructor.
    :param kwargs: for the constructor.
    :return: a provider of :class:`novasvc.interfaces.IManager`.
    :raises ManagerError: it cannot be imported, made, or is no manager.
    """
    factory = _load(manager) if isinstance(manager, str) else manager
    path = manager if isinstance(manager, str) else f"{factory.__module__}.{factory.__qualname__}"
    try:
        made = factory(*args, **kwargs)
    except (Exception, SystemExit) as error:
        given = ", ".join([*(type(arg).__name__ for arg in args), *kwargs])
        remedy = f"mend it, or what it was given ({given})"
        raise ManagerError(path, f"its constructor raised {describe(error)}", remedy) from error
    if not IManager.providedBy(made):
        raise ManagerError(
            path, f"it made a {type(made).__name__}, which is no IManager", "derive the class from novasvc.Manager"
        )
    return made


def _load(path: str) -> Callable[..., Any]:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise ManagerError(path, "it names no module", 'write "package.module.Class"')
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            problem, remedy = f"there is no module {error.name!r}", "install it, or add its folder to PYTHONPATH"
        else:
            problem = f"{module_name} imports {error.name!r}, which is not installed"
            remedy = f"install {error.name}"
        raise ManagerError(path, problem, remedy) from error
    except (Exception, SystemExit) as error:
        raise ManagerError(path, f"importing {module_name} raised {describe(error)}", "mend the module") from error
    try:
        loaded: Callable[..., Any] = getattr(module, name)
    except AttributeError:
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")]
        remedy = f"it has: {', '.join(sorted(classes))}" if classes else "it has no classes"
        raise ManagerError(path, f"{module_name} has no {name!r}", remedy) from None
    if not callable(loaded):
        raise ManagerError(path, f"it is a {type(loaded).__name__}, not a class", 'write "package.module.Class"')
    return loaded
