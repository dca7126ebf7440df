"""A node of a simulation: what runs on a host, one process after the other."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from novasvc.node.service import Service
from novasvc.registry.errors import ServiceTwinError
from novasvc.testing.simulation.process import SimulatedProcess

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation


class SimulatedNode:
    """A manager on a host, with a new process for each of its starts.

    :param manager: the class, a factory, or "package.module:Class"; called for each process.
    :param options: for the manager's constructor, and for :class:`novasvc.node.service.Service`.
    :ivar process: the process that runs now, or that ran last.
    :ivar superseded: processes that live, and whose place another one has taken.
    """

    def __init__(
        self,
        simulation: "Simulation",
        manager: Callable[..., Any] | str,
        host: str,
        topic: str,
        binary: str,
        options: dict[str, Any],
    ) -> None:
        self._simulation = simulation
        self._manager = manager
        self.host = host
        self.topic = topic
        self.binary = binary
        self._options = options
        self._starts = 0
        self.process: SimulatedProcess | None = None
        self.superseded: list[SimulatedProcess] = []
        self._twins: list[SimulatedProcess] = []

    def __str__(self) -> str:
        return f"{self.topic}.{self.host}"

    @property
    def manager(self) -> Any:
        """The manager of the process that runs now, or that ran last."""
        assert self.process is not None
        assert self.process.service is not None
        return self.process.service.manager

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and not self.process.ended

    def start(self) -> Deferred[None]:
        """Start a process. Its start waits for what it needs; a failure is a problem of the run."""
        process = self.process = self._add_process(lock=f"{self.topic}.{self.host}@{self._starts + 1}")
        return process.serve(self._make).addCallbacks(self._started, self._not_started, (process,), {}, (process,), {})

    def start_twin(self) -> None:
        """Start another process while the first one lives, on another machine: a mistake of an operator.

        It is refused while the first one sends heartbeats; otherwise it takes its place.
        """
        process = self._add_process(lock=None)
        self._twins.append(process)
        process.serve(self._make).addCallbacks(self._twin_started, self._twin_refused, (process,), {}, (process,), {})

    def _add_process(self, *, lock: str | None) -> SimulatedProcess:
        self._starts += 1
        name = f"{self.host}#{self._starts}"
        process = self._simulation.add_process(self.host, name, lock)
        self._simulation.trace.note("started", name, str(self))
        return process

    def _started(self, _: None, process: SimulatedProcess) -> None:
        assert process.service is not None
        self._simulation.know_handlers(self.topic, process.service)

    def _twin_started(self, _: None, process: SimulatedProcess) -> None:
        self._twins.remove(process)
        if self.process is not None and not self.process.ended:
            self.superseded.append(self.process)
        self.process = process

    def _twin_refused(self, failure: Failure, process: SimulatedProcess) -> None:
        self._twins.remove(process)
        if not isinstance(getattr(failure.value, "__cause__", None), ServiceTwinError):
            self._not_started(failure, process)
        process.ended = True

    def _make(self, process: SimulatedProcess) -> Service:
        service = Service(self.host, self.binary, self.topic, self._manager, runtime=process.runtime, **self._options)
        self._simulation.know_methods(self.topic, service)
        return service

    def _not_started(self, failure: Failure, process: SimulatedProcess) -> None:
        if process.service is not None and process.service.state in {"draining", "stopped"}:
            return  # it was stopped meanwhile
        process.ended = True
        if self.process is not process and isinstance(getattr(failure.value, "__cause__", None), ServiceTwinError):
            return  # a twin that began meanwhile has its place
        self._simulation.not_started(self, failure.value)

    def start_again(self) -> None:
        """Start another process, unless one runs."""
        if not self.running:
            self.start()

    def kill(self, broker_notices_after: float = 0.0) -> None:
        """End its process without a word."""
        if self.running and self.process is not None:
            self._simulation.trace.note("killed", self.process.name, str(self))
            self.process.kill(broker_notices_after)

    def stop(self) -> Deferred[None]:
        """Stop its process as SIGTERM does."""
        assert self.process is not None
        self._simulation.trace.note("stopping", self.process.name, str(self))
        return self.process.stop()

    def restart(self) -> None:
        """Stop its process as SIGTERM does, and start another one when it has ended."""
        process = self.process
        if process is None or process.ended or process.stopping:
            return
        self.stop().addCallback(lambda _: self.start_again() if self.process is process else None)
