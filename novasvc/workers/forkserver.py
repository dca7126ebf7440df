"""The process that workers are forked from: it has imported what they need, and does nothing else.

Run by :mod:`novasvc.workers.forkserver_client`, with a socket pair as descriptor 3.
"""

# Note [A forkserver]
#
# A process whose reactor runs cannot be forked: its threads vanish, its locks stay locked, its
# epoll is shared. And to begin each worker from nothing costs a second of processor time and all
# its memory. So there is one process between: it is executed anew, imports what workers need,
# installs no reactor, has no thread, and forks when it is told to. Workers share its memory.
#
# The one of multiprocessing is such a process, too, and was tried. Its caller waits until the fork
# is made, so one that still imports, or is stopped, blocks the supervisor's reactor. When it is
# killed, all its children look as if they had ended. And it runs the program's main module again,
# twistd's too. Here nothing waits but the Deferred of who asked. The end of a forkserver ends no
# worker, for each has a channel of its own to the supervisor. And the main module is run again
# only for a server that is made of what it defines.

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

from novasvc.workers.exit_status import UNSUPERVISED
from novasvc.workers.orphan import call_when_orphaned
from novasvc.workers.title import set_title

_MAIN = "__novasvc_main__"
"""What the main module is called when it is run again, so that what is for the first run does not run."""

CONTROL = 3
"""The descriptor of the socket pair."""

LOCK = 4
"""The descriptor of the supervisor's lock, if there is one: held as long as a process has it open."""

_WARMUP = "novasvc.run.warmup"
"""Has what workers live through before they are born; see there."""

PRELOAD = (
    "novasvc.service",
    _WARMUP,
    "novasvc.workers.worker",
    "novasvc.run.plugin",
    "novasvc.registry.sql.services",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "twisted.internet.default",
    "twisted.internet.epollreactor",
)
"""What most workers import. That the reactor's modules are imported installs none."""

_SLACK = 0.5
"""Seconds after the time that a worker has to end by itself when the supervisor is gone; then it is killed."""

_RETIRED_GRACE = 1.0
"""Seconds that they have instead if the supervisor lives, and has let this forkserver go: they should have ended."""

_LOOK_INTERVAL = 0.05

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
"""Signals that a terminal or an operator sends to all processes of a group; the supervisor answers to them."""


class NoReactor(importlib.abc.MetaPathFinder):
    """Refuse to install a reactor, which all workers would share; who needs one is imported in the worker."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Refuse the one module; let others find the rest."""
        if fullname == "twisted.internet.reactor":
            raise ImportError("a forkserver must not install a reactor")


@contextlib.contextmanager
def installing_none() -> Iterator[None]:
    """See to it that nothing installs a reactor."""
    finder = NoReactor()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def preload(modules: Iterable[str], begin: Callable[[str], object]) -> None:
    """Import modules; what cannot be imported here is left to the worker, which tells what is wrong with it.

    :param begin: called with each before it is imported: maybe nothing comes afterwards.
    """
    with installing_none():
        for module in modules:
            begin(module)
            with contextlib.suppress(Exception, SystemExit):
                importlib.import_module(module)


def run_main(kind: str, name: str) -> str | None:
    """Run a program's main module again, under another name, so that what it defines can be unpickled.

    :param kind: "module" for one that was run by ``python -m``, else "path".
    :param name: of the module, or its path.
    :return: why that is not possible; None if it was.
    """
    module = types.ModuleType(_MAIN)
    sys.modules["__main__"] = sys.modules[_MAIN] = module
    run = runpy.run_module if kind == "module" else runpy.run_path
    try:
        with installing_none():
            module.__dict__.update(run(name, run_name=_MAIN))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the program's
        return f"the program's main module cannot be imported by workers: {type(error).__name__}: {error}"
    return None


