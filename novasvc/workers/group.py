"""The workers of one server: start, resize, rolling replacement and drain."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import attrs
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger

from novasvc.rpc.server.admission import NOBODY, READY, UNDER_WAY
from novasvc.workers.current import ALONE, TOGETHER
from novasvc.workers.errors import ReloadError
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.pipe import PipeMessage
from novasvc.workers.process import ProcessListener, WorkerProcess
from novasvc.workers.restart_policy import RestartPolicy, Throttle
from novasvc.workers.slot import ABORT_TIMEOUT, Slot, WorkerTimeouts
from novasvc.workers.specification import PickledServer

_log = Logger()

OPERATIONS_TIMEOUT = 0.5
"""Seconds for workers to report their running operations; a caller waits meanwhile, so it is short."""

_REPORT_SLACK = 1.0
"""Seconds of slack in which the slot itself reports a late worker, with its stacks."""


@attrs.frozen(eq=False)
class WorkerTemplate:
    """What workers are started from; a reload makes a new template.

    :param server: the pickled server.
    :param sockets: the server's listening sockets.
    :param forkserver: forks the workers.
    :param parameters: for :func:`novasvc.workers.worker.run`, without the number and the server.
    """

    server: PickledServer
    sockets: Sequence[socket.socket]
    forkserver: ForkserverClient
    policy: RestartPolicy
    timeouts: WorkerTimeouts
    parameters: Mapping[str, Any]


@attrs.define(eq=False)
class WorkerGroup:
    """Keeps a number of workers of one server running.

    :param size: the number of workers, > 0.
    :param template: for the workers that start from now on.
    :param lowest_free_number: returns the lowest free worker number.
    :param should_give_up: see :class:`novasvc.workers.slot.Slot`.
    :ivar proven: at least one worker has been ready.
    """

    size: int
    template: WorkerTemplate
    _reactor: Any
    _lowest_free_number: Callable[[], int]
    _should_give_up: Callable[[Slot, str], bool]
    slots: list[Slot] = attrs.field(factory=list, init=False)
    proven: bool = attrs.field(default=False, init=False)
    _others: list[Slot] = attrs.field(factory=list, init=False)
    _templates: WeakKeyDictionary[Slot, WorkerTemplate] = attrs.field(factory=WeakKeyDictionary, init=False)
    _ended_services: WeakKeyDictionary[Slot, set[str]] = attrs.field(factory=WeakKeyDictionary, init=False)
    throttle: Throttle = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.throttle = Throttle(self.size)

    @property
    def name(self) -> str:
        """The server's name."""
        return self.template.server.name

    def __iter__(self) -> Iterator[Slot]:
        """Iterate over all slots, including replacements that start and old workers that drain."""
        yield from sorted([*self.slots, *self._others], key=lambda slot: slot.number)

    def start(self) -> Deferred[None]:
        """Start the workers.

        :return: Deferred, fired when each has been ready.
        """
        return self.resize(self.size)

    def resize(self, size: int) -> Deferred[None]:
        """Change the number of workers; those with the highest numbers are drained.

        :return: Deferred, fired when each new worker has been ready.
        """
        self.size = self.throttle.workers = size
        begun = []
        while len(self.slots) < size:
            slot = self._make_slot(self._lowest_free_number())
            self.slots.append(slot)
            begun.append(slot.reaches("ready", "ended").addCallback(self._note_ready))
            slot.start()
        while len(self.slots) > size:
            self._begin_drain(self.slots.pop())
        return gatherResults(begun, consumeErrors=True).addCallback(lambda _: None)

    async def start_and_wait(self) -> None:
        """Start the workers, and wait until each is ready.

        :raises ReloadError: a worker did not become ready.
        """
        self.start()
        # Wait for all concurrently: a failure must be seen even while another worker is awaited.
        try:
            await gatherResults(
                [Deferred.fromCoroutine(self._wait_until_ready(slot)) for slot in self.slots], consumeErrors=True
            )
        except FirstError as error:
            error.subFailure.raiseException()

    async def replace(self, slot: Slot) -> None:
        """Start a replacement with the same number; drain the old worker when the new one is ready.

        :raises ReloadError: the new one did not become ready; the old one stays.
        """
        new = self._make_slot(slot.number)
        self._others.append(new)
        new.start()
        try:
            await self._wait_until_ready(new)
        except (CancelledError, ReloadError):
            self._begin_drain(new)
            raise
        self._others.remove(new)
        self.proven = True
        if slot in self.slots:
            self.slots[self.slots.index(slot)] = new
            self._begin_drain(slot)
        else:  # the group was resized meanwhile, and the slot is drained already
            self._begin_drain(new)

    async def replace_all(self, template: WorkerTemplate) -> None:
        """Replace the workers of other templates, one after the other.

        :raises ReloadError: a new worker did not become ready; the old one and those after it keep running.
        """
        self.template = template
        # Look again each time: slots may come, go or be replaced while this waits.
        while old := [slot for slot in self.slots if self._templates[slot] is not template]:
            await self.replace(old[0])

    def forked_by(self, forkserver: ForkserverClient) -> list[Slot]:
        """Return the slots whose workers this forkserver forks."""
        return [slot for slot in self if self._templates[slot].forkserver is forkserver]

    def drain(self) -> Deferred[None]:
        """Drain all workers.

        :return: Deferred, fired when all have exited.
        """
        self._others += self.slots
        self.slots.clear()
        drained = gatherResults([self._drain(slot) for slot in self], consumeErrors=True)
        return drained.addCallback(lambda _: None)

    def interrupt(self) -> None:
        """Make all workers cancel their work and exit now."""
        for slot in self:
            slot.interrupt()

    def _make_slot(self, number: int) -> Slot:
        template = self.template

        def make_process(listener: ProcessListener) -> WorkerProcess:
            server = template.server
            parameters = {**template.parameters, "number": number, "name": server.name, "server": server.data}
            return WorkerProcess(template.forkserver, self._reactor, parameters, template.sockets, listener)

        policy, timeouts = template.policy, template.timeouts
        slot = Slot(
            number,
            self.name,
            self._reactor,
            make_process,
            policy,
            timeouts,
            self.throttle,
            self._should_give_up,
            self._answer_sibling_query,
        )
        self._templates[slot] = template
        return slot

    def _answer_sibling_query(self, slot: Slot, message: PipeMessage) -> None:
        """Answer a worker: whether it ends alone, or who takes a request of an operation that it does not know."""
        if "end" in message:
            answering = succeed(ALONE if self._ends_alone(slot, message["end"], message["service"]) else TOGETHER)
        else:
            answering = Deferred.fromCoroutine(self._state_of_siblings(slot, message["request_id"]))

        def send(answer: str) -> None:
            if slot.process is not None:
                slot.process.answer(message["key"], answer)

        answering.addCallback(send)
        answering.addErrback(
            lambda failure: _log.failure("cannot answer {worker} about siblings", failure, worker=slot)
        )

    def _ends_alone(self, slot: Slot, kind: str, service: str) -> bool:
        """Return whether others go on with a service of a slot's worker; see :data:`novasvc.workers.current.EndsAlone`.

        Of workers that end together, the last one that asks does not end alone.
        """
        others = [other for other in self if other is not slot and other.process is not None]
        if kind == "failure":
            return any(other.state == "ready" for other in others)
        if self.slots:
            return True  # not the group drains: this worker is replaced, or no longer wanted
        if kind == "drain":
            return False
        ended = self._ended_services.setdefault(slot, set())
        ended.add(service)
        return any(service not in self._ended_services.get(other, ()) for other in others)

    async def _state_of_siblings(self, slot: Slot, request_id: str) -> str:
        """Return whether a sibling can take the operation's request; see :mod:`novasvc.rpc.server.admission`."""
        others = [other for other in self if other is not slot and other.process is not None]
        if any(other.state == "ready" for other in others):
            return READY
        queries = [
            other.process.query("operations", OPERATIONS_TIMEOUT)
            for other in others
            if other.process is not None and other.state == "draining"
        ]
        answers = await gatherResults(queries, consumeErrors=True)
        # A worker of another version may not know this query: accept only a list.
        known = any(isinstance(operations, list) and request_id in operations for operations in answers)
        return UNDER_WAY if request_id and known else NOBODY

    def _begin_drain(self, slot: Slot) -> None:
        if slot not in self._others:
            self._others.append(slot)
        self._drain(slot)

    def _drain(self, slot: Slot) -> Deferred[None]:
        def remove(_: str) -> None:
            if slot in self._others:
                self._others.remove(slot)

        return slot.drain().addCallback(remove)

    def _note_ready(self, state: str) -> None:
        self.proven = self.proven or state == "ready"

    async def _wait_until_ready(self, slot: Slot) -> None:
        """Wait until a replacement is ready, with a deadline: the old workers serve meanwhile."""
        reached = slot.reaches("ready", "backing off", "failed", "ended")
        if slot.timeouts.start:
            # Later than the slot's own timeout, which aborts a hanging worker and logs its stacks.
            reached.addTimeout(slot.timeouts.start + ABORT_TIMEOUT + _REPORT_SLACK, self._reactor)
        problem = ""
        try:
            state = await reached
        except DeferredTimeoutError:
            # If this process was suspended, a message may be here: the reactor calls what is due before it reads.
            await deferLater(self._reactor, 0)
            state, problem = slot.state, f" within worker_start_timeout ({slot.timeouts.start:g} s)"
        if state != "ready":
            raise ReloadError(
                f"the new worker {slot.number} of {slot.name} did not become ready{problem}: {slot.trouble}"
            )
