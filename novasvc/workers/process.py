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
"""Seconds between the close of the pipe and the exit report, whichever comes first; usually they come together."""

_DONE_TIMEOUT = 60.0
"""Seconds from the close of the pipe to the exit of a worker whose server has stopped: its threads may still run."""

_STACKS_POLL_INTERVAL = 0.02
"""Seconds between two polls of the diagnostics file for stacks."""

_STACKS_POLLS = 50
"""Maximum number of these polls."""

_ANSWER_TIMEOUT = 1.0
"""Seconds for a worker to report its running calls."""

# Note [The end of a worker process]
#
# An exit has two signs: the pipe closes, after the last messages; and the forkserver reports the wait status. They come
# in any order, and either may be missing: a grandchild can hold the pipe open, and a forkserver can be killed or
# stopped. Hence the timer after the first sign. Four flags, which are never reset:
#
#   server_stopped   The worker has reported that it is done. Its threads and exit handlers may still run.
#   _pipe_open       False once the pipe has closed.
#   _exit_handled    The listener gets no more events: it was told of the exit, or there is no process to exit, because
#                    the fork failed or was cancelled.
#   _released        Our end of the pipe and the diagnostics file are closed.


class ProcessListener(Protocol):
    """Receives the events of a process."""

    def forked(self) -> None:
        """Handle a successful fork."""

    def fork_failed(self, problem: str) -> None:
        """Handle a failed fork; no other event follows."""

    def received(self, message: PipeMessage) -> None:
        """Handle a message; see :mod:`novasvc.workers.worker`."""

    def ended(self, exit_: Exit) -> None:
        """Handle the exit; no other event follows."""


