"""Service: a node with the names of nova.service and of Twisted's IService, over one state machine."""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from zope.interface import implementer

from novasvc.config.errors import SettingError
from novasvc.context import RequestContext
from novasvc.errors import StateError
from novasvc.interfaces import (
    IDescribable,
    IExitRequester,
    IHealthy,
    IInspectable,
    IInterruptible,
    IPreloading,
    IRebuildable,
    ISpecified,
)
from novasvc.manager import dotted_name, make_manager
from novasvc.node.description import describe_history, describe_process
from novasvc.node.lifecycle_service import LifecycleService
from novasvc.node.manager_resources import make_tasks
from novasvc.node.node import Node
from novasvc.node.runtime import Runtime, process_runtime
from novasvc.node.signature import hides
from novasvc.node.specification import NodeSpecification
from novasvc.registry.heartbeat import ServiceIdentity
from novasvc.rpc import Client
from novasvc.workers.specification import check_constructor


@implementer(
    IDescribable, IHealthy, IInspectable, IExitRequester, IInterruptible, IPreloading, IRebuildable, ISpecified
)
class Service(LifecycleService):
    """A node: serves a manager's RPC methods on its topic, runs its tasks, sends heartbeats.

    ``start``, ``stop``, ``wait`` and ``kill`` are Nova's names, ``startService`` and
    ``stopService`` Twisted's; both drive one state machine.

    A subclass with a constructor of its own overrides :meth:`specification`, so that workers can make it.

    :param host: the host's name in the registry and in ``topic.host``.
    :param binary: the program's name in the registry.
    :param topic: the topic it serves.
    :param manager: class, factory or dotted name; see :func:`novasvc.manager.make_manager`.
    :param report_interval: seconds between heartbeats; 0 for none: the row is registered, and ages. None takes
        the setting, as for the three parameters below.
    :param periodic_enable: run the periodic tasks.
    :param periodic_fuzzy_delay: seconds: the longest random delay of the first pass.
    :param periodic_interval_max: seconds: the longest wait between passes.
    :param db_allowed: False reaches the registry through the conductor.
    :param args: for the manager's constructor, with ``host=``.
    :param kwargs: for the manager's constructor. A :class:`novasvc.node.runtime.Runtime` given as ``runtime`` is
        used by the service itself; by default it uses the runtime of this process.
    :ivar manager_class_name: dotted name of the manager's class, or of the factory that makes it.
    :raises SettingError: an interval is invalid.
    :raises ManagerError: the manager cannot be made.
    :raises DeclarationError: its exposed methods or tasks contradict each other.
    """

    def __init__(
        self,
        host: str,
        binary: str,
        topic: str,
        manager: str | Callable[..., Any],
        report_interval: float | None = None,
        periodic_enable: bool | None = None,
        periodic_fuzzy_delay: float | None = None,
        periodic_interval_max: float | None = None,
        db_allowed: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        intervals = report_interval, periodic_enable, periodic_fuzzy_delay, periodic_interval_max
        self._arguments = (host, binary, topic, manager, *intervals, db_allowed, *args)
        self._options = dict(kwargs)
        given = kwargs.pop("runtime") if isinstance(kwargs.get("runtime", ""), Runtime | None) else None
        self.runtime = given or process_runtime()
        settings = self.runtime.settings
        self.host, self.binary, self.topic, self.db_allowed = host, binary, topic, db_allowed
        self.report_interval = _chosen(report_interval, settings.report_interval)
        self.periodic_enable = _chosen(periodic_enable, settings.periodic_enable)
        self.periodic_fuzzy_delay = _chosen(periodic_fuzzy_delay, settings.periodic_fuzzy_delay)
        self.periodic_interval_max = _chosen(periodic_interval_max, settings.periodic_interval_max)
        self._check_intervals(settings.service_down_time, settings.fence_after)
        self.manager_class_name = manager if isinstance(manager, str) else dotted_name(manager)
        self.manager = make_manager(manager, *args, host=host, **kwargs)
        self.tasks = make_tasks(
            self.manager,
            self.runtime,
            fuzzy_delay=self.periodic_fuzzy_delay,
            interval_max=self.periodic_interval_max,
        )
        self.node = Node(
            identity=ServiceIdentity(host, binary, topic, self.manager.service_version),
            topic=topic,
            manager=self.manager,
            tasks=self.tasks,
            runtime=self.runtime,
            registry_connection=self.runtime.database if db_allowed else self.runtime.conductor,
            report_interval=self.report_interval,
            periodic_enable=self.periodic_enable,
        )
        self._lifecycle = self.node.lifecycle

    def __repr__(self) -> str:
        named = (f"{name}={self.__dict__.get(name)!r}" for name in ("host", "binary", "topic"))
        return f"<{type(self).__name__} {' '.join(named)}>"

    @classmethod
    @hides("kwargs")
    def create(
        cls,
        host: str | None = None,
        binary: str | None = None,
        topic: str | None = None,
        manager: str | Callable[..., Any] | None = None,
        report_interval: float | None = None,
        periodic_enable: bool | None = None,
        periodic_fuzzy_delay: float | None = None,
        periodic_interval_max: float | None = None,
        db_allowed: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Make a node from the arguments, the settings and the program's name.

        :param host: default: the setting ``host``, whose default is the machine's name.
        :param binary: default: the base name of the program.
        :param topic: default: the part of the binary after ``nova-``, or the whole binary.
        :param manager: default: the setting ``<topic>_manager``.
        :param kwargs: for the constructor, including ``runtime``.
        :raises SettingError: no manager is given, and none is set.
        Source: nova.service.Service.create. The other parameters are the constructor's.
        """
        settings = (_runtime_in(kwargs) or process_runtime()).settings
        binary = binary or Path(sys.argv[0]).name
        topic = topic or binary.rpartition("nova-")[2]
        manager = manager or settings.managers.get(topic)
        if manager is None:
            raise SettingError(
                f"{topic}_manager",
                None,
                "nowhere",
                "no manager is set for this topic",
                'set it to "package.module.Class"',
            )
        return cls(
            host or settings.host,
            binary,
            topic,
            manager,
            report_interval,
            periodic_enable,
            periodic_fuzzy_delay,
            periodic_interval_max,
            db_allowed,
            **kwargs,
        )

    @property
    def by_environment(self) -> bool:
        """Whether it was given no runtime, and so uses the environment's settings."""
        return _runtime_in(self._options) is None

    def specification(self) -> NodeSpecification:
        """Return what a worker makes the service of; see :class:`~novasvc.interfaces.ISpecified`."""
        check_constructor(self, Service)
        environment = process_runtime() if self.by_environment else None
        return NodeSpecification(type(self), self._arguments, self._options, self.name, environment)

    def rebuild(self) -> Any:
        """Make a new service, with a new manager; see :class:`~novasvc.interfaces.IRebuildable`."""
        return self.specification().build(self.runtime.reactor)

    @property
    def rpc(self) -> Client:
        """The RPC client of this node: ``service.rpc.prepare(topic=...).call(...)``.

        :raises StateError: the node has no transport, because it is not started or has stopped.
        """
        if self.node.client is None:
            raise StateError(f"node {self.node.identity}", self.state, "call others")
        return self.node.client

    def start(self) -> Deferred[None]:
        """Start the node.

        :return: Deferred[None], fired when running; fails with StartError, or with StateError while it stops.
        """
        return self._lifecycle.start()

    def stop(self) -> Deferred[None]:
        """Drain and stop: finish calls and tasks under way, up to ``graceful_shutdown_timeout`` seconds.

        :return: Deferred[None], fired when it has stopped. Errors of the stop are logged.
        """
        return self.stopService()

    @property
    def preload(self) -> list[str]:
        """The modules that a forkserver imports once for all workers: the manager's."""
        return [type(self.manager).__module__]

    def hurry(self) -> None:
        """Cancel calls, tasks and hooks under way. Called when it was told to stop."""
        self.node.hurry()

    @property
    def waiting_for(self) -> str | None:
        """The dependency that the start waits for: "database", "broker" or "conductor"; None if none."""
        return self.node.waiting_for

    @property
    def leaving(self) -> SystemExit | None:
        """The SystemExit of cleanup_host: the exit status that the manager wants for its process; see ServiceTree."""
        return self.node.leaving

    def health(self) -> Deferred[dict[str, Any]]:
        """Check the node's health; see :class:`novasvc.interfaces.IHealthy`."""
        telling = Deferred.fromCoroutine(self.node.health.checks())
        return telling.addCallback(lambda checks: {"service": str(self.node.identity), "legs": checks})

    def running_calls(self) -> list[dict[str, Any]]:
        """Return the calls under way; see :meth:`novasvc.rpc.Server.running_calls`."""
        return [] if self.node.server is None else self.node.server.running_calls()

    def describe_process(self, what: str) -> Deferred[dict[str, Any]]:
        """Describe the node as far as this process knows it; see :class:`novasvc.interfaces.IDescribable`."""
        if what == "history":
            return succeed(describe_history(self.node))
        return Deferred.fromCoroutine(describe_process(self.node))

    def operations_under_way(self) -> set[str]:
        """Return the request ids of the operations under way; see :mod:`novasvc.rpc.server.admission`."""
        return self.node.operations()

    def wait(self) -> Deferred[None]:
        """Wait until it has stopped, or its start has failed.

        :return: Deferred[None].
        """
        return self._lifecycle.when_ended()

    def kill(self) -> Deferred[None]:
        """Stop, and soft-delete the row. A missing row is logged as a warning.

        :return: Deferred[None].
        :raises DatabaseError: the row could not be deleted.
        """
        return Deferred.fromCoroutine(self._kill())

    def periodic_tasks(self, raise_on_error: bool = False) -> Deferred[float]:
        """Run the tasks that are due, with an admin context.

        :param raise_on_error: fail with the first exception of a task.
        :return: Deferred[float]: seconds until the next task is due.
        """
        if self.node.client is None:  # Nothing is attached to the manager yet, or any more.
            return self.tasks.run_due(RequestContext.admin(), raise_on_error)
        return maybeDeferred(self.manager.periodic_tasks, RequestContext.admin(), raise_on_error=raise_on_error)

    def basic_config_check(self) -> None:
        """Check that the temporary directory exists and is writable.

        :raises DirectoryError: it does not exist, or is not writable.
        """
        self.node.basic_config_check()

    def __getattr__(self, name: str) -> Any:
        """Return a public attribute of the manager. For local callers only; RPC does not use it."""
        if name.startswith("_") or "manager" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.manager, name)

    def _check_intervals(self, service_down_time: float, fence_after: float) -> None:
        source = f"the service {self.binary}@{self.host}"
        for name, value, least, remedy in (
            ("report_interval", self.report_interval, 0, "a number of seconds, 0 for no heartbeats"),
            ("periodic_fuzzy_delay", self.periodic_fuzzy_delay, 0, "a number of seconds, 0 for no delay"),
            ("periodic_interval_max", self.periodic_interval_max, 0, "a number of seconds, or None for no limit"),
        ):
            if value is None and name == "periodic_interval_max":
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or value < least:
                raise SettingError(name, repr(value), source, "not a valid duration", f"give {remedy}")
        if service_down_time <= self.report_interval:
            raise SettingError(
                "report_interval",
                f"{self.report_interval:g}",
                source,
                f"it is not shorter than service_down_time ({service_down_time:g} s)",
                "make it smaller: at most a third of service_down_time",
            )
        if fence_after and not 0 < self.report_interval < fence_after:
            when = "between two heartbeats" if self.report_interval else "because it sends no heartbeats"
            problem = f"the service would be fenced {when}: fence_after is {fence_after:g} s"
            remedy = "make it more than 0, and set fence_after to several intervals, or to 0"
            raise SettingError("report_interval", f"{self.report_interval:g}", source, problem, remedy)

    async def _kill(self) -> None:
        await self.stop()
        await self.node.delete_row()


def _runtime_in(kwargs: Mapping[str, Any]) -> Runtime | None:
    """Return the runtime among keyword arguments. A value of another type is an option of the manager's."""
    given = kwargs.get("runtime")
    return given if isinstance(given, Runtime) else None


def _chosen(given: Any, setting: Any) -> Any:
    return setting if given is None else given
