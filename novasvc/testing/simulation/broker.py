"""The broker of a simulation, which all processes share."""

from zlib import crc32

import attrs

from novasvc.testing.simulation.clock import SimulationClock
from novasvc.testing.simulation.trace import Trace
from novasvc.transport.memory import MemoryBroker


@attrs.define(eq=False)
class SimulatedBroker:
    """A broker in memory, and what is wrong with it.

    :param clock: the clock that all share.
    :ivar queues: its queues.
    :ivar refuses_until: seconds on the clock until which it refuses messages.
    """

    clock: SimulationClock
    trace: Trace
    queues: MemoryBroker = attrs.field(factory=MemoryBroker, init=False)
    refuses_until: float = attrs.field(default=0.0, init=False)
    _refused: frozenset[str] = attrs.field(default=frozenset(), init=False)

    def refuse(self, seconds: float, processes: frozenset[str]) -> None:
        """Refuse the messages of some processes for some seconds."""
        self.refuses_until = max(self.refuses_until, self.clock.rightNow + seconds)
        self._refused = processes

    def refusal(self, process: str) -> str | None:
        """Return why a message of a process is refused; None if it is taken."""
        refused = self.clock.rightNow < self.refuses_until and process in self._refused
        return "the broker rejected the message (basic.nack)" if refused else None

    def waiting(self) -> list[tuple[tuple[str, str | None], int]]:
        """Return topic and host of the queues with messages, and how many they have."""
        found = ((name, self.queues.ready(name)) for name in self.queues.names())
        return [((name[1], name[2]), messages) for name, messages in found if messages]

    def note(self, kind: str, process: str, what: str, body: bytes) -> None:
        """Add a message to the trace; its checksum stands for its bytes."""
        self.trace.note(kind, process, f"{what} {len(body)} bytes {crc32(body):08x}")

    def lose_queue(self, topic: str, server: str | None, exchange: str = "nova") -> bool:
        """Forget a queue with its messages and consumers, as if an operator had deleted it.

        :param server: None for the queue of the topic.
        :return: whether there was one.
        """
        return self.queues.delete((exchange, topic, server))
