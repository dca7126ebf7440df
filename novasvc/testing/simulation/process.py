"""One process of a simulation: its clock, its connections, and the node that it runs."""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, cast

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from novasvc import rpc
from novasvc.config import Settings
from novasvc.interfaces import IServiceRegistry, ITransport
from novasvc.node.manager_resources import make_client, make_emitter
from novasvc.node.runtime import Runtime
from novasvc.node.service import Service
from novasvc.testing.runtime import make_runtime
from novasvc.testing.simulation.clock import ProcessClock
from novasvc.testing.simulation.database import SimulatedRegistry
from novasvc.testing.simulation.ledger import Witness
from novasvc.testing.simulation.link import Link
from novasvc.testing.simulation.transport import SimulatedTransport
from novasvc.testing.threads import RefusedCalls
from novasvc.workers.current import EndKind, SharedStart

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

EPOCH = 1_800_000_000.0
"""Unix seconds that the wall clocks show at the start, give or take a day."""


class SimulatedProcess:
    """A process on a host, from its start to its end; a restart makes another one.

    :param simulation: that it belongs to.
    :param name: unique: the host, and the number of its start.
    :param lock: what only one of the processes of a machine can have at a time; None without it.
    :ivar held_until: seconds on the shared clock before which nothing gets through to the broker.
    :ivar stopping: it was told to stop.
    :ivar ended: it has died, or it has stopped.
    """

    def __init__(
        self, simulation: "Simulation", host: str, name: str, settings: dict[str, Any], lock: str | None
    ) -> None:
        self.simulation = simulation
        self.host = host
        self.name = name
        source = simulation.seed.source(f"process {name}")
        drift = simulation.weather_of_clocks
        self.clock = ProcessClock(
            simulation.clock, offset=source.uniform(0, 10_000), rate=1 + source.uniform(-drift, drift)
        )
        self.clock.blocking_calls = RefusedCalls(
            simulation.clock, lambda problem: simulation.ledger.problem("blocking", f"{name}: {problem}")
        )
        wall_offset = EPOCH + source.uniform(-86_400, 86_400)
        self.registry = SimulatedRegistry(simulation.database, self.clock, name)
        self.transports: list[SimulatedTransport] = []
        self._links = simulation.seed.source(f"link {name}")
        runtime = make_runtime(
            Settings(**{"host": host, **settings}),
            cast("Any", self.clock),
            self._connect,
            cast("IServiceRegistry", self.registry),
            Random(source.random()),  # noqa: S311 - reproducible numbers are the point
            run_blocking=self._run_blocking,
        )
        self.runtime: Runtime = attrs.evolve(
            runtime,
            wall_clock=lambda: wall_offset + self.clock.seconds(),
            given_middleware=(Witness(simulation.ledger, name, lambda: simulation.refusals.check(self)),),
            # Given, because a process would take its own number and a file lock of this machine.
            start=SharedStart(owner=f"{source.getrandbits(128):032x}", pid=len(simulation.processes) + 1, lock=lock),
            ends_alone=_ends_together,
            machine=name,
        )
        self.service: Service | None = None
        self.client: rpc.Client | None = None
        self.events: rpc.EventEmitter
        self.held_until = 0.0
        self.stopping = self.ended = False
        self.ended_at: float | None = None

    # -- its parts -----------------------------------------------------------------------------

    def _connect(self) -> ITransport:
        simulation = self.simulation
        transport = SimulatedTransport(
            simulation.broker,
            self.clock,
            partial(Link, simulation.clock, self.clock, self._links, simulation.weather),
            self.name,
            self.runtime.settings.control_exchange,
        )
        transport.link.held_until = self.held_until
        self.transports.append(transport)
        return cast("ITransport", transport)

    def _run_blocking(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        run = partial(copy_context().run, function, *args, **kwargs)
        return deferLater(self.clock, 0, self.clock.run_as_thread, run)

    @property
    def links(self) -> list[Link]:
        """Its connections to the broker."""
        return [transport.link for transport in self.transports]

    @property
    def is_fenced(self) -> bool:
        """Whether its node is fenced: the registry has refused it."""
        return self.service is not None and self.service.node.fence.is_fenced

    @property
    def is_refused(self) -> bool:
        """Whether its node is fenced, and the registry refuses it still: nobody has let it up since."""
        if self.service is None or not self.is_fenced:
            return False
        registration = self.service.node.registration
        found: list[Any] = []
        record = registration.record
        self.simulation.database.registry.get("0" if record is None else str(record.id)).addBoth(found.append)
        row = found[0]
        return isinstance(row, Failure) or row.forced_down or row.incarnation.number != registration.number

    # -- its life --------------------------------------------------------------------------------

    def serve(self, make: Callable[["SimulatedProcess"], Service]) -> Deferred[None]:
        """Run a node.

        :param make: makes it; takes this process.
        """
        service = self.service = make(self)
        return service.start()

    def connect_client(self) -> Deferred[rpc.Client]:
        """Make the client of a process that only calls others."""
        return Deferred.fromCoroutine(self._connect_client())

    async def _connect_client(self) -> rpc.Client:
        transport = await self.runtime.broker.acquire()
        self.client = make_client(self.runtime, transport, lambda: cast("IServiceRegistry", self.registry))
        self.events = make_emitter(self.runtime, transport, self.name)
        return self.client

    def stop(self) -> Deferred[None]:
        """Stop as SIGTERM does: drain, and end."""
        self.stopping = True
        if self.service is None:
            self.ended = True
            return succeed(None)

        def end(result: Any) -> Any:
            self.ended = True
            return result if isinstance(result, Failure) else None

        return self.service.stop().addBoth(end)

    def close(self) -> None:
        """End a process that only calls others."""
        self.ended = True
        if self.client is not None:
            closing = self.client.close()
            closing.addCallback(lambda _: Deferred.fromCoroutine(self.runtime.broker.release()))
            closing.addErrback(lambda failure: self.simulation.ledger.problem("close", failure.getTraceback()))

    def kill(self, broker_notices_after: float) -> None:
        """End without a word, as by SIGKILL or a power failure."""
        self.ended = self.clock.ended = True
        self.ended_at = self.simulation.clock.rightNow
        for transport in self.transports:
            transport.dead = True
            transport.link.die(broker_notices_after)

    def pause(self, seconds: float) -> None:
        """Run nothing for some seconds, as after SIGSTOP."""
        until = self.simulation.clock.rightNow + seconds
        self.clock.pause(until)
        if seconds > 2 * 10.0:
            for link in self.links:
                link.cut(gets_out=True, gets_in=True, broker_notices_after=20.0)


def _ends_together(_kind: EndKind, _service: str) -> Deferred[bool]:
    """Say that no other process goes on with the service; see :data:`novasvc.workers.current.EndsAlone`."""
    return succeed(False)
