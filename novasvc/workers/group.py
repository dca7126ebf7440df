"""The workers of one server: started, counted, replaced one after the other."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import attrs
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.logger import Logger

from novasvc.rpc.admission import NOBODY, READY, UNDER_WAY
from novasvc.workers.errors import ReloadError
from novasvc.workers.forkserver_client import Forks
from novasvc.workers.pipe import Message
from novasvc.workers.process import ProcessListener, WorkerProcess
from novasvc.workers.restart_policy import RestartPolicy, Throttle
from novasvc.workers.slot import ABORT_PATIENCE, Limits, Slot
from novasvc.workers.specification import Package

_log = Logger()

OPERATIONS_PATIENCE = 0.5
"""Seconds that the workers have to say which operations are under way in them; they are waited for with a call."""

_LATER = 1.0
"""Seconds that a place has to see by itself that its worker is late."""


@attrs.frozen(eq=False)
class Generation:
    """What the workers are made from that were begun between two reloads.

    :param package: their server.
    :param sockets: those that listen for it.
    :param forks: forks them.
    :param order: what they are told beside their number and their server.
    """

    package: Package
    sockets: Sequence[socket.socket]
    forks: Forks
    policy: RestartPolicy
    limits: Limits
    order: Mapping[str, Any]


@attrs.define(eq=False)
class Fleet:
    """Keeps a number of workers of one server running.

    :param size: that number, > 0.
    :param generation: what the next worker is made from.
    :param take_number: returns the least number that no worker has.
    :param give_up: see :class:`novasvc.workers.slot.Slot`.
    :ivar proven: a worker has been ready.
    """

    size: int
    generation: Generation
    _reactor: Any
    _take_number: Callable[[], int]
    _give_up: Callable[[Slot, str], bool]
    slots: list[Slot] = attrs.field(factory=list, init=False)
    proven: bool = attrs.field(default=False, init=False)
    _others: list[Slot] = attrs.field(factory=list, init=False)
    _origins: WeakKeyDictionary[Slot, Generation] = attrs.field(factory=WeakKeyDictionary, init=False)
    throttle: Throttle = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.throttle = Throttle(self.size)

    @property
    def name(self) -> str:
        """The server's name."""
        return self.generation.package.name

    def __iter__(self) -> Iterator[Slot]:
        """Return all places of workers, also those that come to replace others, and those that leave."""
        yield from sorted([*self.slots, *self._others], key=lambda slot: slot.number)

    def start(self) -> Deferred[None]:
        """Begin to start the workers.

        :return: fires when all of them have been ready.
        """
        return self.resize(self.size)

    def resize(self, size: int) -> Deferred[None]:
        """Run that many workers; those with the highest numbers leave.

        :return: fires when all that were begun have been ready.
        """
        self.size = self.throttle.workers = size
        begun = []
        while len(self.slots) < size:
            slot = self._make(self._take_number())
            self.slots.append(slot)
            begun.append(slot.reaches("ready", "ended").addCallback(self._prove))
            slot.start()
        while len(self.slots) > size:
            self._leave(self.slots.pop())
        return gatherResults(begun, consumeErrors=True).addCallback(lambda _: None)

    async def start_surely(self) -> None:
        """Start the workers, and wait until each is ready.

        :raises ReloadError: one did not become ready.
        """
        self.start()
        # All at once, or one that fails while another is waited for would be given up by its fleet.
        try:
            await gatherResults(
                [Deferred.fromCoroutine(self._see_ready(slot)) for slot in self.slots], consumeErrors=True
            )
        except FirstError as error:
            error.subFailure.raiseException()

    async def replace(self, slot: Slot) -> None:
        """Start a worker with the number of another, and drain that one when the new one is ready.

        :raises ReloadError: the new one did not become ready; the old one stays.
        """
        new = self._make(slot.number)
        self._others.append(new)
        new.start()
        try:
            await self._see_ready(new)
        except (CancelledError, ReloadError):
            self._leave(new)
            raise
        self._others.remove(new)
        self.proven = True
        if slot in self.slots:
            self.slots[self.slots.index(slot)] = new
            self._leave(slot)
        else:  # it had to leave meanwhile: the fleet has become smaller
            self._leave(new)

    async def replace_all(self, generation: Generation) -> None:
        """Replace all workers that are of another generation, one after the other.

        :raises ReloadError: one did not become ready; it stays as it was, and so do those after it.
        """
        self.generation = generation
        # Others may be replaced, come or go meanwhile.
        while old := [slot for slot in self.slots if self._origins[slot] is not generation]:
            await self.replace(old[0])

    def made_by(self, forks: Forks) -> list[Slot]:
        """Return the places whose workers come from a forkserver."""
        return [slot for slot in self if self._origins[slot].forks is forks]

    def drain(self) -> Deferred[None]:
        """Drain all workers.

        :return: fires when there are none any more.
        """
        self._others += self.slots
        self.slots.clear()
        drained = gatherResults([self._drain(slot) for slot in self], consumeErrors=True)
        return drained.addCallback(lambda _: None)

    def hurry(self) -> None:
        """Let all workers end at once."""
        for slot in self:
            slot.hurry()

    def _make(self, number: int) -> Slot:
        generation = self.generation

        def launch(listener: ProcessListener) -> WorkerProcess:
            package = generation.package
            order = {**generation.order, "number": number, "name": package.name, "server": package.server}
            return WorkerProcess(generation.forks, self._reactor, order, generation.sockets, listener)

        policy, limits = generation.policy, generation.limits
        slot = Slot(
            number,
            self.name,
            self._reactor,
            launch,
            policy,
            limits,
            self.throttle,
            self._give_up,
            self._tell_of_siblings,
        )
        self._origins[slot] = generation
        return slot

    def _tell_of_siblings(self, slot: Slot, message: Message) -> None:
        """Answer a worker that drains and was sent what belongs to nothing there."""
        telling = Deferred.fromCoroutine(self._look_at_siblings(slot, message["request_id"]))

        def tell(answer: str) -> None:
            if slot.process is not None:
                slot.process.answer(message["key"], answer)

        telling.addCallback(tell)
        telling.addErrback(lambda failure: _log.failure("{worker} is not told of the others", failure, worker=slot))

    async def _look_at_siblings(self, slot: Slot, request_id: str) -> str:
        """Return what the other workers are to an operation; see :mod:`novasvc.rpc.admission`."""
        others = [other for other in self if other is not slot and other.process is not None]
        if any(other.state == "ready" for other in others):
            return READY
        asking = [
            other.process.ask("operations", OPERATIONS_PATIENCE)
            for other in others
            if other.process is not None and other.state == "draining"
        ]
        told = await gatherResults(asking, consumeErrors=True)
        # A worker of another version may not know the question, and answers another one.
        known = any(isinstance(operations, list) and request_id in operations for operations in told)
        return UNDER_WAY if request_id and known else NOBODY

    def _leave(self, slot: Slot) -> None:
        if slot not in self._others:
            self._others.append(slot)
        self._drain(slot)

    def _drain(self, slot: Slot) -> Deferred[None]:
        def gone(_: str) -> None:
            if slot in self._others:
                self._others.remove(slot)

        return slot.drain().addCallback(gone)

    def _prove(self, state: str) -> None:
        self.proven = self.proven or state == "ready"

    async def _see_ready(self, slot: Slot) -> None:
        """Wait until a worker of a reload is ready. Others do its work, so that one waits for nothing for ever."""
        reached = slot.reaches("ready", "backing off", "failed", "ended")
        if slot.limits.start:
            # One that hangs is seen by its place, which has it write down its stacks.
            reached.addTimeout(slot.limits.start + ABORT_PATIENCE + _LATER, self._reactor)
        problem = ""
        try:
            state = await reached
        except DeferredTimeoutError:
            state, problem = "late", f" within worker_start_timeout ({slot.limits.start:g} s)"
        if state != "ready":
            raise ReloadError(
                f"the new worker {slot.number} of {slot.name} did not become ready{problem}: {slot.trouble}"
            )