class WorkerProcess:
    """A worker process, from the fork request to its exit.

    :param parameters: see :func:`novasvc.workers.worker.run`.
    :param sockets: listening sockets of its server.
    :ivar server_stopped: its server has stopped; see Note [The end of a worker process].
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
        self.server_stopped = False
        self._forkserver = forkserver
        self._reactor = reactor
        self._listener = listener
        self._exit_handled = self._released = False
        self._pipe_open = True
        self._reap_timeout = _REAP_TIMEOUT
        self._messages_before_fork: list[PipeMessage] = []
        self._report_deadline = 0.0
        self._exit: Exit | None = None
        self._timer: IDelayedCall | None = None
        self._query_keys = count()
        self._pending_queries: dict[int, Deferred[Any]] = {}
        with contextlib.ExitStack() as undo:
            self.diagnostics = DiagnosticsFile()
            undo.callback(self.diagnostics.close)
            ours, theirs = socket.socketpair()
            with ours, theirs:  # both are duplicated
                self._pipe = adopt(reactor, ours, Pipe(self._received, self._pipe_lost))
                undo.callback(self._pipe.close)
                descriptors = [theirs.fileno(), self.diagnostics.descriptor, *(shared.fileno() for shared in sockets)]
                self._fork = forkserver.fork(parameters, descriptors, self._reaped)
            undo.pop_all()
        self._fork.addCallbacks(self._forked, self._fork_failed)

    @property
    def heartbeat_age(self) -> float:
        """Seconds since its last heartbeat; 0 before the first one."""
        # Once its server has stopped, a worker may wait for threads without a reactor; _DONE_TIMEOUT limits that.
        last_beat = 0.0 if self._released or self.server_stopped else self.diagnostics.recorder.last_beat
        return time.monotonic() - last_beat if last_beat else 0.0

    @property
    def memory(self) -> int | None:
        """Private memory in bytes; None if the process is gone."""
        return None if self.pid is None else private_memory(self.pid)

    @property
    def stacks(self) -> str:
        """The stacks that faulthandler wrote; "" after the exit was handled."""
        return "" if self._released else self.diagnostics.stacks

    @property
    def events(self) -> list[Event]:
        """Its flight recorder events; empty after the exit was handled."""
        return self.last_events()

    def last_events(self, limit: int = sys.maxsize) -> list[Event]:
        """Return the last events, at most ``limit``."""
        return [] if self._released else self.diagnostics.recorder.events(limit)

    def signal(self, number: int) -> None:
        """Send a signal; before the fork is confirmed, any signal cancels it."""
        if self._exit_handled:
            return
        if self.pid is None:
            self._cancel_fork()
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            if self._pipe_open and not self._forkserver.reports(self.pid):
                # A grandchild holds the pipe open and the forkserver is gone: only ESRCH tells that it has exited.
                self._reaped(None)

    def interrupt(self, seconds: float) -> None:
        """Tell it to cancel its work and exit.

        :param seconds: until it kills itself.
        """
        if not self._exit_handled:
            self._pipe.send({"interrupt": seconds})

    def answer(self, key: int, answer: str) -> None:
        """Answer a query of the worker; does nothing after its exit."""
        if not self._exit_handled:
            self._pipe.send({"answer": key, "value": answer})

    def calls(self) -> Deferred[list[dict[str, Any]] | None]:
        """Query the running calls; see :meth:`query`."""
        return self.query("calls", _ANSWER_TIMEOUT)

    def query(self, name: str, timeout: float) -> Deferred[Any]:
        """Query the worker.

        :param name: "calls", "served", "metrics", "health", "describe", "history" or "operations"; see
            :meth:`novasvc.workers.worker.Worker.receive`.
        :param timeout: seconds to wait.
        :return: Deferred of the answer, JSON; None if it does not answer in time.
        """
        if self._exit_handled:
            return succeed(None)
        key = next(self._query_keys)
        answer: Deferred[Any] = Deferred()
        self._pending_queries[key] = answer
        self._pipe.send({"query": key, "name": name})

        def timed_out(_: object, __: float) -> None:
            self._pending_queries.pop(key, None)

        return answer.addTimeout(timeout, self._reactor, timed_out)

    async def dump(self) -> str:
        """Make faulthandler write the stacks of all threads, and return them; "" if there is no process."""
        if self._exit_handled or self.pid is None:
            return ""
        self.diagnostics.clear_stacks()
        self.signal(DUMP)
        before = ""
        for _ in range(_STACKS_POLLS):
            await deferLater(self._reactor, _STACKS_POLL_INTERVAL)
            stacks = self.stacks
            if self._released or (stacks and stacks == before):
                break
            before = stacks
        return before

    def _cancel_fork(self) -> None:
        """Cancel the fork. If the forkserver forks all the same, the process exits, because its pipe is closed."""
        self._exit_handled = True
        self._fork.cancel()
        self._reactor.callLater(0, self._listener.fork_failed, "stopped before it was forked")
        self._close()

    def _forked(self, pid: int) -> None:
        if self._exit_handled:
            return
        self.pid = pid
        self._listener.forked()
        messages, self._messages_before_fork = self._messages_before_fork, []
        for message in messages:
            self._received(message)
        if not self._pipe_open:
            self._pipe_lost()

    def _fork_failed(self, failure: Failure) -> None:
        if self._exit_handled:
            return
        self._exit_handled = True
        self._close()
        self._listener.fork_failed(str(failure.value))

    def _received(self, message: PipeMessage) -> None:
        if self.pid is None:
            # Its first message can overtake the forkserver's report of the fork (seen once in 800).
            self._messages_before_fork.append(message)
            return
        if message["is"] == "answer":
            query = self._pending_queries.pop(message["key"], None)
            if query is not None:
                query.callback(message["answer"])
        elif message["is"] == "done":
            self._reap_timeout = _DONE_TIMEOUT
            self.server_stopped = True
        elif not self._exit_handled:
            self._listener.received(message)

    # -- exit, see Note [The end of a worker process] ---------------------------------------------

    def _pipe_lost(self) -> None:
        self._pipe_open = False
        if self._exit is not None:
            self._finish()
        elif self.pid is not None:
            self._report_deadline = self._reactor.seconds() + self._reap_timeout
            self._arm_timer_once(self._report_timed_out, _REAP_TIMEOUT if self._forkserver.reports(self.pid) else 0)

    def _reaped(self, status: int | None) -> None:
        self._exit = Exit(status)
        if self._pipe_open:
            self._arm_timer_once(self._finish, _REAP_TIMEOUT)
        else:
            self._finish()

    def _arm_timer_once(self, then: Callable[[], None], seconds: float) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, self._due, then)

    def _due(self, then: Callable[[], None]) -> None:
        # If this process was suspended, the other sign may be here: the reactor calls what is due before it reads.
        self._timer = self._reactor.callLater(0, then)

    def _report_timed_out(self) -> None:
        status = None
        if self.pid is not None and self._forkserver.reports(self.pid):
            status = zombie_status(self.pid)
            if status is None and self._reactor.seconds() < self._report_deadline:
                self._timer = None
                self._arm_timer_once(self._report_timed_out, _REAP_TIMEOUT)
                return
            if status is None:
                self.signal(signal.SIGKILL)  # it may still run, and its slot is about to be reused
        self._exit = Exit(status)
        self._finish()

    def _finish(self) -> None:
        if self._exit_handled or self._exit is None:
            return
        self._exit_handled = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._listener.ended(self._exit)
        self._close()

    def _close(self) -> None:
        self._released = True
        self._pipe.close()
        self.diagnostics.close()
        queries, self._pending_queries = self._pending_queries, {}
        for query in queries.values():
            query.callback(None)


ProcessFactory = Callable[[ProcessListener], WorkerProcess]
"""Starts a worker process whose events go to a listener."""
