"""A runtime for tests: broker and registry in memory, time on a Clock."""

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from novasvc.config import Settings
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.registry.memory import MemoryRegistry
from novasvc.transport.memory import MemoryBroker, MemoryTransport


def memory_runtime(clock: Clock | None = None, *, seed: int = 0, **settings: Any) -> Runtime:
    """Make a runtime without servers, in which the test controls the time.

    ``runtime.reactor`` is the Clock: advance it. It is also the wall clock of cron lines, from 1970 on.
    ``clock.advance(0)`` delivers messages. Blocking functions run at once, in the test's own thread.

    :param clock: a Clock to share with other parts; None makes one.
    :param seed: seed of the random source; the same seed gives the same delays.
    :param settings: fields of :class:`novasvc.config.Settings`.
    """
    time = clock or Clock()
    broker, registry = MemoryBroker(), MemoryRegistry(time)
    configuration = Settings(**settings)
    return Runtime(
        settings=configuration,
        reactor=time,
        broker=SharedConnection(
            "broker", lambda: MemoryTransport(broker, clock=time, exchange=configuration.control_exchange)
        ),
        database=SharedConnection("database", lambda: registry),
        run_blocking=_run_now,
        random_source=random.Random(seed),  # noqa: S311 - a test's
        wall_clock=time.seconds,
    )


def _run_now(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
    return maybeDeferred(function, *args, **kwargs)
