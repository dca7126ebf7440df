"""The worker process: runs one server on its own reactor, and reports to the supervisor."""

import contextlib
import faulthandler
import gc
import importlib
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, cast

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from novasvc._compat import run_exit_functions
from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IExitRequester, IPreforkable, IStartable
from novasvc.reactor.monotonic import use_monotonic_clock
from novasvc.rpc.server.admission import NOBODY
from novasvc.rpc.server.unstarted_record import UnstartedRecord
from novasvc.telemetry import flight, metrics
from novasvc.telemetry.stalls import StallWatch
from novasvc.workers import reports
from novasvc.workers.current import ALONE, CurrentWorker, EndKind, SharedStart, set_current_worker
from novasvc.workers.diagnostics import DUMP, DiagnosticsFile
from novasvc.workers.errors import NotPreforkableError
from novasvc.workers.exit_status import (
    ABANDON_DELAY,
    KILL_DELAY,
    UNSUPERVISED_GRACE,
    end_of,
    interrupt,
    problem_of,
    status_of,
)
from novasvc.workers.orphan import call_when_orphaned
from novasvc.workers.pipe import Pipe, PipeMessage, adopt
from novasvc.workers.specification import unpickle_server
from novasvc.workers.switchable_log import SwitchableObserver
from novasvc.workers.title import set_title

_log = Logger()

TICK = 1.0
"""Seconds between two heartbeats, which prove that the reactor is not blocked."""

_EXIT_TIMEOUT = 1.0
"""Seconds to exit for a worker without running work."""

_SIBLINGS_TIMEOUT = 1.0
"""Seconds for the supervisor to answer about siblings; it gives them half of that."""

_MAX_PROBLEM_LENGTH = 16 * 1024
"""Characters of a reported problem."""

UNHANDLED = 2
"""Exit status after an unexpected exception, as in Nova."""


def run(
    observer: SwitchableObserver,
    parameters: Mapping[str, Any],
    descriptors: Sequence[int],
    unstarted_record: UnstartedRecord | None = None,
) -> int:
    """Run as a worker, from just after the fork until the process exits.

    :param observer: logs; it is switched to the worker's own log.
    :param parameters: {"number": int, "name": of the server, "server": pickled, in base64, "reactor": name of a module
        with an install function, "log": {"file", "json", "level"}, "grace": seconds to drain, "watchdog": seconds for
        which the reactor may be blocked, "start": the fields of :class:`novasvc.workers.current.SharedStart`}; 0 is no
        limit. See :mod:`novasvc.workers.group`.
    :param descriptors: the pipe to the supervisor, the diagnostics file, and the listening sockets.
    :param unstarted_record: shared record of requests that this process has received but not begun.
    :return: the exit status.
    """
    pipe_end, diagnostics_file, *sockets = descriptors
    diagnostics = DiagnosticsFile(diagnostics_file)
    flight.install(diagnostics.recorder)
    diagnostics.recorder.beat(time.monotonic())
    faulthandler.enable(diagnostics.descriptor)
    faulthandler.register(DUMP, diagnostics.descriptor)
    metrics.reset()
    set_title(f"novasvc: worker {parameters['number']} ({parameters['name']})")

    importlib.import_module(parameters["reactor"]).install()
    reactor: Any = sys.modules["twisted.internet.reactor"]
    use_monotonic_clock(reactor)
    observer.switch(parameters, reactor)
    worker = Worker(parameters, reactor, diagnostics, [socket.socket(fileno=descriptor) for descriptor in sockets])
    current = CurrentWorker(
        parameters["number"],
        parameters["grace"],
        unstarted_record,
        worker.ask_siblings,
        SharedStart(**parameters["start"]),
        worker.ends_alone,
    )
    set_current_worker(reactor, current)
    worker.pipe = adopt(reactor, socket.socket(fileno=pipe_end), Pipe(worker.receive, worker.orphaned))
    call_when_orphaned(cast(Any, worker.pipe.transport).fileno(), worker.pipe_closed)
    reactor.callWhenRunning(worker.begin)
    reactor.run()
    run_exit_functions()  # the forkserver ends this process by os._exit
    return worker.status


