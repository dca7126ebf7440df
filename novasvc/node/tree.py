"""A service tree that waits for each part to start, and for each to stop."""

from collections.abc import Iterable
from typing import Any

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger, LogLevel
from zope.interface import implementer

from novasvc.errors import describe
from novasvc.interfaces import (
    IExitRequester,
    IInterruptible,
    IReplaceable,
    ISpecification,
    ISpecified,
    IStartable,
)
from novasvc.node.handover import hand_over_sockets
from novasvc.node.lifecycle import Lifecycle
from novasvc.reactor.abandon import abandon_on_cancel
from novasvc.workers.exit_status import interrupt

_log = Logger()


@implementer(IStartable, IExitRequester, IInterruptible, ISpecified)
class ServiceTree(MultiService):
    """Start the parts in order, each when the previous one runs; stop them in reverse.

    Twisted's MultiService calls every startService at once, ignores the results, and stops all
    children at the same time. This tree waits for each part that is
    :class:`~novasvc.interfaces.IStartable`. If a start fails, the parts before it are stopped and the
    tree has failed. Parts added to a running tree start at once, as in Twisted.

    :ivar leaving: the SystemExit that a part raised during its stop, for the code that ends the process.
    Source: twisted.application.service.IServiceCollection.
    """

    leaving: SystemExit | None = None

    def __init__(self, name: str = "tree") -> None:
        super().__init__()
        self._lifecycle = Lifecycle(name, self._begin, self._end, self._entered)
        self._started: list[IService] = []
        self._stopping: IService | None = None
        self._removals: list[Deferred[None]] = []
        self._successors: list[IService] | None = None
        self._running_parts: list[IService] = []
        self._handed_over: list[IService] = []
        self._predecessors: list[IService] = []
        self._background_stops: dict[IService, Deferred[None]] = {}
        self._stops: dict[IService, Deferred[Any]] = {}
        self._abandoned = False

    def specification(self) -> "TreeSpecification":
        """Return what a worker makes the tree of; see :class:`~novasvc.interfaces.ISpecified`."""
        return TreeSpecification(type(self), self._lifecycle.name, tuple(self))

    @property
    def state(self) -> str:
        """The state's name: initial, starting, running, draining, stopped or failed."""
        return self._lifecycle.state

    def startService(self) -> None:
        """Begin to start the parts; :meth:`when_started` tells when they run."""
        self._lifecycle.start().addErrback(lambda _: None)  # the part that failed has logged it

    def stopService(self) -> Deferred[None]:
        """Stop the parts in reverse order.

        :return: Deferred[None], fired when all of them have stopped.
        """
        self._give_up_successors()
        return self._lifecycle.stop()

    def hand_over_sockets(self, parts: Iterable[IService]) -> None:
        """Open the sockets of replacement parts, shared with the current ones; call :meth:`restart` next.

        :raises NovasvcError: an address cannot be bound; nothing has changed then.
        """
        self._handed_over = hand_over_sockets([*self, *self._predecessors, *(self._successors or ())], parts)

    def restart(self, parts: Iterable[IService]) -> Deferred[None]:
        """Stop all parts in reverse order, and start others in their place. A stop meanwhile cancels the restart.

        After :meth:`hand_over_sockets`, a server serves until its replacement of the same name runs; then it drains in
        the background, and only a stop of the tree waits for it. A restart during a restart supersedes it: parts that
        were to start do not.

        :param parts: may be the same parts.
        :return: Deferred[None], fired when every part runs. Fails with the reason of a failed start, or with StateError
            if the tree is not starting or running, or was stopped meanwhile.
        """
        if self.can_restart:
            self._give_up_successors()
            self._successors = list(parts)
        return self._lifecycle.restart()

    def hurry(self) -> None:
        """Make all parts cut short what they do, stopped ones included. Called when the tree was told to stop.

        Parts do not wait for one another any more: those that are not stopping yet are told to stop now.
        """
        if self.state == "draining" and not self._lifecycle.restarting:
            for part in reversed(self._started):
                self._begin_stop(part)
        for part in [*self, *self._predecessors, *self._background_stops]:
            interrupt(part)

    def abandon(self) -> None:
        """Stop waiting for parts to stop. Called when the tree was told to stop, and was interrupted.

        Parts that have not been told to stop are told, and not waited for.
        """
        self._abandoned = True
        for stop in list(self._stops.values()):
            stop.cancel()

    @property
    def can_restart(self) -> bool:
        """Whether a restart is possible: the tree is starting, running or restarting."""
        return self.state in {"starting", "running"} or self._lifecycle.restarting

    def when_started(self) -> Deferred[None]:
        """Wait until every part runs; see :class:`~novasvc.interfaces.IStartable`."""
        return self._lifecycle.when_started()

    def addService(self, service: IService) -> None:
        """Add a part. It starts now if the tree runs, or in order if the tree is starting."""
        if self.state == "running":
            super().addService(service)
            self._started.append(service)
            self._running_parts.append(service)
            return
        # MultiService would start it now, out of order.
        running, self.running = self.running, 0
        super().addService(service)
        self.running = running

    def removeService(self, service: IService) -> Deferred[None]:
        """Remove a part, and stop it if it was started.

        :return: Deferred[None], fired when it has stopped.
        """
        # MultiService would stop it a second time if the tree runs.
        running, self.running = self.running, 0
        super().removeService(service)
        self.running = running
        if service is self._stopping:
            removal: Deferred[None] = Deferred()
            self._removals.append(removal)
            return removal
        if service not in self._started:
            return succeed(None)
        self._started.remove(service)
        return maybeDeferred(service.stopService)

    async def _begin(self) -> None:
        self._abandoned = False
        if self._successors is not None:
            self._replace_parts(self._successors)
        # Parts may be added and removed meanwhile, so each round looks for the first that is not started.
        while (part := next((part for part in self if part not in self._started), None)) is not None:
            self._started.append(part)
            try:
                part.startService()
            except Exception as error:
                # An IStartable part logs its own failure; of a part that raises, this is the only log line.
                _log.critical("{part} did not start: {why}", part=part, why=describe(error))
                _log.failure("traceback of the failed start", level=LogLevel.debug)
                raise
            await self._wait_started(part)
            self._running_parts.append(part)
            self._stop_predecessors(
                each for each in self._predecessors if each.name is not None and each.name == part.name
            )
        self._stop_predecessors(self._predecessors)

    def _replace_parts(self, successors: list[IService]) -> None:
        """Replace the parts by others. None of either runs, except predecessors that still serve."""
        self._successors = None
        for part in list(self):
            part.disownServiceParent()
        names = {part.name for part in successors}
        self._stop_predecessors(part for part in self._predecessors if part.name not in names)
        for part in successors:
            part.setServiceParent(self)

    def _give_up_successors(self) -> None:
        """Release replacement parts that were not started."""
        successors, self._successors = self._successors, None
        self._release_sockets(part for part in successors or () if part not in list(self))

    def _release_sockets(self, parts: Iterable[IService]) -> None:
        """Close the sockets of parts that were not started."""
        for part in parts:
            if IReplaceable.providedBy(part):
                self._stop_in_background(part)

    def _stop_predecessors(self, predecessors: Iterable[IService]) -> None:
        """Stop superseded services in the background."""
        for part in list(predecessors):
            self._predecessors.remove(part)
            self._stop_in_background(part)

    def _stop_in_background(self, part: IService) -> None:
        def forget(_: None) -> None:
            self._background_stops.pop(part, None)  # a part may depart twice

        stopped = self._background_stops[part] = Deferred.fromCoroutine(self._stop(part))
        stopped.addCallback(forget)

    async def _wait_started(self, part: IService) -> None:
        try:
            await (part.when_started() if IStartable.providedBy(part) else succeed(None))
        except CancelledError:
            raise
        except Exception:
            if part in self._started:
                raise
            _log.info("{part} was removed while it was starting", part=part)

    async def _end(self) -> None:
        stay = self._successors or ()
        self._release_sockets(part for part in self if part not in self._started and part not in stay)
        for again in [each for each in self._predecessors if each in stay]:
            self._predecessors.remove(again)
            await self._stop(again)
        while (
            part := next((part for part in reversed(self._started) if not self._keeps_serving(part)), None)
        ) is not None:
            self._started.remove(part)
            self._stopping = part
            await self._stop(part)
            self._stopping = None
            removals, self._removals = self._removals, []
            for removal in removals:
                removal.callback(None)
        self._predecessors += self._started
        self._started, self._running_parts = [], []
        if not self._lifecycle.restarting:
            self._stop_predecessors(self._predecessors)
            await gatherResults(list(self._background_stops.values()))

    def _keeps_serving(self, part: IService) -> bool:
        """Return whether a part serves during a restart until its replacement runs."""
        if not self._lifecycle.restarting or part in (self._successors or ()):
            return False
        return part in self._handed_over and part in self._running_parts

    async def _stop(self, part: IService) -> None:
        stop = self._begin_stop(part)
        if self._abandoned:
            stop.cancel()
        try:
            await stop
        except CancelledError:
            _log.error("{part} did not stop in time; no longer waiting for it", part=part)
        except SystemExit as error:
            _log.warn(
                "{part} raised {error!r}: the process will end with it once all parts have stopped",
                part=part,
                error=error,
            )
            self.leaving = self.leaving or error
        except Exception:  # noqa: BLE001 - the other parts are still stopped
            _log.failure("{part} did not stop cleanly; the other parts are still stopped", part=part)
        finally:
            self._stops.pop(part, None)

    def _begin_stop(self, part: IService) -> Deferred[Any]:
        """Tell a part to stop, once. :meth:`_stop` waits for the result."""
        if part not in self._stops:
            self._stops[part] = abandon_on_cancel(maybeDeferred(part.stopService))
        return self._stops[part]

    def _entered(self, state: str) -> None:
        self.running = int(state in {"starting", "running"})
        _log.debug("{tree}: {state}", tree=self._lifecycle.name, state=state)


@implementer(ISpecification)
@attrs.frozen
class TreeSpecification:
    """A :class:`ServiceTree` as its parts.

    :param kind: the class.
    :param parts: as they come out of a pickle: made, and not started.
    """

    kind: type[ServiceTree]
    name: str
    parts: tuple[IService, ...]

    def build(self, reactor: Any) -> ServiceTree:
        """Make the tree, and add its parts."""
        tree = self.kind(self.name)
        for part in self.parts:
            part.setServiceParent(tree)
        return tree
