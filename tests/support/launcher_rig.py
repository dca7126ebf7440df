"""A reactor whose turns a test takes, and services that end when a test says so."""

import signal
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ReactorNotRestartable, ReactorNotRunning
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from novasvc.interfaces import IStartable
from novasvc.run.forced_exit import cancel_forced_exit

TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


class HandReactor(Clock):
    """Runs, takes signals and shuts down as Twisted's reactors do, one turn after the other.

    :ivar story: what happens while :meth:`run` runs, one call a turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running = False
        self.story: deque[Callable[[], object]] = deque()
        self._hooks: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._queued: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._triggers: list[Callable[[], Any]] = []
        self._ran = self._stopping = False
        self._down: Deferred[Any] | None = None

    @property
    def stopped(self) -> bool:
        """Whether it has shut down, and waits for nobody."""
        return self._down is not None and self._down.called

    def callWhenRunning(self, function: Callable[..., object], *args: Any) -> None:
        if self.running:
            function(*args)
        else:
            self._hooks.append((function, args))

    def callFromThread(self, function: Callable[..., object], *args: Any) -> None:
        self._queued.append((function, args))

    def addSystemEventTrigger(self, phase: str, event: str, function: Callable[[], Any]) -> Callable[[], Any]:
        assert (phase, event) == ("before", "shutdown")
        self._triggers.append(function)
        return function

    def removeSystemEventTrigger(self, trigger: Callable[[], Any]) -> None:
        self._triggers.remove(trigger)

    def stop(self) -> None:
        if self._stopping:
            raise ReactorNotRunning
        self._stopping = True

    def begin(self) -> None:
        """Begin to run, with handlers of SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self.callFromThread(self.stop))
        self.running = True
        hooks, self._hooks = self._hooks, []
        for function, args in hooks:
            function(*args)

    def turn(self) -> None:
        """Do what is queued, then what is due, then shut down if that is to be."""
        for _ in range(len(self._queued)):
            function, args = self._queued.popleft()
            function(*args)
        self.advance(0)
        if self._stopping and self._down is None:
            triggers, self._triggers = self._triggers, []
            self._down = DeferredList([maybeDeferred(trigger) for trigger in triggers])

    def run(self) -> None:
        """Live through the story, until stopped."""
        if self._ran:
            raise ReactorNotRestartable
        self._ran = True
        self.begin()
        while not self.stopped:
            if (not self._queued and not self._stopping) or self._down is not None:
                self.story.popleft()()  # an IndexError is a test that has forgotten to end
            self.turn()
        self.running = False


@implementer(IStartable)
class Part(Service):
    """Starts and stops when the test says so, and writes that down.

    :param log: "start NAME", "stop NAME", "hurry NAME".
    :param slow: of "start" and "stop", what takes time; the others are done at once.
    """

    def __init__(self, name: str, log: list[str], *, slow: str = "") -> None:
        self.label = name
        self.log = log
        self.slow = slow
        self.started: Deferred[None] = Deferred()
        self.stopped: Deferred[None] = Deferred()

    def startService(self) -> None:
        super().startService()
        self.started, self.stopped = Deferred(), Deferred()
        self.log.append(f"start {self.label}")
        if "start" not in self.slow:
            self.started.callback(None)

    def when_started(self) -> Deferred[None]:
        return self.started

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.log.append(f"stop {self.label}")
        if "stop" not in self.slow and not self.stopped.called:
            self.stopped.callback(None)
        return self.stopped

    def hurry(self) -> None:
        self.log.append(f"hurry {self.label}")


class Ending(Service):
    """Says when it has ended, as Nova's servers do."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()
        self.starts = 0

    def startService(self) -> None:
        super().startService()
        self.starts += 1
        self.ended = Deferred()

    def stopService(self) -> None:
        super().stopService()
        if not self.ended.called:
            self.ended.callback(None)

    def wait(self) -> Deferred[None]:
        return self.ended


class SignalsTestCase(SynchronousTestCase):
    """Has the process's signals as they were at its end, and hears what is logged."""

    def setUp(self) -> None:
        for number in TAKEN:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.addCleanup(cancel_forced_exit)
        self.reactor = HandReactor()
        self.log: list[str] = []
        self.told: list[str] = []
        globalLogPublisher.addObserver(self._hear)
        self.addCleanup(globalLogPublisher.removeObserver, self._hear)

    def _hear(self, event: LogEvent) -> None:
        self.told.append(formatEvent(event))

    def send(self, number: signal.Signals) -> None:
        """Send this process a signal, and let the reactor take as many turns as it needs to get over it."""
        signal.raise_signal(number)
        for _ in range(4):
            self.reactor.turn()