class ForkServer:
    """Answers requests to fork, and tells of the ends of what it forked.

    In: ``{"preload": [module], "path": sys.path, "argv": sys.argv, "main": [kind, name] or null}`` once, then
    ``{"fork": key, "descriptors": number, "parameters": ...}``, each with that many descriptors,
    ``{"log": 1}`` with the descriptor of the new log file, and ``{"retire": true}`` if the end is no accident.
    Out: ``{"forked": key, "pid": pid}``, ``{"failed": key, "problem": text}``,
    ``{"ended": pid, "status": wait status}``, and first ``{"importing": module, path of the main one, or null}``
    for each.

    :param control: the socket pair.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._received = b""
        self._descriptors: deque[int] = deque()
        self._children: set[int] = set()
        self._grace = 0.0
        self._problem: str | None = None
        self._backlog: Any = None
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Answer until the supervisor is gone; returns when no child is left."""
        awake, wake = self._wakeup
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        call_when_orphaned(self._control.fileno(), self._end_childless)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(awake, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in self._selector.select()}
            if awake in ready:
                os.read(awake, 4096)
                self._reap()
            if self._control in ready and not self._receive():
                break
        self._outlive()

    def _receive(self) -> bool:
        """Take what has come; False if the supervisor is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 64)
        except ConnectionError:
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # by programs that a worker runs
        self._descriptors.extend(descriptors)
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        return bool(data)

    def _take(self, message: dict[str, Any]) -> None:
        if "fork" in message:
            descriptors = [self._descriptors.popleft() for _ in range(message["descriptors"])]
            self._fork(message["fork"], message["parameters"], descriptors)
            return
        if "retire" in message:
            self._grace = _RETIRED_GRACE
            return
        if "log" in message:
            # Another file has the log's name: see novasvc.telemetry.logfiles. Workers look by themselves.
            descriptor = self._descriptors.popleft()
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            os.close(descriptor)
            return
        sys.path[:] = message["path"]
        sys.argv[:] = message["argv"]
        preload([*PRELOAD, *message["preload"]], self._say_importing)
        if message["main"] is not None:
            self._say_importing(message["main"][1])
            self._problem = run_main(*message["main"])
        self._say_importing(None)
        self._observer = importlib.import_module("novasvc.workers.worker").SwitchableObserver()
        # Made here so that all workers inherit it: a worker finds in it what a dead sibling never began.
        self._backlog = importlib.import_module("novasvc.rpc.backlog").SharedBacklog()
        with installing_none(), contextlib.suppress(Exception):
            importlib.import_module(_WARMUP).warm_up()
        gc.collect()
        gc.freeze()

    def _fork(self, key: int, parameters: dict[str, Any], descriptors: Sequence[int]) -> None:
        page = self._backlog.free_page(self._children)
        self._grace = max(self._grace, parameters["grace"] or UNSUPERVISED)
        # A signal that comes before the child has its own handlers, waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"failed": key, "problem": f"fork failed: {error.strerror}"})
        else:
            if pid == 0:
                self._be_worker(parameters, descriptors, page)
            self._children.add(pid)
            self._say({"forked": key, "pid": pid})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
        for descriptor in descriptors:
            os.close(descriptor)

    def _be_worker(self, parameters: dict[str, Any], descriptors: Sequence[int], page: int | None) -> NoReturn:
        """Become a worker; see :func:`novasvc.workers.worker.run`.

        :param page: of the shared backlog; None if it has no room for one more process.
        """
        status = 2
        try:
            signal.set_wakeup_fd(-1)
            for number in (*_IGNORED, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # SIGTERM ends it until it can drain. SIGINT and SIGHUP are the supervisor's; the others' handlers come.
            # Not SIG_IGN, which programs inherit that a worker starts.
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN):
                signal.signal(number, lambda _number, _frame: None)
            self._leave_to_others()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
            from novasvc.workers.worker import run  # noqa: PLC0415 - preloaded by now

            backlog = None if page is None else self._backlog.join(page, os.getpid())
            status = run(self._observer, {**parameters, "problem": self._problem}, descriptors, backlog)
        except BaseException:  # noqa: BLE001 - nothing of the forkserver may run in this process
            traceback.print_exc(file=sys.__stderr__)
        finally:
            for stream in (sys.__stdout__, sys.__stderr__):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()  # type: ignore[union-attr]
            os._exit(status & 0xFF)

    def _leave_to_others(self) -> None:
        """Close, in a worker, what is the forkserver's, and what is for workers that come next."""
        # The end of a worker is seen by the end of its channel: so nobody else may have that.
        self._selector.close()
        self._control.close()
        for descriptor in (*self._wakeup, *self._descriptors):
            os.close(descriptor)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                self._children.discard(pid)
                self._say({"ended": pid, "status": status})

    def _say_importing(self, what: str | None) -> None:
        self._say({"importing": what})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone, and seen to be gone at the next turn
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _end_childless(self) -> None:
        """End at once when the supervisor is gone, were it in the middle of an import."""
        if not self._children:
            os._exit(1)

    def _outlive(self) -> None:
        """See that no worker outlives the supervisor; each sees by itself that it is gone, unless it hangs."""
        deadline = time.monotonic() + self._grace + _SLACK
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(_LOOK_INTERVAL)
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Serve at descriptor 3."""
    set_title("novasvc: forkserver")
    control = socket.socket(fileno=CONTROL)
    control.set_inheritable(False)
    with contextlib.suppress(OSError):
        os.set_inheritable(LOCK, False)  # workers have it, and programs that they run do not
    ForkServer(control).serve()
