"""The supervisor's side of one worker process: fork, messages, queries, exit."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from novasvc.telemetry.flight import Event
from novasvc.workers.diagnostics import DUMP, DiagnosticsFile
from novasvc.workers.exit_status import Exit
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.pipe import Pipe, PipeMessage, adopt
from novasvc.workers.procfs import private_memory, zombie_status

_REAP_TIMEOUT = 1.0
"""Seconds to wait for the exit report after the pipe has closed, or the reverse; usually both come together."""

_DONE_TIMEOUT = 60.0
"""The same for a worker that has reported that it is done: its threads and exit handlers may take long."""

_LOOK_INTERVAL = 0.02
_LOOKS = 50
"""Number of polls of the diagnostics file for stacks; _LOOK_INTERVAL is the seconds between two polls."""

_ANSWER_TIMEOUT = 1.0
"""Seconds for a worker to report its running calls."""


class ProcessListener(Protocol):
    """Receives the events of a process."""

    def forked(self) -> None:
        """Handle a successful fork."""

    def fork_failed(self, problem: str) -> None:
        """Handle a failed fork; no other event follows."""

    def received(self, message: PipeMessage) -> None:
        """Handle a message; see :mod:`novasvc.workers.worker`."""

    def ended(self, how: Exit) -> None:
        """Handle the exit; no other event follows."""


class WorkerProcess:
    """A worker process, from the fork request to its exit.

    :param parameters: see :func:`novasvc.workers.worker.run`.
    :param sockets: listening sockets of its server.
    :ivar finished: its server has stopped; only threads and exit handlers remain.
    :raises OSError: out of file descriptors.
    """

    def __init__(
        self,
        forkserver: ForkserverClient,
        reactor: Any,
        parameters: Mapping[str, Any],
        sockets: Sequence[socket.socket],
        listener: ProcessListener,
    ) -> None:
        self.pid: int | None = None
        self.finished = False
        self._forkserver = forkserver
        self._reactor = reactor
        self._listener = listener
        self._over = self._closed = False
        self._connected = True
        self._reap_timeout = _REAP_TIMEOUT
        self._early: list[PipeMessage] = []
        self._deadline = 0.0
        self._exit: Exit | None = None
        self._timer: IDelayedCall | None = None
        self._keys = count()
        self._questions: dict[int, Deferred[Any]] = {}
        with contextlib.ExitStack() as undo:
            self.diagnostics = DiagnosticsFile()
            undo.callback(self.diagnostics.close)
            ours, theirs = socket.socketpair()
            with ours, theirs:  # both are duplicated
                self._pipe = adopt(reactor, ours, Pipe(self._received, self._lost))
                undo.callback(self._pipe.close)
                descriptors = [theirs.fileno(), self.diagnostics.descriptor, *(shared.fileno() for shared in sockets)]
                answer = forkserver.fork(parameters, descriptors, self._reaped)
            undo.pop_all()
        answer.addCallbacks(self._forked, self._fork_failed)

    @property
    def stalled(self) -> float:
        """Seconds since its last heartbeat; 0 before the first one."""
        # A finished worker may wait for threads without a reactor; _DONE_TIMEOUT limits that.
        beaten = 0.0 if self._closed or self.finished else self.diagnostics.recorder.last_beat
        return time.monotonic() - beaten if beaten else 0.0

    @property
    def memory(self) -> int | None:
        """Private memory in bytes; None if the process is gone."""
        return None if self.pid is None else private_memory(self.pid)

    @property
    def stacks(self) -> str:
        """The stacks that faulthandler wrote; "" after the exit was handled."""
        return "" if self._closed else self.diagnostics.stacks

    @property
    def events(self) -> list[Event]:
        """Its flight recorder events; empty after the exit was handled."""
        return self.last_events()

    def last_events(self, most: int = sys.maxsize) -> list[Event]:
        """Return the last events, at most ``most``."""
        return [] if self._closed else self.diagnostics.recorder.events(most)

    def signal(self, number: int) -> None:
        """Send a signal; before the fork is confirmed, any signal cancels it."""
        if self._over:
            return
        if self.pid is None:
            self._abandon()
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            if self._connected and not self._forkserver.reports(self.pid):
                # A grandchild holds the pipe open and the forkserver is gone: only ESRCH tells that it has exited.
                self._reaped(None)

    def hurry(self, seconds: float) -> None:
        """Tell it to cancel its work and exit.

        :param seconds: until it kills itself.
        """
        if not self._over:
            self._pipe.send({"end": "at once", "seconds": seconds})

    def answer(self, key: int, answer: str) -> None:
        """Answer a query of the worker; does nothing after its exit."""
        if not self._over:
            self._pipe.send({"answer": key, "said": answer})

    def calls(self) -> Deferred[list[dict[str, Any]] | None]:
        """Query the running calls; see :meth:`ask`."""
        return self.ask("calls", _ANSWER_TIMEOUT)

    def ask(self, what: str, patience: float) -> Deferred[Any]:
        """Query the worker.

        :param what: "calls", "figures", "health", "operations"; see :meth:`novasvc.workers.worker.Worker.receive`.
        :param patience: seconds to wait.
        :return: Deferred of the answer, JSON; None if it does not answer in time.
        """
        if self._over:
            return succeed(None)
        key = next(self._keys)
        answer: Deferred[Any] = Deferred()
        self._questions[key] = answer
        self._pipe.send({"ask": key, "what": what})

        def unanswered(_: object, __: float) -> None:
            self._questions.pop(key, None)

        return answer.addTimeout(patience, self._reactor, unanswered)

    async def dump(self) -> str:
        """Make faulthandler write the stacks of all threads, and return them; "" if there is no process."""
        if self._over or self.pid is None:
            return ""
        self.diagnostics.clear_stacks()
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
        """Give up the fork. A process that is forked all the same exits, because its pipe is closed."""
        self._over = True
        self._reactor.callLater(0, self._listener.fork_failed, "stopped before it was forked")
        self._close()

    def _forked(self, pid: int) -> None:
        if self._over:
            return
        self.pid = pid
        self._listener.forked()
        early, self._early = self._early, []
        for message in early:
            self._received(message)
        if not self._connected:
            self._lost()

    def _fork_failed(self, failure: Failure) -> None:
        if self._over:
            return
        self._over = True
        self._close()
        self._listener.fork_failed(str(failure.value))

    def _received(self, message: PipeMessage) -> None:
        if self.pid is None:
            # Its first message can overtake the forkserver's report of the fork (seen once in 800).
            self._early.append(message)
            return
        if message["is"] == "asked":
            question = self._questions.pop(message["key"], None)
            if question is not None:
                question.callback(message["calls"] if "calls" in message else message["answer"])
        elif message["is"] == "done":
            self._reap_timeout = _DONE_TIMEOUT
            self.finished = True
        elif not self._over:
            self._listener.received(message)

    # An exit has two signs: the pipe closes, behind the last messages; and the forkserver reports the wait status.
    # They come in any order, and either may be missing: a grandchild can hold the pipe open, and a forkserver can
    # be killed or stopped. Hence the timer after the first sign.

    def _lost(self) -> None:
        self._connected = False
        if self._exit is not None:
            self._finish()
        elif self.pid is not None:
            self._deadline = self._reactor.seconds() + self._reap_timeout
            self._wait(self._unreported, _REAP_TIMEOUT if self._forkserver.reports(self.pid) else 0)

    def _reaped(self, status: int | None) -> None:
        self._exit = Exit(status)
        if self._connected:
            self._wait(self._finish, _REAP_TIMEOUT)
        else:
            self._finish()

    def _wait(self, then: Callable[[], None], seconds: float) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, then)

    def _unreported(self) -> None:
        status = None
        if self.pid is not None and self._forkserver.reports(self.pid):
            status = zombie_status(self.pid)
            if status is None and self._reactor.seconds() < self._deadline:
                self._timer = None
                self._wait(self._unreported, _REAP_TIMEOUT)
                return
            if status is None:
                self.signal(signal.SIGKILL)  # it may still run, and its slot is about to be reused
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
        self._pipe.close()
        self.diagnostics.close()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.callback(None)


Launch = Callable[[ProcessListener], WorkerProcess]
"""Starts a process whose events go to a listener."""