class Worker:
    """Starts the server, reports to the supervisor, and exits when the server has stopped.

    :param parameters: see :func:`run`.
    :param diagnostics: shared with the supervisor.
    :param sockets: listening sockets for the server to adopt.
    """

    pipe: Pipe

    def __init__(
        self, parameters: Mapping[str, Any], reactor: Any, diagnostics: DiagnosticsFile, sockets: list[socket.socket]
    ) -> None:
        self.status = 0
        self._parameters = parameters
        self._reactor = reactor
        self._diagnostics = diagnostics
        self._sockets = sockets
        self._server: IService | None = None
        self._last_report: PipeMessage = {}
        self._query_keys = count()
        self._pending_queries: dict[int, Deferred[str]] = {}
        self._draining = self._done = self._reactor_stopped = self._is_orphan = False
        self._ready = self._interrupted = False
        self._forced_exit_at = math.inf

    # -- start ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Construct and start the server. Called when the reactor runs."""
        if self._forced_exit_at < math.inf:
            return  # the pipe has closed already, most likely because the fork was cancelled: orphaned() follows
        for number, handler in ((signal.SIGTERM, self.terminate), (signal.SIGUSR2, self.dump_to_log)):
            signal.signal(number, partial(self._call_in_reactor, handler))
        # chain=True: faulthandler writes the stacks first, even while the reactor is blocked, then calls our handler.
        faulthandler.register(signal.SIGUSR2, self._diagnostics.descriptor, chain=True)
        StallWatch(self._diagnostics.recorder, self._reactor, interval=TICK).start()
        ticking = LoopingCall(self._tick)
        ticking.clock = self._reactor
        ticking.start(TICK).addErrback(
            lambda failure: _log.failure("no more status reports to the supervisor", failure)
        )
        Deferred.fromCoroutine(self._start()).addErrback(self._start_failed)

    def _call_in_reactor(self, handler: Callable[[], object], _number: int, _frame: object) -> None:
        self._reactor.callFromThread(handler)

    async def _start(self) -> None:
        server = make_server(self._parameters, self._sockets, self._reactor)
        self._server = server
        server.privilegedStartService()
        server.startService()
        if IStartable.providedBy(server):
            await server.when_started()
        gc.collect()
        gc.freeze()
        self._ready = True
        self._send({"is": "ready"})
        flight.note("worker", "ready")
        if (ended := end_of(server)) is not None:
            # A server that can report its end ends its worker.
            ended.addErrback(self._server_failed).addCallback(lambda _: self.terminate())

    def _server_failed(self, failure: Failure) -> None:
        """Handle a server that failed while running."""
        if not self._draining:
            self._report_failure(failure, "the server failed while running", final=False)

    def _start_failed(self, failure: Failure) -> None:
        if not self._draining:
            self._report_failure(failure, "the server did not start", final=self._server is None)
            self._finish()

    def _report_failure(self, failure: Failure, what: str, *, final: bool) -> None:
        """Report a failure to the supervisor, and set the exit status.

        :param what: what happened, for the log.
        :param final: a NovasvcError here means that no other worker could run either.
        """
        error = cast(BaseException, failure.value)
        known = isinstance(error, NovasvcError)
        if isinstance(error, SystemExit):
            self.status, problem = status_of(error), problem_of(error)
        elif known:
            self.status, problem = 1, str(error)
        else:
            self.status, problem = UNHANDLED, describe(error)
            _log.failure("{what}", failure, level=LogLevel.critical, what=what)
        self._send(
            {"is": "failed", "problem": problem, "final": known and (final or getattr(error, "is_final", False))}
        )

    # -- reports -------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._done:
            return  # the last report must stay the last
        report: PipeMessage = {"is": "waiting", "for": reports.waited_for(self._server)}
        if self._draining:
            report = {"is": "draining", "calls": reports.count_calls(self._server)}
        if report != self._last_report:
            self._last_report = report
            self._send(report)

    def _send(self, message: PipeMessage) -> None:
        if "problem" in message:
            message["problem"] = message["problem"][:_MAX_PROBLEM_LENGTH]
        self.pipe.send(message)

    def receive(self, message: PipeMessage) -> None:
        """Handle a message from the supervisor.

        It queries running calls, request ids of operations, metrics, health, descriptions or how much was served;
        answers a query of this worker; or tells it to stop now.
        """
        match message:
            case {"answer": key, "value": answer}:
                query = self._pending_queries.pop(key, None)
                if query is not None:
                    query.callback(answer)
            case {"query": key, "name": "health" | "describe" | "history" as what}:
                reporting = Deferred.fromCoroutine(self._report(key, what))
                reporting.addErrback(
                    lambda failure: _log.failure("cannot report the {what} of the services", failure, what=what)
                )
            case {"query": key, "name": "operations"}:
                self._answer(key, reports.operations(self._server))
            case {"query": key, "name": "metrics"}:
                self._answer(key, reports.fit_message(metrics.documents()))
            case {"query": key, "name": "served"}:
                self._answer(key, reports.count_served())
            case {"query": key, "name": "calls"}:
                self._answer(key, reports.running_calls(self._server))
            case {"query": key}:  # of a supervisor of another version
                self._answer(key, None)
            case {"interrupt": seconds}:
                self.terminate()
                self._interrupt(seconds)

    def ask_siblings(self, request_id: str) -> Deferred[str]:
        """Ask the supervisor whether a sibling can take an operation.

        See :data:`novasvc.rpc.server.admission.Siblings`.
        """
        key = next(self._query_keys)
        query = self._pending_queries[key] = Deferred[str]()
        self._send({"is": "query", "key": key, "request_id": reports.truncated(request_id)})

        def timed_out(_: object, __: float) -> str:
            self._pending_queries.pop(key, None)
            return NOBODY

        return query.addTimeout(_SIBLINGS_TIMEOUT, self._reactor, timed_out)

    def ends_alone(self, kind: EndKind, service: str) -> Deferred[bool]:
        """Ask the supervisor whether other workers go on with a service that drains, ends or fails in this one.

        :return: Deferred[bool]; True if the supervisor does not answer, or is gone.
        """
        if self._is_orphan:
            return succeed(True)
        key = next(self._query_keys)
        query = self._pending_queries[key] = Deferred[str]()
        self._send({"is": "query", "key": key, "end": kind, "service": service})

        def timed_out(_: object, __: float) -> str:
            self._pending_queries.pop(key, None)
            return ALONE

        return query.addTimeout(_SIBLINGS_TIMEOUT, self._reactor, timed_out).addCallback(ALONE.__eq__)

    async def _report(self, key: int, what: str) -> None:
        services = reports.parts(self._server)
        answer: Any = await (reports.health_of(services) if what == "health" else reports.descriptions(services, what))
        self._answer(key, answer)

    def _answer(self, key: int, answer: Any) -> None:
        """Answer a query of the supervisor; None if there is no answer."""
        self._send({"is": "answer", "key": key, "answer": answer})

    def dump_to_log(self) -> None:
        """Log the stacks and last events, on SIGUSR2."""
        stacks, events = self._diagnostics.stacks, flight.dump_text(self._diagnostics.recorder)
        self._diagnostics.clear_stacks()
        _log.info("stacks:\n{stacks}\nlast events:\n{events}", stacks=stacks, events=events)

    # -- stop -----------------------------------------------------------------------------------
    #
    # Note [Only the supervisor interrupts]
    #
    # A worker may get SIGTERM several times: from its supervisor, from an operator, from a terminal or an init
    # system that signals the whole process group. Each only starts the drain. Only the supervisor may order an
    # immediate stop, and it does so over the pipe.
    #
    # Note [Workers without a supervisor]
    #
    # A worker whose supervisor was killed drains, too, within its normal grace. Nobody watches it any more, so it
    # limits itself with SIGALRM, which works even if the reactor is blocked: the signal handler that sees the pipe
    # close allows the watchdog time; the reactor, when it handles the close, extends that to the grace. The
    # forkserver, if it lives, kills workers that remain after that. The next supervisor waits meanwhile:
    # see Note [One listener] in workers/control/path_lock.py.

    def terminate(self) -> None:
        """Drain. See Note [Only the supervisor interrupts]."""
        if self._draining:
            return
        self._draining = True
        self._tick()
        stopping = succeed(None) if self._server is None else maybeDeferred(self._server.stopService)
        stopping.addErrback(self._stop_failed)
        stopping.addCallback(self._server_stopped)

    def _server_stopped(self, _: object) -> None:
        for part in reports.parts(self._server):
            if IExitRequester.providedBy(part) and (requested := IExitRequester(part).leaving) is not None:
                self.status = self.status or status_of(requested)
        self._finish()

    def _stop_failed(self, failure: Failure) -> None:
        if isinstance(failure.value, SystemExit):
            self.status = status_of(failure.value)
        else:
            _log.failure("the server did not stop cleanly", failure)

    def orphaned(self) -> None:
        """Drain and exit, because the supervisor is gone. See Note [Workers without a supervisor]."""
        if self._done:
            self._stop_reactor()
            return
        self.status, self._is_orphan = 1, True
        if not self._ready:
            _log.error("supervisor gone before this worker was ready; exiting")
            self.terminate()
            self._interrupt(_EXIT_TIMEOUT)
            return
        grace = self._grace
        _log.error("supervisor gone: draining within {s:g} s, then exiting", s=grace)
        if not self._interrupted:
            self._forced_exit_at = math.inf  # the reactor works: replace the watchdog limit by the grace
            self._schedule_forced_exit(grace + KILL_DELAY, self._exit)
            self._reactor.callLater(grace, self._interrupt, ABANDON_DELAY)
        self.terminate()

    @property
    def _grace(self) -> float:
        return float(self._parameters["grace"] or UNSUPERVISED_GRACE)

    def pipe_closed(self) -> None:
        """Limit the remaining lifetime; called by a signal handler when the pipe closes. See novasvc.workers.orphan."""
        # After _finish() the pipe was closed by us: exit handlers may take their time.
        if not self._done and not self._is_orphan:
            self._schedule_forced_exit(
                min(self._parameters["watchdog"] or self._grace, self._grace) + KILL_DELAY, signal.SIG_DFL
            )

    def _schedule_forced_exit(self, seconds: float, handler: Any) -> None:
        """Exit within some seconds, even if the reactor is blocked. An earlier limit stays.

        :param handler: for SIGALRM.
        """
        at = time.monotonic() + seconds
        if at < self._forced_exit_at:
            self._forced_exit_at = at
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _exit(self, _number: int, _frame: object) -> None:
        os._exit(self.status or 1)

    def _interrupt(self, seconds: float) -> None:
        self._interrupted = True
        # By SIGALRM, not by the reactor: the work to cancel may be what blocks it, and so may a user's hurry().
        self._schedule_forced_exit(seconds, self._exit)
        if self._server is not None:
            interrupt(self._server)

    def _finish(self) -> None:
        if self._done:
            return
        self._draining = self._done = True
        if self._is_orphan:
            self._stop_reactor()
            return
        # The last report must be written before the reactor stops: the close of the pipe stops it (see orphaned).
        self._send({"is": "done"})
        self.pipe.close()
        self._reactor.callLater(_EXIT_TIMEOUT, self._stop_reactor)

    def _stop_reactor(self) -> None:
        if not self._reactor_stopped:
            self._reactor_stopped = True
            # A SIGTERM that came before our handler was installed has stopped it already.
            with contextlib.suppress(ReactorNotRunning):
                self._reactor.stop()


def make_server(parameters: Mapping[str, Any], sockets: Sequence[socket.socket], reactor: Any) -> IService:
    """Unpickle the server of launch_server, or the function that makes it, and pass it the sockets.

    :raises NotPreforkableError: the program's main module could not be imported here.
    :raises NovasvcError: the server cannot be made.
    """
    if parameters["problem"]:
        remedy = (
            'put the code that starts the program under `if __name__ == "__main__":`, and code that needs a reactor '
            "or starts threads into a module of its own"
        )
        raise NotPreforkableError(parameters["name"], parameters["problem"], remedy)
    server = unpickle_server(parameters["server"], reactor)
    if IPreforkable.providedBy(server):
        server.adopt_sockets(sockets)
    return server if IService.providedBy(server) else server(reactor)
