"""The database of a simulation: a registry in memory that is far away, slow, or not there."""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.interfaces import IServiceRegistry
from novasvc.registry.errors import DatabaseUnavailableError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.record import Records, ServiceRecord
from novasvc.testing.simulation.clock import ProcessClock, SimulationClock
from novasvc.testing.simulation.randomness import happens
from novasvc.testing.simulation.trace import Trace

DATABASE = "simulation:"
"""The database's URL in errors."""

ANSWER_TIMEOUT = 15.0
"""Seconds for an answer, as the SQL registry waits."""
STATEMENT_TIMEOUT = 5.0
"""Seconds after which a database cancels a statement that waits."""


@attrs.define(eq=False)
class SimulatedDatabase:
    """A registry in memory, and what is wrong with it.

    :param world: the clock that all share.
    :param clock: the database's own clock.
    :param random: draws the latencies.
    :ivar registry: the tables.
    :ivar begun: called with the row of a service before a start, or None, and with the row after it.
    :ivar latency: seconds that most statements take at most, there and back each.
    :ivar stalled_until: seconds on the shared clock until which it does nothing.
    :ivar refuses_until: seconds on the shared clock until which it refuses connections.
    """

    world: SimulationClock
    clock: ProcessClock
    random: Random
    trace: Trace
    registry: MemoryRegistry = attrs.field(init=False)
    begun: Callable[[ServiceRecord | None, ServiceRecord], None] = attrs.field(default=lambda *_: None, init=False)
    latency: float = attrs.field(default=0.004, init=False)
    stalled_until: float = attrs.field(default=0.0, init=False)
    refuses_until: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.registry = MemoryRegistry(self.clock)

    def delay(self, held_until: float) -> float:
        """Return the seconds until a message between a process and the database arrives.

        :param held_until: seconds on the shared clock before which nothing of the process gets through.
        """
        now = self.world.rightNow
        return max(0.0, held_until - now) + self.latency * (0.2 + self.random.random() ** 4)

    def begin(self, start: ServiceStart) -> Deferred[ServiceRecord]:
        """Begin a start, and tell what it came after."""
        found: Records = []
        self.registry.list(start.host, start.binary, None).addCallback(found.extend)

        def begun(record: ServiceRecord) -> ServiceRecord:
            self.begun(found[0] if found else None, record)
            return record

        return self.registry.begin(start).addCallback(begun)


@implementer(IServiceRegistry)
class SimulatedRegistry:
    """IServiceRegistry of one process, over a network to the database.

    It has the methods of the interface; each is a request that travels there, and an answer that travels back.

    :param process: its name.
    :ivar held_until: seconds on the shared clock before which nothing gets through.
    """

    # Note [A statement whose answer is lost]
    #
    # A process gives up after ANSWER_TIMEOUT, and cannot know whether its statement was executed. A database that
    # stalls for longer has cancelled some of the statements that waited, and executes the others late, after their
    # processes have gone on, or have tried again. Not so with starts and changes of rows: the SQL registry does not
    # commit them for a caller that has given up.

    def __init__(self, database: SimulatedDatabase, clock: ProcessClock, process: str) -> None:
        self._database = database
        self._clock = clock
        self._process = process
        self.held_until = 0.0

    def __getattr__(self, name: str) -> Callable[..., Deferred[Any]]:
        if name in IServiceRegistry:
            return partial(self._ask, name)
        raise AttributeError(name)

    def _ask(self, name: str, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        database, world, began = self._database, self._database.world, self._database.world.rightNow
        waiting: Deferred[Any] = Deferred(lambda _: None)

        def answer(result: Any) -> None:
            if timer.active():
                timer.cancel()
            if not waiting.called:
                waiting.callback(result)

        def send_back(result: Any) -> None:
            back = database.delay(self.held_until)
            self._clock.callLater(back * self._clock.rate, answer, result)

        def arrive() -> None:
            now = world.rightNow
            if database.stalled_until > now:
                if database.stalled_until - now > STATEMENT_TIMEOUT and happens(database.random, 0.5):
                    return
                world.callLater(database.stalled_until - now, arrive)
                return
            if database.refuses_until > now:
                send_back(Failure(DatabaseUnavailableError(DATABASE, "it refuses connections")))
                return
            if waiting.called and (name in {"begin", "update"} or (name == "enter" and args[2] != "stopped")):
                return
            database.trace.note("execute", self._process, f"{name} after {now - began:.6f} s")
            execute = database.begin if name == "begin" else getattr(database.registry, name)
            execute(*args, **kwargs).addBoth(send_back)

        world.callLater(database.delay(self.held_until), arrive)
        late = f"no answer to {name!r} within {ANSWER_TIMEOUT:g} s"
        timer = self._clock.callLater(ANSWER_TIMEOUT, answer, Failure(DatabaseUnavailableError(DATABASE, late)))
        return waiting
