"""A runtime for tests: broker and registry in memory, time on a Clock."""

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from novasvc.config import Settings
from novasvc.interfaces import IServiceRegistry, ITransport
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.reactor.backoff import jittered_backoff
from novasvc.registry.memory import MemoryRegistry
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from novasvc.workers.current import SharedStart


def memory_runtime(clock: Clock | None = None, *, seed: int = 0, **settings: Any) -> Runtime:
    """Make a runtime without servers, in which the test controls the time.

    :class:`novasvc.testing.Fleet` is more convenient. ``runtime.reactor`` is the Clock: advance it. It is also the wall
    clock of cron lines, from 1970 on.
    ``clock.advance(0)`` delivers messages. Blocking functions run at once, in the test's own thread.

    :param clock: a Clock to share with other parts; None makes one.
    :param seed: seed of the random source; the same seed gives the same delays.
    :param settings: fields of :class:`novasvc.config.Settings`.
    """
    time = clock or Clock()
    configuration = Settings(**settings)
    broker = MemoryBroker()
    registry = MemoryRegistry(time, service_down_time=configuration.service_down_time)

    def connect() -> ITransport:
        return MemoryTransport(broker, clock=time, exchange=configuration.control_exchange)

    return make_runtime(configuration, time, connect, registry, random.Random(seed))  # noqa: S311 - a test's


def make_runtime(
    settings: Settings,
    clock: Clock,
    connect: Callable[[], ITransport],
    registry: IServiceRegistry,
    random_source: random.Random,
    worker: int | None = None,
    run_blocking: Callable[..., Deferred[Any]] = maybeDeferred,
) -> Runtime:
    """Make a runtime of parts that need no server.

    :param connect: makes a transport, unopened.
    :param registry: shared by all runtimes that are to see each other's services.
    :param worker: the number of the worker whose process this stands for; None without a supervisor.
    :param run_blocking: runs a function that blocks; by default it runs at once.
    """
    return Runtime(
        settings=settings,
        reactor=clock,
        broker=SharedConnection("broker", connect),
        database=SharedConnection("database", lambda: registry),
        run_blocking=run_blocking,
        worker=worker,
        start=None if worker is None else SharedStart(owner=settings.host[:36], pid=0),
        machine=settings.host,
        random_source=random_source,
        wall_clock=clock.seconds,
        retry=jittered_backoff(random_source=random_source),
    )
