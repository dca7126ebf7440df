"""The supervisor's side of the forkserver: requests forks, and restarts the forkserver if it dies."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc._compat import interpreter_options
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.telemetry.logfiles import LogFile
from novasvc.workers.forkserver import CONTROL, LOCK
from novasvc.workers.pipe import Pipe, PipeMessage, adopt

_log = Logger()

_EXIT_TIMEOUT = 2.0
"""Seconds for a forkserver to exit."""

_ANSWER_TIMEOUT = 5.0
"""Seconds for a forkserver to answer once its imports are done; a fork takes about 10 ms."""


class ForkError(Exception):
    """A worker could not be forked."""


@attrs.define(eq=False)
class _PendingFork:
    """A request to fork that is not answered yet.

    :ivar descriptors: duplicates, kept open until the answer.
    """

    parameters: Mapping[str, Any]
    ended: Callable[[int | None], None]
    descriptors: list[int] = attrs.field(factory=list, init=False)
    answer: Deferred[int] = attrs.field(factory=Deferred, init=False)

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


@attrs.define(eq=False)
class ForkserverClient:
    """Starts a forkserver and requests forks from it; see Note [A forkserver].

    Nothing here blocks. A forkserver that dies or does not answer is replaced. Its workers keep running, but
    their exit status can no longer be known.

    :param reactor: provides IReactorProcess, IReactorSocket and IReactorTime.
    :param preload: modules to import before the first fork.
    :param main: the program's main module, if workers need what it defines; see
        :attr:`novasvc.workers.specification.PickledServer.main`.
    :param environment: for the forkserver and the workers.
    :param log_file: their standard output and standard error; None inherits ours.
    :param retry: backoff in seconds before a restart, after the nth early death in a row.
    :param import_timeout: seconds for the import of one module, and for the first answer.
    :param lock_fd: descriptor of the lock file for forkserver and workers to inherit, or None.
    """

    _reactor: Any
    _preload: Sequence[str]
    _main: tuple[str, str] | None
    _environment: Mapping[str, str]
    _log_file: LogFile | None = None
    _retry: RetryPolicy = attrs.field(factory=jittered_backoff)
    _import_timeout: float = 30.0
    _lock_fd: int | None = attrs.field(default=None, kw_only=True)
    _pipe: Pipe | None = attrs.field(default=None, init=False)
    _protocol: "_Reaper | None" = attrs.field(default=None, init=False)
    _last_pid: int | None = attrs.field(default=None, init=False)
    _process: Any = attrs.field(default=None, init=False)
    _keys: "count[int]" = attrs.field(factory=count, init=False)
    _pending_forks: dict[int, _PendingFork] = attrs.field(factory=dict, init=False)
    _exit_callbacks: dict[int, Callable[[int | None], None]] = attrs.field(factory=dict, init=False)
    _early_exits: int = attrs.field(default=0, init=False)
    _importing: str | None = attrs.field(default=None, init=False)
    _has_answered: bool = attrs.field(default=False, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    @property
    def pid(self) -> int | None:
        """The forkserver's process; None while there is none."""
        return None if self._process is None else self._process.pid

    def reports(self, pid: int) -> bool:
        """Return whether the exit of a worker will be reported: its forkserver lives."""
        return pid in self._exit_callbacks

    def start(self) -> None:
        """Start the forkserver, and send it the modules to import and the pending requests.

        :raises OSError: no process can be started; the pending requests wait for the next forkserver.
        """
        for key, request in list(self._pending_forks.items()):
            if request.answer.called:  # cancelled
                self._pending_forks.pop(key).close()
        code = f"import sys; sys.path[:] = {sys.path!r}; from novasvc.workers.forkserver import main; main()"
        out, err = (1, 2) if self._log_file is None else (self._log_file.fileno(),) * 2
        pipe = Pipe(self._receive, lambda: self._pipe_lost(pipe))
        kept = {} if self._lock_fd is None else {LOCK: self._lock_fd}
        ours, theirs = socket.socketpair()
        with ours, theirs, Path(os.devnull).open("rb") as nothing:
            protocol = _Reaper()
            adopt(self._reactor, ours, pipe)
            try:
                process = self._reactor.spawnProcess(
                    protocol,
                    sys.executable,
                    [sys.executable, *interpreter_options(), "-c", code],
                    env=dict(self._environment),
                    childFDs={0: nothing.fileno(), 1: out, 2: err, CONTROL: theirs.fileno(), **kept},
                )
            except OSError:
                pipe.close()
                raise
        self._pipe, self._protocol, self._process, self._last_pid = pipe, protocol, process, process.pid
        self._importing, self._has_answered = None, False
        pipe.send({"preload": [*self._preload], "path": sys.path, "argv": sys.argv, "main": self._main})
        for key in self._pending_forks:
            self._send_request(key)

    def send_log_file(self) -> None:
        """Send the forkserver the reopened log file, for its standard output and standard error."""
        if self._pipe is not None and self._log_file is not None:
            self._pipe.send({"log": 1}, (self._log_file.fileno(),))

    def fork(
        self, parameters: Mapping[str, Any], descriptors: Sequence[int], ended: Callable[[int | None], None]
    ) -> Deferred[int]:
        """Fork a worker.

        :param parameters: for :func:`novasvc.workers.worker.run`; JSON.
        :param descriptors: duplicated for the worker.
        :param ended: called once with the wait status when the worker has exited.
        :return: Deferred[int], the process id; fails with ForkError. A request that is cancelled before it was sent is
            not sent; a worker that is forked all the same exits when it finds its pipe closed.
        :raises OSError: out of file descriptors.
        """
        if self._closed:
            return fail(ForkError("the forkserver was shut down"))
        request = _PendingFork(parameters, ended)
        try:
            for descriptor in descriptors:
                request.descriptors.append(os.dup(descriptor))
        except OSError:
            request.close()
            raise
        key = next(self._keys)
        self._pending_forks[key] = request
        if self._pipe is not None:
            self._send_request(key)
        return request.answer

    def close(self) -> Deferred[None]:
        """Shut the forkserver down; it kills workers that have not exited.

        :return: Deferred[None], fired when it has exited; it is killed after two seconds.
        """
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        requests, self._pending_forks = self._pending_forks, {}
        for request in requests.values():
            request.close()
        if self._pipe is None or self._protocol is None:
            return succeed(None)
        self._pipe.send({"retire": True})
        self._pipe.close()
        if not self._exit_callbacks and self._process.pid is not None:
            self._process.signalProcess("KILL")  # no child, and perhaps a long import
        process = self._process

        def end(_: object, __: float) -> None:
            if process.pid is not None:
                process.signalProcess("KILL")  # probably stopped by SIGSTOP

        return self._protocol.ended.addTimeout(_EXIT_TIMEOUT, self._reactor, onTimeoutCancel=end)

    def _send_request(self, key: int) -> None:
        assert self._pipe is not None
        request = self._pending_forks[key]
        message = {"fork": key, "descriptors": len(request.descriptors), "parameters": dict(request.parameters)}
        self._pipe.send(message, tuple(request.descriptors))
        if self._timer is None:  # a later request must not extend the timeout
            self._restart_answer_timer()

    def _restart_answer_timer(self) -> None:
        """Restart the answer timeout, if an answer is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending_forks and self._pipe is not None:
            seconds = min(self._import_timeout, _ANSWER_TIMEOUT) if self._has_answered else self._import_timeout
            self._timer = self._reactor.callLater(seconds, self._answer_due, seconds)

    def _answer_due(self, seconds: float) -> None:
        # If this process was suspended, the answer may be here: the reactor calls what is due before it reads.
        self._timer = self._reactor.callLater(0, self._answer_timed_out, seconds)

    def _answer_timed_out(self, seconds: float) -> None:
        self._timer = None
        _log.error(
            "the forkserver (pid {pid}) did not answer for {s:g} s{doing}; replacing it",
            pid=self.pid,
            s=seconds,
            doing=self._import_note,
        )
        if self.pid is not None:  # it may just have exited
            os.kill(self.pid, signal.SIGKILL)

    @property
    def _import_note(self) -> str:
        return "" if self._importing is None else f" while importing {self._importing}"

    def _receive(self, message: PipeMessage) -> None:
        if "importing" in message:
            self._importing = message["importing"]
            self._restart_answer_timer()
            return
        self._early_exits, self._has_answered = 0, True
        if "ended" in message:
            ended = self._exit_callbacks.pop(message["ended"], None)
            if ended is not None:
                ended(message["status"])
            return
        request = self._pending_forks.pop(message["forked"] if "forked" in message else message["failed"])
        request.close()
        self._restart_answer_timer()
        if "forked" in message:
            self._exit_callbacks[message["pid"]] = request.ended
            request.answer.callback(message["pid"])
        else:
            request.answer.errback(ForkError(message["problem"]))

    def _pipe_lost(self, pipe: Pipe) -> None:
        if pipe is not self._pipe:
            return
        # The process object has no pid any more, if it was reaped first.
        pid, self._pipe, self._process = self._last_pid, None, None
        # Its workers live on; their exits are seen by their own pipes.
        self._exit_callbacks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # A worker may have been forked all the same; it exits when it finds its pipe closed.
        requests, self._pending_forks = self._pending_forks, {}
        for request in requests.values():
            request.close()
            request.answer.errback(ForkError(f"the forkserver (pid {pid}) died{self._import_note}"))
        if self._closed:
            return
        self._early_exits += 1
        pause = 0.0 if self._early_exits == 1 else self._retry(self._early_exits - 1)
        when = f"in {pause:.1f} s" if pause else "now"
        _log.error(
            "the forkserver (pid {pid}) died{doing}; starting another {when}",
            pid=pid,
            doing=self._import_note,
            when=when,
        )
        self._timer = self._reactor.callLater(pause, self._start_again)

    def _start_again(self) -> None:
        self._timer = None
        try:
            self.start()
        except OSError as error:
            self._early_exits += 1
            pause = self._retry(self._early_exits)
            _log.error("cannot start a forkserver: {error}; retrying in {s:.1f} s", error=error, s=pause)
            self._timer = self._reactor.callLater(pause, self._start_again)


class _Reaper(ProcessProtocol):
    """Reaps the forkserver; its death is noticed by the close of its pipe."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def processEnded(self, reason: Failure) -> None:
        """Fire the Deferred when the process has been reaped."""
        self.ended.callback(None)
