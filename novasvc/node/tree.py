"""A service tree that waits: for each part on the way up, and for each on the way down."""

from collections.abc import Iterable
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger, LogLevel
from zope.interface import implementer

from novasvc.errors import describe
from novasvc.interfaces import IReplaceable, IStartable
from novasvc.node.handover import hand_over
from novasvc.node.lifecycle import Lifecycle
from novasvc.reactor.abandon import abandon_on_cancel
from novasvc.workers.exit_status import hurry

_log = Logger()


@implementer(IStartable)
class ServiceTree(MultiService):
    """Start the parts in their order, each when the one before runs; stop them in reverse.

    Twisted's MultiService calls every startService at once and drops what it returns, and stops
    all children at the same time. Here a part that is :class:`~novasvc.interfaces.IStartable` is
    waited for; if its start fails, the parts before it are stopped and the tree has failed.
    Parts added to a running tree start at once, as in Twisted.

    :ivar leaving: the SystemExit with which a part ended when it was to stop, for who ends the process.
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
        self._up: list[IService] = []
        self._beside: list[IService] = []
        self._predecessors: list[IService] = []
        self._departures: dict[IService, Deferred[None]] = {}
        self._stops: dict[IService, Deferred[Any]] = {}
        self._abandoned = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled as its parts; a worker gets a tree that was never started."""
        return _make_again, (type(self), self._lifecycle.name), list(self)

    def __setstate__(self, parts: list[IService]) -> None:
        for part in parts:
            part.parent = None  # the tree itself, where they came with their state; they are not in it yet
            part.setServiceParent(self)

    @property
    def state(self) -> str:
        """The state's name: initial, starting, running, draining, stopped or failed."""
        return self._lifecycle.state

    def startService(self) -> None:
        """Begin to start the parts; :meth:`when_started` tells when they run."""
        self._lifecycle.start().addErrback(lambda _: None)  # The part that failed has said so.

    def stopService(self) -> Deferred[None]:
        """Stop the parts, the last one first.

        :return: Deferred[None], fired when all of them have stopped.
        """
        self._give_up_successors()
        return self._lifecycle.stop()

    def hand_over(self, parts: Iterable[IService]) -> None:
        """Have parts that are to take the place of these listen already, where these do; :meth:`restart` is next.

        :raises NovasvcError: an address cannot be had; nothing has changed then.
        """
        self._beside = hand_over([*self, *self._predecessors, *(self._successors or ())], parts)

    def restart(self, parts: Iterable[IService]) -> Deferred[None]:
        """Stop all parts, the last one first, and start others in their place; a stop meanwhile is the end of it.

        After :meth:`hand_over` a server serves until the one of its name runs. Nobody waits then until it has
        finished what it has begun, but who stops the tree. A restart that comes while another is under way takes its
        place: nobody waits for parts that do not start.

        :param parts: they may be the same.
        :return: Deferred[None], fired when every part runs; fails with the reason, with StateError if the tree neither
            starts nor runs, or was stopped meanwhile.
        """
        if self.can_restart:
            self._give_up_successors()
            self._successors = list(parts)
        return self._lifecycle.restart()

    def hurry(self) -> None:
        """Have all parts cut short what they do, and those that have left. It was told to stop before.

        None waits for another any more: those whose turn to stop has not come are told to stop now.
        """
        if self.state == "draining" and not self._lifecycle.renewing:
            for part in reversed(self._started):
                self._begin_stop(part)
        for part in [*self, *self._predecessors, *self._departures]:
            hurry(part)

    def abandon(self) -> None:
        """Wait no longer for any part to stop. It was told to stop, and to hurry, before.

        Parts that have not been told to stop are told, and not waited for.
        """
        self._abandoned = True
        for stop in list(self._stops.values()):
            stop.cancel()

    @property
    def can_restart(self) -> bool:
        """Whether a restart is possible: the tree starts, runs, or is on its way through a restart."""
        return self.state in {"starting", "running"} or self._lifecycle.renewing

    def when_started(self) -> Deferred[None]:
        """Wait until every part runs; see :class:`~novasvc.interfaces.IStartable`."""
        return self._lifecycle.when_started()

    def addService(self, service: IService) -> None:
        """Add a part; it starts now if the tree runs, in its turn if the tree is starting."""
        if self.state == "running":
            super().addService(service)
            self._started.append(service)
            self._up.append(service)
            return
        # MultiService would start it out of turn.
        running, self.running = self.running, 0
        super().addService(service)
        self.running = running

    def removeService(self, service: IService) -> Deferred[None]:
        """Take a part out, and stop it if it was started.

        :return: Deferred[None], fired when it has stopped.
        """
        # Twisted's would stop it once more if the tree runs.
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
            self._succeed(self._successors)
        # Parts may come and go meanwhile, so each turn looks for the first that is not started.
        while (part := next((part for part in self if part not in self._started), None)) is not None:
            self._started.append(part)
            try:
                part.startService()
            except Exception as error:
                # What starts in time tells itself why it failed; this is the only word of one that raises.
                _log.critical("{part} did not start: {why}", part=part, why=describe(error))
                _log.failure("where it was raised", level=LogLevel.debug)
                raise
            await self._see_started(part)
            self._up.append(part)
            self._dismiss(each for each in self._predecessors if each.name is not None and each.name == part.name)
        self._dismiss(self._predecessors)

    def _succeed(self, successors: list[IService]) -> None:
        """Let others be the parts; none of either runs, but predecessors."""
        self._successors = None
        for part in list(self):
            part.disownServiceParent()
        names = {part.name for part in successors}
        self._dismiss(part for part in self._predecessors if part.name not in names)
        for part in successors:
            part.setServiceParent(self)

    def _give_up_successors(self) -> None:
        """Let go of parts that were to take the place of these, and have not been started."""
        successors, self._successors = self._successors, None
        self._release(part for part in successors or () if part not in list(self))

    def _release(self, parts: Iterable[IService]) -> None:
        """Have parts that were not started let go of what they listen on all the same."""
        for part in parts:
            if IReplaceable.providedBy(part):
                self._depart(part)

    def _dismiss(self, predecessors: Iterable[IService]) -> None:
        """Have predecessors stop, and nobody wait for it."""
        for part in list(predecessors):
            self._predecessors.remove(part)
            self._depart(part)

    def _depart(self, part: IService) -> None:
        def forget(_: None) -> None:
            self._departures.pop(part, None)  # it may have gone twice

        departed = self._departures[part] = Deferred.fromCoroutine(self._stop(part))
        departed.addCallback(forget)

    async def _see_started(self, part: IService) -> None:
        try:
            await (part.when_started() if IStartable.providedBy(part) else succeed(None))
        except CancelledError:
            raise
        except Exception:
            if part in self._started:
                raise
            _log.info("{part} was removed before it had started", part=part)

    async def _end(self) -> None:
        stay = self._successors or ()
        self._release(part for part in self if part not in self._started and part not in stay)
        for again in [each for each in self._predecessors if each in stay]:
            self._predecessors.remove(again)
            await self._stop(again)
        while (part := next((part for part in reversed(self._started) if not self._stays(part)), None)) is not None:
            self._started.remove(part)
            self._stopping = part
            await self._stop(part)
            self._stopping = None
            removals, self._removals = self._removals, []
            for removal in removals:
                removal.callback(None)
        self._predecessors += self._started
        self._started, self._up = [], []
        if not self._lifecycle.renewing:
            self._dismiss(self._predecessors)
            await gatherResults(list(self._departures.values()))

    def _stays(self, part: IService) -> bool:
        """Whether a part serves on in a restart, until another takes its place."""
        if not self._lifecycle.renewing or part in (self._successors or ()):
            return False
        return part in self._beside and part in self._up

    async def _stop(self, part: IService) -> None:
        stop = self._begin_stop(part)
        if self._abandoned:
            stop.cancel()
        try:
            await stop
        except CancelledError:
            _log.error("{part} did not stop in time; no longer waiting for it", part=part)
        except SystemExit as error:
            _log.warn("{part} wants the process to end with {error!r}: when all have stopped", part=part, error=error)
            self.leaving = self.leaving or error
        except Exception:  # noqa: BLE001 - the others are stopped whatever this one does
            _log.failure("{part} did not stop cleanly; the others are stopped all the same", part=part)
        finally:
            self._stops.pop(part, None)

    def _begin_stop(self, part: IService) -> Deferred[Any]:
        """Tell a part to stop, once; :meth:`_stop` waits for it."""
        if part not in self._stops:
            self._stops[part] = abandon_on_cancel(maybeDeferred(part.stopService))
        return self._stops[part]

    def _entered(self, state: str) -> None:
        self.running = int(state in {"starting", "running"})
        _log.debug("{tree}: {state}", tree=self._lifecycle.name, state=state)


def _make_again(kind: type[ServiceTree], name: str) -> ServiceTree:
    return kind(name)
