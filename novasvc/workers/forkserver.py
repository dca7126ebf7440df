"""The process that forks workers: single-threaded, without a reactor, with the workers' modules imported.

Started by :mod:`novasvc.workers.forkserver_client`, with one end of a socket pair as descriptor 3.
"""

# Note [A forkserver]
#
# A process with a running reactor must not fork: threads vanish, locks stay locked, and parent and child share
# the epoll descriptor. Executing each worker anew costs a second of CPU time and shares no memory. So there is an
# intermediate process: executed once, it imports what workers need, installs no reactor, starts no thread, and
# forks on request. Workers share its memory copy-on-write.
#
# The forkserver of multiprocessing was tried. Its client blocks until the fork is done, so a forkserver that is
# importing or stopped would block the supervisor's reactor. When it is killed, all its children seem to have
# exited. And it always runs the program's main module again, twistd's included. Here only a Deferred waits;
# workers survive their forkserver, because each has its own pipe to the supervisor; and the main module is run
# again only if the server uses what it defines.

import contextlib
import gc
import importlib
import importlib.abc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from novasvc.workers.exit_status import UNSUPERVISED_GRACE
from novasvc.workers.orphan import call_when_orphaned
from novasvc.workers.title import set_title

_MAIN = "__novasvc_main__"
"""__name__ of the main module when it is run again, so that code under __main__ does not run."""

CONTROL = 3
"""The descriptor of the socket pair."""

LOCK = 4
"""The descriptor of the supervisor's lock file, if there is one; held while any process has it open."""

_WARMUP = "novasvc.run.warmup"
"""Runs a node once before the first fork; see that module."""

PRELOAD = (
    "novasvc.service",
    _WARMUP,
    "novasvc.workers.worker",
    "novasvc.run.services",
    "novasvc.registry.sql.services",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "twisted.internet.default",
    "twisted.internet.epollreactor",
)
"""Modules that most workers import. Importing the reactors' modules installs no reactor."""

_ORPHAN_KILL_DELAY = 0.5
"""Seconds beyond an orphan's drain timeout after which it is killed."""

_RETIRED_GRACE = 1.0
"""Drain timeout instead, if a living supervisor shut this forkserver down: its workers should have exited."""

_REAP_INTERVAL = 0.05
"""Seconds between two checks for exited orphans."""

_BLOCKED = {
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGRTMIN,
    signal.SIGCHLD,
}
_IGNORED = _BLOCKED - {signal.SIGCHLD} | {signal.SIGINT}
"""Signals that may be sent to the whole process group; the supervisor handles them."""


class NoReactor(importlib.abc.MetaPathFinder):
    """Prevents the import that installs a reactor: all workers would share it.

    Modules that need the reactor are imported in the worker.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise ImportError for twisted.internet.reactor; ignore other modules."""
        if fullname == "twisted.internet.reactor":
            raise ImportError("a forkserver must not install a reactor")


@contextlib.contextmanager
def reactor_forbidden() -> Iterator[None]:
    """Prevent the installation of a reactor in this context."""
    finder = NoReactor()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def preload(modules: Iterable[str], begin: Callable[[str], object]) -> None:
    """Import modules. Errors are ignored: the worker imports the module again, and reports them.

    :param begin: called with each name before the import, which may hang or kill the process.
    """
    with reactor_forbidden():
        for module in modules:
            begin(module)
            with contextlib.suppress(Exception, SystemExit):
                importlib.import_module(module)


def run_main(kind: str, name: str) -> str | None:
    """Run a program's main module under another name, so that its classes can be unpickled.

    :param kind: "module" for one that was run by ``python -m``, else "path".
    :param name: of the module, or its path.
    :return: the problem; None on success.
    """
    module = types.ModuleType(_MAIN)
    sys.modules["__main__"] = sys.modules[_MAIN] = module
    run = runpy.run_module if kind == "module" else runpy.run_path
    try:
        with reactor_forbidden():
            module.__dict__.update(run(name, run_name=_MAIN))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code
        return f"the program's main module cannot be imported by workers: {type(error).__name__}: {error}"
    return None


