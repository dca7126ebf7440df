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
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.pipe import PipeMessage
from novasvc.workers.process import ProcessListener, WorkerProcess
from novasvc.workers.restart_policy import RestartPolicy, Throttle
from novasvc.workers.slot import ABORT_TIMEOUT, Slot, WorkerTimeouts
from novasvc.workers.specification import ServerSpecification

_log = Logger()

OPERATIONS_TIMEOUT = 0.5
"""Seconds that the workers have to say which operations are under way in them; they are waited for with a call."""

_LATER = 1.0
"""Seconds that a place has to see by itself that its worker is late."""


@attrs.frozen(eq=False)
class WorkerTemplate:
    """What the workers are made from that were begun between two reloads.

    :param specification: their server.
    :param sockets: those that listen for it.
    :param forkserver: forks them.
    :param parameters: what they are told beside their number and their server.
    """

    specification: ServerSpecification
    sockets: Sequence[socket.socket]
    forkserver: ForkserverClient
    policy: RestartPolicy
    timeouts: WorkerTimeouts
    parameters: Mapping[str, Any]


@attrs.define(eq=False)
class WorkerGroup:
    """Keeps a number of workers of one server running.

    :param size: that number, > 0.
    :param template: what the next worker is made from.
    :param take_number: returns the least number that no worker has.
    :param give_up: see :class:`novasvc.workers.slot.Slot`.
    :ivar proven: a worker has been ready.
    """

    size: int
    template: WorkerTemplate
    _reactor: Any
    _take_number: Callable[[], int]
    _give_up: Callable[[Slot, str], bool]
    slots: list[Slot] = attrs.field(factory=list, init=False)
    proven: bool = attrs.field(default=False, init=False)
    _others: list[Slot] = attrs.field(factory=list, init=False)
    _templates: WeakKeyDictionary[Slot, WorkerTemplate] = attrs.field(factory=WeakKeyDictionary, init=False)
    throttle: Throttle = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.throttle = Throttle(self.size)

    @property
    def name(self) -> str:
        """The server's name."""
        return self.template.specification.name

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
            begun.append(slot.reaches("ready", "ended").addCallback(self._note_ready))
            slot.start()
        while len(self.slots) > size:
            self._leave(self.slots.pop())
        return gatherResults(begun, consumeErrors=True).addCallback(lambda _: None)

    async def start_and_wait(self) -> None:
        """Start the workers, and wait until each is ready.

        :raises ReloadError: one did not become ready.
        """
        self.start()
        # All at once, or one that fails while another is waited for would be given up by its group.
        try:
            await gatherResults(
                [Deferred.fromCoroutine(self._wait_until_ready(slot)) for slot in self.slots], consumeErrors=True
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
            await self._wait_until_ready(new)
        except (CancelledError, ReloadError):
            self._leave(new)
            raise
        self._others.remove(new)
        self.proven = True
        if slot in self.slots:
            self.slots[self.slots.index(slot)] = new
            self._leave(slot)
        else:  # it had to leave meanwhile: the group has become smaller
            self._leave(new)

    async def replace_all(self, template: WorkerTemplate) -> None:
        """Replace all workers that are of another template, one after the other.

        :raises ReloadError: one did not become ready; it stays as it was, and so do those after it.
        """
        self.template = template
        # Others may be replaced, come or go meanwhile.
        while old := [slot for slot in self.slots if self._templates[slot] is not template]:
            await self.replace(old[0])

    def forked_by(self, forkserver: ForkserverClient) -> list[Slot]:
        """Return the places whose workers come from a forkserver."""
        return [slot for slot in self if self._templates[slot].forkserver is forkserver]

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
        template = self.template

        def launch(listener: ProcessListener) -> WorkerProcess:
            server = template.specification
            parameters = {**template.parameters, "number": number, "name": server.name, "server": server.server}
            return WorkerProcess(template.forkserver, self._reactor, parameters, template.sockets, listener)

        policy, timeouts = template.policy, template.timeouts
        slot = Slot(
            number,
            self.name,
            self._reactor,
            launch,
            policy,
            timeouts,
            self.throttle,
            self._give_up,
            self._answer_sibling_query,
        )
        self._templates[slot] = template
        return slot

    def _answer_sibling_query(self, slot: Slot, message: PipeMessage) -> None:
        """Answer a worker that drains and was sent what belongs to nothing there."""
        telling = Deferred.fromCoroutine(self._state_of_siblings(slot, message["request_id"]))

        def tell(answer: str) -> None:
            if slot.process is not None:
                slot.process.answer(message["key"], answer)

        telling.addCallback(tell)
        telling.addErrback(lambda failure: _log.failure("cannot tell {worker} about siblings", failure, worker=slot))

    async def _state_of_siblings(self, slot: Slot, request_id: str) -> str:
        """Return what the other workers are to an operation; see :mod:`novasvc.rpc.admission`."""
        others = [other for other in self if other is not slot and other.process is not None]
        if any(other.state == "ready" for other in others):
            return READY
        asking = [
            other.process.ask("operations", OPERATIONS_TIMEOUT)
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

    def _note_ready(self, state: str) -> None:
        self.proven = self.proven or state == "ready"

    async def _wait_until_ready(self, slot: Slot) -> None:
        """Wait until a worker of a reload is ready. Others do its work, so that one waits for nothing for ever."""
        reached = slot.reaches("ready", "backing off", "failed", "ended")
        if slot.timeouts.start:
            # One that hangs is seen by its place, which has it write down its stacks.
            reached.addTimeout(slot.timeouts.start + ABORT_TIMEOUT + _LATER, self._reactor)
        problem = ""
        try:
            state = await reached
        except DeferredTimeoutError:
            state, problem = "late", f" within worker_start_timeout ({slot.timeouts.start:g} s)"
        if state != "ready":
            raise ReloadError(
                f"the new worker {slot.number} of {slot.name} did not become ready{problem}: {slot.trouble}"
            )
