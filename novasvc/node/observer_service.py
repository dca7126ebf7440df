"""An observer of the fleet as a part of a service tree."""

from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IServiceRegistry, ISpecified
from novasvc.node.lifecycle import Lifecycle
from novasvc.node.lifecycle_service import LifecycleService
from novasvc.node.outages import WaitingService, retry_outages
from novasvc.node.runtime import Runtime, SharedConnection, process_runtime
from novasvc.node.specification import NodeSpecification
from novasvc.registry.observer import FleetObserver, check_observer
from novasvc.registry.outages import VerdictRule
from novasvc.workers.specification import check_constructor

_log = Logger()


@implementer(ISpecified)
class ObserverService(WaitingService, LifecycleService):
    """Tells an observer of changes in the fleet while it runs; see :class:`novasvc.registry.observer.FleetObserver`.

    It runs without a node: in a tree beside services, or in a process of its own.

    :param observer: provides :class:`novasvc.interfaces.IServiceObserver`.
    :param observer_name: names the observer in the whole fleet: of all processes that observe under it, one tells.
    :param runtime: settings and connections; None takes those of this process.
    :param options: for FleetObserver: ``interval``, ``timeout``.
    :raises ObserverError: the name is unusable, or the observer lacks a method.
    """

    def __init__(self, observer: Any, observer_name: str, *, runtime: Runtime | None = None, **options: Any) -> None:
        check_observer(observer, observer_name)
        self.runtime = runtime or process_runtime()
        self._arguments = (observer, observer_name)
        self._given_runtime = runtime
        self._options = options
        settings = self.runtime.settings
        self._connection: SharedConnection[IServiceRegistry] = (
            self.runtime.database if settings.db_allowed else self.runtime.conductor
        )
        self._registry: IServiceRegistry | None = None
        self._observer: FleetObserver | None = None
        self._lifecycle = Lifecycle(f"observer {observer_name}", self._begin, self._end, self._entered)

    def specification(self) -> NodeSpecification:
        """Return what a worker makes the service of; see :class:`~novasvc.interfaces.ISpecified`."""
        check_constructor(self, ObserverService)
        options = {"runtime": self._given_runtime, **self._options}
        environment = self.runtime if self._given_runtime is None else None
        return NodeSpecification(type(self), self._arguments, options, self.name, environment)

    async def _begin(self) -> None:
        connection = self._connection
        registry = await retry_outages(self, connection.name, connection.acquire, lambda: self.running)
        self._registry = registry
        self._observer = make_observer(self.runtime, registry, *self._arguments, **self._options)
        self._observer.start()

    async def _end(self) -> None:
        self.waiting_for = None
        observer, self._observer = self._observer, None
        if observer is not None:
            await observer.stop()
        registry, self._registry = self._registry, None
        if registry is not None:
            await self._connection.release()

    def _entered(self, state: str) -> None:
        _log.info("{name} is {state}", name=self._lifecycle.name, state=state)


def make_observer(
    runtime: Runtime, registry: IServiceRegistry, observer: Any, name: str, **options: Any
) -> FleetObserver:
    """Make an observer with the settings of this process.

    :param registry: open.
    :param options: for :class:`~novasvc.registry.observer.FleetObserver`.
    """
    settings = runtime.settings
    given = {
        "rule": VerdictRule.of(settings),
        "clock": runtime.reactor,
        "lease_time": settings.task_lease_time,
        "holder": settings.host,
        "random_source": runtime.random_source,
        **options,
    }
    return FleetObserver(name=name, observer=observer, registry=registry, **given)