class ForkServer:
    """Forks workers on request, and reports their exits.

    In: ``{"preload": [module], "path": sys.path, "argv": sys.argv, "main": [kind, name] or null}`` once, then
    ``{"fork": key, "descriptors": number, "parameters": ...}``, each with that many descriptors,
    ``{"log": 1}`` with the descriptor of the new log file, and ``{"retire": true}`` before a planned shutdown.
    Out: ``{"forked": key, "pid": pid}``, ``{"failed": key, "problem": text}``,
    ``{"ended": pid, "status": wait status}``, and first ``{"importing": module, path of the main one, or null}``
    for each.

    :param control: one end of the socket pair.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._unparsed = b""
        self._descriptors: deque[int] = deque()
        self._children: set[int] = set()
        self._grace = 0.0
        self._main_problem: str | None = None
        self._unstarted_records: Any = None
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Serve until the supervisor closes the pipe; return when all children have exited."""
        awake, wake = self._wakeup
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        call_when_orphaned(self._control.fileno(), self._exit_if_childless)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(awake, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in self._selector.select()}
            if awake in ready:
                os.read(awake, 4096)
                self._reap()
            if self._control in ready and not self._receive():
                break
        self._reap_orphans()

    def _receive(self) -> bool:
        """Read and handle messages; return False if the supervisor is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 64)
        except ConnectionError:
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # not for programs that a worker executes
        self._descriptors.extend(descriptors)
        self._unparsed += data
        *lines, self._unparsed = self._unparsed.split(b"\n")
        for line in lines:
            self._handle_message(json.loads(line))
        return bool(data)

    def _handle_message(self, message: dict[str, Any]) -> None:
        if "fork" in message:
            descriptors = [self._descriptors.popleft() for _ in range(message["descriptors"])]
            self._fork(message["fork"], message["parameters"], descriptors)
            return
        if "retire" in message:
            self._grace = _RETIRED_GRACE
            return
        if "log" in message:
            # The log was rotated: see novasvc.telemetry.logfiles. Workers follow the file themselves.
            descriptor = self._descriptors.popleft()
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            os.close(descriptor)
            return
        sys.path[:] = message["path"]
        sys.argv[:] = message["argv"]
        preload([*PRELOAD, *message["preload"]], self._report_import)
        if message["main"] is not None:
            self._report_import(message["main"][1])
            self._main_problem = run_main(*message["main"])
        self._report_import(None)
        self._observer = importlib.import_module("novasvc.workers.switchable_log").SwitchableObserver()
        # Made before the first fork, so that all workers share it: they find requests that a dead sibling never began.
        self._unstarted_records = importlib.import_module("novasvc.rpc.server.unstarted_record").SharedRecords()
        with reactor_forbidden(), contextlib.suppress(Exception):
            importlib.import_module(_WARMUP).warm_up()
        gc.collect()
        gc.freeze()

    def _fork(self, key: int, parameters: dict[str, Any], descriptors: Sequence[int]) -> None:
        page = self._unstarted_records.free_page(self._children)
        self._grace = max(self._grace, parameters["grace"] or UNSUPERVISED_GRACE)
        # Block signals until the child has its own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"failed": key, "problem": f"fork failed: {error.strerror}"})
        else:
            if pid == 0:
                self._run_worker(parameters, descriptors, page)
            self._children.add(pid)
            self._send({"forked": key, "pid": pid})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
        for descriptor in descriptors:
            os.close(descriptor)

    def _run_worker(self, parameters: dict[str, Any], descriptors: Sequence[int], page: int | None) -> NoReturn:
        """Become a worker; see :func:`novasvc.workers.worker.run`.

        :param page: of the shared unstarted records; None if it has no free page.
        """
        status = 2
        try:
            signal.set_wakeup_fd(-1)
            # SIGTERM kills until the drain handler is set.
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # The others are for the supervisor, or their handlers follow later. Not SIG_IGN: programs that a worker
            # executes would inherit it.
            for number in _IGNORED - {signal.SIGTERM}:
                signal.signal(number, lambda _number, _frame: None)
            self._close_descriptors()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
            from novasvc.workers.worker import run  # noqa: PLC0415 - preloaded by now

            unstarted_record = None if page is None else self._unstarted_records.join(page, os.getpid())
            status = run(self._observer, {**parameters, "problem": self._main_problem}, descriptors, unstarted_record)
        except BaseException:  # noqa: BLE001 - the child must never return into the forkserver's code
            traceback.print_exc(file=sys.__stderr__)
        finally:
            for stream in (sys.__stdout__, sys.__stderr__):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()  # type: ignore[union-attr]
            os._exit(status & 0xFF)

    def _close_descriptors(self) -> None:
        """Close the forkserver's own descriptors in a worker, and those queued for later workers."""
        # The supervisor detects a worker's exit by the close of its pipe: no sibling may keep a copy of it.
        self._selector.close()
        self._control.close()
        for descriptor in (*self._wakeup, *self._descriptors):
            os.close(descriptor)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                self._children.discard(pid)
                self._send({"ended": pid, "status": status})

    def _report_import(self, what: str | None) -> None:
        self._send({"importing": what})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone; the next read notices
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _exit_if_childless(self) -> None:
        """Exit without children when the supervisor is gone, even in the middle of an import."""
        if not self._children:
            os._exit(1)

    def _reap_orphans(self) -> None:
        """Reap orphaned workers until the grace is over, then kill those that remain."""
        deadline = time.monotonic() + self._grace + _ORPHAN_KILL_DELAY
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(_REAP_INTERVAL)
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Run a forkserver on descriptor 3."""
    set_title("novasvc: forkserver")
    control = socket.socket(fileno=CONTROL)
    control.set_inheritable(False)
    with contextlib.suppress(OSError):
        os.set_inheritable(LOCK, False)  # inherited by workers, not by programs that they execute
    ForkServer(control).serve()
