"""Build a manager's periodic tasks and RPC client, and attach its resources; shared by Node and WSGIService."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from novasvc.interfaces import IServiceRegistry, ITransport
from novasvc.manager import Manager, ManagerResources
from novasvc.middleware import Chain
from novasvc.middleware.invocation import EMIT
from novasvc.node.observer_service import make_observer
from novasvc.node.runtime import Runtime
from novasvc.periodic import TaskRunner
from novasvc.registry.lookup import ServiceLookup, UpHosts
from novasvc.registry.outages import VerdictRule
from novasvc.registry.targets import TargetLiveness
from novasvc.registry.versions import OldestUp
from novasvc.rpc import Client, EventEmitter


def make_tasks(manager: Manager, runtime: Runtime, *, fuzzy_delay: float, interval_max: float | None) -> TaskRunner:
    """Make the runner of a manager's periodic tasks.

    :param fuzzy_delay: seconds: the longest random delay of the first pass.
    :param interval_max: seconds: the longest wait between passes; None for no limit.
    """
    return TaskRunner(
        manager,
        clock=runtime.reactor,
        random_source=runtime.random_source,
        fuzzy_delay=fuzzy_delay,
        interval_max=interval_max,
        run_external=runtime.settings.run_external_periodic_tasks,
        default_scope=runtime.settings.default_task_scope,
        wall_clock=runtime.wall_clock,
        middleware=runtime.middleware,
    )


def make_client(
    runtime: Runtime, transport: ITransport, registry: Callable[[], IServiceRegistry | None] | None
) -> Client:
    """Make an RPC client that asks the registry about the services that it calls.

    Its errors say what the registry knows of a service that is not reached, and calls to a server that is down fail at
    once.

    :param transport: open.
    :param registry: returns the registry, None while it is not connected; None for a process without one.
    """
    settings, clock = runtime.settings, runtime.reactor
    down_time, rule = settings.service_down_time, VerdictRule.of(settings)
    return Client(
        transport,
        clock=clock,
        timeout=settings.rpc_response_timeout,
        explain=None if registry is None else ServiceLookup(registry, clock, down_time),
        hosts=None if registry is None else UpHosts(registry, clock, down_time, rule),
        liveness=None if registry is None else TargetLiveness(registry, clock, rule),
        oldest=None if registry is None else OldestUp(registry, clock, rule),
        middleware=runtime.middleware,
        signer=runtime.signer,
    )


def make_emitter(runtime: Runtime, transport: ITransport, publisher_id: str) -> EventEmitter:
    """Make what a manager publishes events with.

    :param transport: open.
    :param publisher_id: the topic and the host: "stock.host1".
    """
    return EventEmitter(
        transport,
        publisher_id=publisher_id,
        topic=runtime.settings.event_topic,
        clock=runtime.reactor,
        chain=Chain.of(runtime.middleware, EMIT),
        now=lambda: datetime.fromtimestamp(runtime.wall_clock(), UTC),
    )


def attach_resources(
    manager: Manager,
    runtime: Runtime,
    client: Client,
    registry: IServiceRegistry,
    tasks: TaskRunner,
    events: EventEmitter,
    incarnation: int | None = None,
) -> None:
    """Give a manager its resources."""
    manager.attach(
        ManagerResources(
            reactor=runtime.reactor,
            rpc=client,
            tasks=tasks,
            registry=registry,
            events=events,
            run_blocking=runtime.run_blocking,
            worker=runtime.worker,
            incarnation=incarnation,
            observe=partial(make_observer, runtime, registry),
        )
    )
