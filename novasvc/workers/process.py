"""One worker process as its supervisor sees it: how it is born, what it says, how it ends."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from novasvc.telemetry.flight import Event
from novasvc.workers.forkserver_client import Forks
from novasvc.workers.last_record import DUMP, Record
from novasvc.workers.pipe import Channel, Message, adopt

_PATIENCE = 1.0
"""Seconds between the end of a worker's channel and the news of its own end; mostly they come together."""

_FAREWELL = 60.0
"""Seconds between the two of a worker that has said that it ends: its threads and exit handlers may take their time."""

_LOOK_INTERVAL = 0.02
_LOOKS = 50
"""Times that a record is looked at for stacks, and seconds between two of them."""

_ANSWER_PATIENCE = 1.0
"""Seconds that a worker has to say which calls are under way."""


@attrs.frozen
class Exit:
    """How a process ended.

    :param status: as waitpid gives it; None if nobody knows.
    """

    status: int | None

    @property
    def signal(self) -> int | None:
        """The signal that ended it; None if none did."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None

    @property
    def code(self) -> int | None:
        """Its exit status; None if it has none."""
        return os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None

    def __str__(self) -> str:
        if self.status is None:
            return "ended, how is not known"
        if self.code is not None:
            return f"exited with status {self.code}"
        number = self.signal or 0
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
        return f"was killed by signal {number}"


class ProcessListener(Protocol):
    """Who is told of a process."""

    def born(self) -> None:
        """See that it exists."""

    def refused(self, problem: str) -> None:
        """See that it could not be forked."""

    def said(self, message: Message) -> None:
        """Take what it said; see :mod:`novasvc.workers.worker`."""

    def ended(self, how: Exit) -> None:
        """See that it has ended. Nothing comes after that."""


class WorkerProcess:
    """A process, from the request to fork it to its end.

    :param order: what it is to do; see :func:`novasvc.workers.worker.run`.
    :param sockets: listening ones, for its server.
    :ivar finished: its server has stopped; what is left is the end of its threads, and of the process.
    :raises OSError: there are no descriptors left.
    """

    def __init__(
        self,
        forks: Forks,
        reactor: Any,
        order: Mapping[str, Any],
        sockets: Sequence[socket.socket],
        listener: ProcessListener,
    ) -> None:
        self.pid: int | None = None
        self.finished = False
        self._forks = forks
        self._reactor = reactor
        self._listener = listener
        self._over = self._closed = False
        self._connected = True
        self._patience = _PATIENCE
        self._early: list[Message] = []
        self._deadline = 0.0
        self._exit: Exit | None = None
        self._timer: IDelayedCall | None = None
        self._keys = count()
        self._questions: dict[int, Deferred[Any]] = {}
        with contextlib.ExitStack() as undo:
            self.record = Record()
            undo.callback(self.record.close)
            ours, theirs = socket.socketpair()
            with ours, theirs:  # there are copies
                self._channel = adopt(reactor, ours, Channel(self._said, self._lost))
                undo.callback(self._channel.close)
                descriptors = [theirs.fileno(), self.record.descriptor, *(shared.fileno() for shared in sockets)]
                answer = forks.fork(order, descriptors, self._reaped)
            undo.pop_all()
        answer.addCallbacks(self._born, self._refused)

    @property
    def silent(self) -> float:
        """Seconds since its reactor turned last; 0 before its first sign of life."""
        # One that is done may wait for its threads, without a reactor; its end has a deadline of its own.
        last_beat = 0.0 if self._closed or self.finished else self.record.recorder.last_beat
        return time.monotonic() - last_beat if last_beat else 0.0

    @property
    def memory(self) -> int | None:
        """Bytes that it shares with no other process; None if it is gone."""
        try:
            with open(f"/proc/{self.pid}/smaps_rollup", encoding="ascii") as figures:  # noqa: PTH123 - no file for a Path
                return sum(int(line.split()[1]) * 1024 for line in figures if line.startswith("Private_"))
        except OSError:
            return None

    @property
    def stacks(self) -> str:
        """What faulthandler wrote into its record; "" when that is gone."""
        return "" if self._closed else self.record.stacks

    @property
    def events(self) -> list[Event]:
        """What happened last in it; nothing when its record is gone."""
        return self.last_events()

    def last_events(self, most: int = sys.maxsize) -> list[Event]:
        """Return the last of them, at most so many."""
        return [] if self._closed else self.record.recorder.events(most)

    def signal(self, number: int) -> None:
        """Send it a signal; before it is born, every signal ends it."""
        if self._over:
            return
        if self.pid is None:
            self._abandon()
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            if self._connected and not self._forks.reports(self.pid):
                # Nobody else will tell: a process that it started holds its channel, and its forkserver is gone.
                self._reaped(None)

    def hurry(self, seconds: float) -> None:
        """Tell it to end at once.

        :param seconds: that it has for that.
        """
        if not self._over:
            self._channel.send({"end": "at once", "seconds": seconds})

    def answer(self, key: int, answer: str) -> None:
        """Answer a question of its own; nothing happens if it has ended."""
        if not self._over:
            self._channel.send({"answer": key, "said": answer})

    def calls(self) -> Deferred[list[dict[str, Any]] | None]:
        """Ask which calls are under way; see :meth:`ask`."""
        return self.ask("calls", _ANSWER_PATIENCE)

    def ask(self, what: str, patience: float) -> Deferred[Any]:
        """Ask the worker something.

        :param what: "calls", "figures", "health", "operations"; see :meth:`novasvc.workers.worker.Worker.receive`.
        :param patience: seconds to wait.
        :return: fires with JSON, or with None if it does not answer in time.
        """
        if self._over:
            return succeed(None)
        key = next(self._keys)
        answer: Deferred[Any] = Deferred()
        self._questions[key] = answer
        self._channel.send({"ask": key, "what": what})

        def unanswered(_: object, __: float) -> None:
            self._questions.pop(key, None)

        return answer.addTimeout(patience, self._reactor, unanswered)

    async def dump(self) -> str:
        """Have faulthandler write the stacks of all threads, and return them; "" if it does not run at all."""
        if self._over or self.pid is None:
            return ""
        self.record.forget_stacks()
        self.signal(DUMP)
        before = ""
        for _ in range(_LOOKS):
            await deferLater(self._reactor, _LOOK_INTERVAL)
            stacks = self.stacks
            if self._closed or (stacks and stacks == before):
                break
            before = stacks
        return before

    def _abandon(self) -> None:
        """Wait for it no more. If it is born all the same, it finds its channel closed, and ends."""
        self._over = True
        self._reactor.callLater(0, self._listener.refused, "it was to end before")
        self._close()

    def _born(self, pid: int) -> None:
        if self._over:
            return
        self.pid = pid
        self._listener.born()
        early, self._early = self._early, []
        for message in early:
            self._said(message)
        if not self._connected:
            self._lost()

    def _refused(self, failure: Failure) -> None:
        if self._over:
            return
        self._over = True
        self._close()
        self._listener.refused(str(failure.value))

    def _said(self, message: Message) -> None:
        if self.pid is None:
            # It may speak before its forkserver has told that it is born: seen once in 800 births.
            self._early.append(message)
            return
        if message["is"] == "asked":
            question = self._questions.pop(message["key"], None)
            if question is not None:
                question.callback(message["calls"] if "calls" in message else message["answer"])
        elif message["is"] == "done":
            self._patience = _FAREWELL
            self.finished = True
        elif not self._over:
            self._listener.said(message)

    # Its end is seen twice: by the end of its channel, behind its last words, and by what its
    # forkserver says of it. Either may come first, and either may fail to come: a process that it
    # started can hold the channel, and a forkserver can be killed or stopped.

    def _lost(self) -> None:
        self._connected = False
        if self._exit is not None:
            self._finish()
        elif self.pid is not None:
            self._deadline = self._reactor.seconds() + self._patience
            self._wait(self._unreported, _PATIENCE if self._forks.reports(self.pid) else 0)

    def _reaped(self, status: int | None) -> None:
        self._exit = Exit(status)
        if self._connected:
            self._wait(self._finish, _PATIENCE)
        else:
            self._finish()

    def _wait(self, then: Callable[[], None], seconds: float) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, then)

    def _unreported(self) -> None:
        status = None
        if self.pid is not None and self._forks.reports(self.pid):
            status = _status(self.pid)
            if status is None and self._reactor.seconds() < self._deadline:
                self._timer = None
                self._wait(self._unreported, _PATIENCE)
                return
            if status is None:
                self.signal(signal.SIGKILL)  # it may live, and nobody else has its number
        self._exit = Exit(status)
        self._finish()

    def _finish(self) -> None:
        if self._over or self._exit is None:
            return
        self._over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._listener.ended(self._exit)
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._channel.close()
        self.record.close()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.callback(None)


def _status(pid: int) -> int | None:
    """Return the wait status of a process that has ended and that its forkserver, stopped maybe, has not reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as figures:  # noqa: PTH123 - no file for a Path
            state, *_, status = figures.read().rpartition(")")[2].split()
    except OSError:
        return None
    return int(status) if state == "Z" else None


Launch = Callable[[ProcessListener], WorkerProcess]
"""Begins a process for a listener."""
