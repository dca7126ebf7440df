"""A worker's place on a Clock, with processes that do what the test says."""

import os
from errno import EMFILE
from typing import Any

from twisted.internet.task import Clock

from novasvc.telemetry.flight import Event
from novasvc.workers.exit_status import Exit
from novasvc.workers.process import ProcessListener
from novasvc.workers.restart_policy import RestartPolicy, Throttle
from novasvc.workers.slot import Slot, WorkerTimeouts


class StubProcess:
    """What a slot sees of a process."""

    def __init__(self, listener: ProcessListener, pid: int) -> None:
        self.listener = listener
        self.pid: int | None = None
        self.signals: list[int] = []
        self.interrupted: float | None = None
        self.server_stopped = False
        self.heartbeat_age = 0.0
        self.stacks = ""
        self.events: list[Event] = []
        self._pid = pid

    def last_events(self, most: int) -> list[Event]:
        return self.events[-most:]

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def interrupt(self, seconds: float) -> None:
        self.interrupted = seconds

    def be_forked(self) -> None:
        self.pid = self._pid
        self.listener.forked()

    def be_ready(self) -> None:
        self.be_forked()
        self.listener.received({"is": "ready"})

    def exit(self, code: int = 0) -> None:
        self.listener.ended(Exit(code << 8))

    def die_of(self, number: int) -> None:
        self.listener.ended(Exit(number))

    def fail(self, problem: str, *, final: bool) -> None:
        self.be_forked()
        self.listener.received({"is": "failed", "problem": problem, "final": final})
        self.exit(1)


class SlotRig:
    """A slot, the processes that it had, and what it asked.

    :ivar scarce: times that there are no descriptors for another process.
    """

    def __init__(
        self, *, number: int = 1, timeouts: WorkerTimeouts | None = None, workers: int = 10, budget: int = 3
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.processes: list[StubProcess] = []
        self.questions: list[str] = []
        self.gives_up = False
        self.scarce = 0
        self.slot = Slot(
            number,
            "agent",
            self.clock,
            self.launch,
            RestartPolicy(budget, 60.0, float),
            timeouts or WorkerTimeouts(start=60.0, drain=30.0, watchdog=10.0),
            Throttle(workers),
            self.give_up,
        )

    @property
    def process(self) -> StubProcess:
        """The last process."""
        return self.processes[-1]

    @property
    def state(self) -> str:
        """The slot's."""
        return self.slot.state

    def launch(self, listener: ProcessListener) -> Any:
        if self.scarce:
            self.scarce -= 1
            raise OSError(EMFILE, os.strerror(EMFILE))
        self.processes.append(StubProcess(listener, 100 + len(self.processes)))
        return self.processes[-1]

    def give_up(self, slot: Slot, problem: str) -> bool:
        self.questions.append(problem)
        return self.gives_up

    def ready(self) -> StubProcess:
        """Bring it to the state ready."""
        self.slot.start()
        self.process.be_ready()
        return self.process
