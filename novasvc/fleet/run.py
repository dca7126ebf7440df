"""Run an operation: begin nodes as the plan says, store how each comes on, halt at the failure budget."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from novasvc.errors import NovasvcError, describe
from novasvc.fleet.actions import KINDS, Attempt, attempt
from novasvc.fleet.calls import NodeCalls, SharedCommand
from novasvc.fleet.patience import LONGEST_DELAY, OUTAGE_LIMIT, Patience
from novasvc.fleet.plan import Finish, Halt, Limits, Start, Wait, next_action
from novasvc.fleet.selection import Process, process_of
from novasvc.interfaces import IOperationStore, IServiceRegistry
from novasvc.registry.errors import DatabaseUnavailableError, ServiceNotFoundError
from novasvc.registry.operation import NodeChange, Operation, OperationNode, OperationState

_log = Logger()
_T = TypeVar("_T")

HEARD_INTERVAL = 5.0
"""Seconds between two notes that the command of an operation is there; see RUNNER_TIMEOUT."""

_INTERRUPTED_TIMEOUT = 1.5
"""Seconds for an interrupted operation to be stored as halted; afterwards it is found as unattended."""


class Observer(Protocol):
    """Is told how an operation comes on, for a display."""

    def changed(self, node: OperationNode) -> None:
        """Show that a node was begun, or has ended."""

    def wave(self, number: int, nodes: Sequence[OperationNode]) -> None:
        """Show that a wave begins.

        :param number: from 0.
        :param nodes: all of the wave.
        """


@attrs.define(eq=False, kw_only=True)
class OperationRun:
    """Runs one operation, from where it is to its end.

    :param operation: as it was begun or resumed by this command.
    :param nodes: its nodes, as they are stored.
    :param registry: the services.
    :param store: where the operation is stored.
    :param calls: calls nodes; None for kinds that call none.
    :param clock: measures all times.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    :param observer: shows how it comes on.
    """

    operation: Operation
    nodes: Sequence[OperationNode]
    registry: IServiceRegistry
    store: IOperationStore
    calls: NodeCalls | None
    clock: IReactorTime
    service_down_time: float
    observer: Observer
    _nodes: dict[int, OperationNode] = attrs.field(init=False)
    _limits: Limits = attrs.field(init=False)
    _working: dict[int, Deferred[None]] = attrs.field(factory=dict, init=False)
    _changed: Deferred[None] = attrs.field(factory=Deferred, init=False)
    _wave: int | None = attrs.field(default=None, init=False)
    _broken: BaseException | None = attrs.field(default=None, init=False)
    _neighbours: dict[int, list[int]] = attrs.field(factory=dict, init=False)
    _commands: dict[int, SharedCommand] = attrs.field(factory=dict, init=False)
    _resumed: set[int] = attrs.field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self._nodes = {node.service_id: node for node in sorted(self.nodes, key=lambda node: node.position)}
        self._limits = Limits.from_json(self.operation.options)

    @property
    def _owner(self) -> str:
        assert self.operation.owner is not None, "an operation that runs has an owner"
        return self.operation.owner

    async def run(self) -> Operation:
        """Run it to its end; cancelling halts it.

        :return: as it ended: "done" or "halted".
        :raises OperationStateError: another command has resumed it, or it was aborted.
        :raises DatabaseUnavailableError: the database was away for too long. The operation can be resumed.
        """
        hearing = LoopingCall(self._tell)
        hearing.clock = self.clock
        hearing.start(HEARD_INTERVAL, now=False).addErrback(self._break)
        try:
            if self.calls is not None:
                self._neighbours = await self._read_neighbours()
            # Those of a command that has died: their outcome is found out first.
            under_way = [node for node in self._nodes.values() if node.state == "running"]
            self._resumed.update(node.service_id for node in under_way)
            for node in under_way:
                self._begin(node)
            state, reason = await self._proceed()
            await self._retry_outages(lambda: self.store.end(self.operation.id, self._owner, state, reason))
        except CancelledError:
            self._cancel()
            await self._store_interruption()
            raise
        finally:
            self._cancel()
            if hearing.running:
                hearing.stop()
        return await self._retry_outages(lambda: self.store.read(self.operation.id))

    async def _proceed(self) -> tuple[OperationState, str | None]:
        while True:
            if self._broken is not None:
                raise self._broken
            match next_action(self._nodes.values(), self._limits):
                case Start(nodes=nodes):
                    self._show_wave(nodes[0].wave)
                    for node in nodes:
                        self._begin(attrs.evolve(node, state="running"))
                case Wait():
                    self._changed = Deferred()
                    await self._changed
                case Halt(reason=reason):
                    return "halted", reason
                case Finish():
                    return "done", None

    def _show_wave(self, wave: int) -> None:
        if wave != self._wave:
            self._wave = wave
            self.observer.wave(wave, [node for node in self._nodes.values() if node.wave == wave])

    # -- one node --------------------------------------------------------------------------------

    def _begin(self, node: OperationNode) -> None:
        self._nodes[node.service_id] = node
        self.observer.changed(node)
        working = self._working[node.service_id] = Deferred.fromCoroutine(self._work(node))
        working.addErrback(self._break).addBoth(self._ended, node.service_id)

    def _ended(self, _: object, service_id: int) -> None:
        del self._working[service_id]
        self._wake()

    async def _work(self, node: OperationNode) -> None:
        patience = Patience(self.clock, self._limits.timeout)
        incarnation = node.incarnation
        if incarnation is None:
            incarnation = await self._incarnation(node.service_id, patience)
        node = attrs.evolve(node, incarnation=incarnation or None)
        # Before the command is sent: who resumes the operation must know which incarnation was to change. So must the
        # other services of the same process, which change with it, when it is their turn.
        others = [
            attrs.evolve(other, incarnation=await self._incarnation(other.service_id, patience) or None)
            for other in (self._nodes[number] for number in self._neighbours.get(node.service_id, ()))
            if other.state == "pending" and other.incarnation is None
        ]
        await self._note(node, *others)
        one = Attempt(
            node=node,
            registry=self.registry,
            calls=self.calls,
            options=self.operation.options,
            service_down_time=self.service_down_time,
            patience=patience,
            shared=self._command_to(node.service_id),
        )
        try:
            done, detail = await attempt(KINDS[self.operation.kind], one)
        except (DatabaseUnavailableError, CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - of one node; the budget counts it, and the operation goes on
            _log.failure("{operation} failed at {node}", level=LogLevel.error, operation=self.operation, node=node.name)
            done, detail = False, describe(error)
        await self._note(attrs.evolve(node, state="done" if done else "failed", detail=detail))

    async def _incarnation(self, service_id: int, patience: Patience) -> int:
        """Return the number of a service's incarnation; 0 if it has none, or its row was deleted."""

        async def read() -> int:
            return (await self.registry.get(str(service_id))).incarnation_number or 0

        with suppress(ServiceNotFoundError):
            return await patience.until(read, lambda: "the database did not answer")
        return 0

    async def _note(self, *nodes: OperationNode) -> None:
        def note() -> Awaitable[None]:
            changes = [_change(node) for node in self._without_begun(nodes)]
            return self.store.note(self.operation.id, self._owner, changes)

        await self._retry_outages(note)
        for node in self._without_begun(nodes):
            self._nodes[node.service_id] = node
            if node.state in {"done", "failed"}:
                self.observer.changed(node)

    def _without_begun(self, nodes: Sequence[OperationNode]) -> list[OperationNode]:
        """Leave out nodes that are to be pending, but were begun meanwhile: they are noted as running."""
        known = self._nodes
        return [node for node in nodes if node.state != "pending" or known[node.service_id].state == "pending"]

    async def _read_neighbours(self) -> dict[int, list[int]]:
        """Return, for each service that shares its process with others of the operation, the ids of all of them."""
        processes: dict[Process, list[int]] = {}

        async def read() -> None:
            processes.clear()
            for record in await self.registry.list(None, None, None):
                process = process_of(record)
                if record.id in self._nodes and process is not None:
                    processes.setdefault(process, []).append(record.id)

        await self._retry_outages(read)
        return {number: services for services in processes.values() if len(services) > 1 for number in services}

    def _command_to(self, service_id: int) -> SharedCommand:
        """Return the command to the process of a service."""
        if service_id not in self._commands:
            services = self._neighbours.get(service_id, [service_id])
            command = SharedCommand(resumed=not self._resumed.isdisjoint(services))
            self._commands.update(dict.fromkeys(services, command))
        return self._commands[service_id]

    async def _retry_outages(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Do something in the database; wait for it if it is away.

        :raises DatabaseUnavailableError: it was away for OUTAGE_LIMIT.
        """
        began = self.clock.seconds()
        while True:
            try:
                return await attempt()
            except DatabaseUnavailableError:
                if self.clock.seconds() - began > OUTAGE_LIMIT:
                    raise
                await deferLater(self.clock, LONGEST_DELAY)

    # -- the whole -------------------------------------------------------------------------------

    async def _tell(self) -> None:
        """Note that this command is there."""
        with suppress(DatabaseUnavailableError):
            await self.store.note(self.operation.id, self._owner, [])

    def _break(self, failure: Failure) -> None:
        """End the operation with an error, unless it ends already."""
        if not failure.check(CancelledError):
            self._broken = self._broken or failure.value
            self._wake()

    def _wake(self) -> None:
        if not self._changed.called:
            self._changed.callback(None)

    def _cancel(self) -> None:
        for working in list(self._working.values()):
            working.cancel()

    async def _store_interruption(self) -> None:
        ending = self.store.end(self.operation.id, self._owner, "halted", "interrupted")
        with suppress(NovasvcError, CancelledError, DeferredTimeoutError):
            await ending.addTimeout(_INTERRUPTED_TIMEOUT, self.clock)


def _change(node: OperationNode) -> NodeChange:
    return NodeChange(service_id=node.service_id, state=node.state, detail=node.detail, incarnation=node.incarnation)
