"""The worker's side: a process of its own reactor, that runs one server and tells the supervisor how it does."""

import atexit
import base64
import contextlib
import faulthandler
import gc
import importlib
import json
import math
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, TextIO, cast

from twisted.application.service import IService, IServiceCollection
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IHealthy, IPreforkable, IStartable
from novasvc.reactor.monotonic import use_monotonic_clock
from novasvc.rpc.admission import NOBODY
from novasvc.rpc.backlog import Backlog
from novasvc.telemetry import flight, metrics
from novasvc.telemetry.instruments import Document
from novasvc.telemetry.logfiles import LogFile
from novasvc.telemetry.logs import NO_NODE, make_observer
from novasvc.telemetry.stalls import StallWatch
from novasvc.workers.current import CurrentWorker, set_current_worker
from novasvc.workers.errors import NotPreforkableError
from novasvc.workers.exit_status import ABANDONED, FORCED, UNSUPERVISED, end_of, hurry, status_of
from novasvc.workers.last_record import DUMP, Record
from novasvc.workers.orphan import at_hangup
from novasvc.workers.pipe import LONGEST, Channel, Message, adopt
from novasvc.workers.title import set_title

_log = Logger()

TICK = 1.0
"""Seconds between two proofs that the reactor turns."""

STANDARD_OUTPUT = 1
"""The descriptor of the log, if there is a file of it: see :class:`novasvc.workers.forkserver_client.Forks`."""

_LAST_WISHES = 1.0
"""Seconds that a worker has to end which has begun nothing, or has finished it."""

_SIBLINGS_PATIENCE = 1.0
"""Seconds that the supervisor has to tell of the other workers; it gives them half of it."""

_MOST_OPERATIONS = 10_000
"""Request ids of operations under way that are told."""

_MOST_CALLS = 200
"""Calls under way that the supervisor is told of, when it asks which."""

_LONGEST_NAME = 200
"""Characters of the names in a call."""

_LONGEST_PROBLEM = 16 * 1024
"""Characters of a reason for a failed start."""

_ENVELOPE = 16 * 1024
"""Octets of a message that are not the figures in it, commas between them included."""

UNHANDLED = 2
"""The exit status of a worker that ends by an exception nobody expected, as in Nova."""


def run(outlet: "Outlet", order: Mapping[str, Any], descriptors: Sequence[int], backlog: Backlog | None = None) -> int:
    """Be a worker, from just after the fork to the end of the process.

    :param outlet: of the log.
    :param order: {"number": int, "name": what it serves, "server": pickled, in base64, "reactor": module with
        an install function, "log": {"file", "json", "level"}, "grace": seconds to drain, "silence": seconds that its
        reactor may be blocked; 0 is without limit}; see :mod:`novasvc.workers.group`.
    :param descriptors: the channel to the supervisor, the record, and the listening sockets.
    :param backlog: this process's record of requests that it has received and not begun.
    :return: the exit status.
    """
    channel_end, record_file, *sockets = descriptors
    record = Record(record_file)
    flight.install(record.recorder)
    record.recorder.beat(time.monotonic())
    faulthandler.enable(record.descriptor)
    faulthandler.register(DUMP, record.descriptor)
    metrics.reset()
    set_title(f"novasvc: worker {order['number']} ({order['name']})")

    importlib.import_module(order["reactor"]).install()
    reactor: Any = sys.modules["twisted.internet.reactor"]
    use_monotonic_clock(reactor)
    outlet.turn(order, reactor)
    worker = Worker(order, reactor, record, [socket.socket(fileno=descriptor) for descriptor in sockets])
    set_current_worker(CurrentWorker(order["number"], order["grace"], backlog, worker.ask_of_siblings))
    worker.channel = adopt(reactor, socket.socket(fileno=channel_end), Channel(worker.receive, worker.orphaned))
    at_hangup(cast(Any, worker.channel.transport).fileno(), worker.hung_up)
    reactor.callWhenRunning(worker.begin)
    reactor.run()
    atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing does: this process does not end as others do
    return worker.status


@implementer(ILogObserver)
class Outlet:
    """Where a forkserver logs to: nowhere, unless it is bad news; and a worker, to where it was told."""

    def __init__(self) -> None:
        self.observer: Callable[[LogEvent], None] = make_observer(sys.stderr, level="warn")
        # Once in a process is all that Twisted allows, and the worker's part comes after the fork.
        globalLogBeginner.beginLoggingTo([self], discardBuffer=True)

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on."""
        self.observer(event)

    def turn(self, order: Mapping[str, Any], reactor: Any) -> None:
        """Log to where a worker is told to."""
        log = order["log"]
        file: TextIO | None = sys.__stdout__
        if log["file"]:
            log_file = LogFile(log["file"], STANDARD_OUTPUT)
            log_file.watch(reactor)
            file = cast(TextIO, log_file)
        assert file is not None
        default = {**NO_NODE, "worker_number": order["number"]}
        self.observer = make_observer(file, as_json=log["json"], level=log["level"], default=default)


class Worker:
    """Starts the server, and ends the process when that has stopped.

    :param order: see :func:`run`.
    :param sockets: for the server to adopt.
    """

    channel: Channel

    def __init__(self, order: Mapping[str, Any], reactor: Any, record: Record, sockets: list[socket.socket]) -> None:
        self.status = 0
        self._order = order
        self._reactor = reactor
        self._record = record
        self._sockets = sockets
        self._server: IService | None = None
        self._told: Message = {}
        self._keys = count()
        self._questions: dict[int, Deferred[str]] = {}
        self._ending = self._over = self._stopped = self._orphan = False
        self._ready = self._hurried = False
        self._ends_at = math.inf

    # -- the way up ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the server and start it. Called when the reactor runs."""
        for number, handler in ((signal.SIGTERM, self.terminate), (signal.SIGUSR2, self.dump_to_log)):
            signal.signal(number, partial(self._pass_on, handler))
        # In front of ours: what it writes, it writes even while the reactor hangs.
        faulthandler.register(signal.SIGUSR2, self._record.descriptor, chain=True)
        StallWatch(self._record.recorder, self._reactor, interval=TICK).start()
        ticking = LoopingCall(self._tick)
        ticking.clock = self._reactor
        ticking.start(TICK).addErrback(lambda failure: _log.failure("the supervisor hears nothing more", failure))
        Deferred.fromCoroutine(self._start()).addErrback(self._failed)

    def _pass_on(self, handler: Callable[[], object], _number: int, _frame: object) -> None:
        self._reactor.callFromThread(handler)

    async def _start(self) -> None:
        server = make_server(self._order, self._sockets, self._reactor)
        self._server = server
        server.privilegedStartService()
        server.startService()
        if IStartable.providedBy(server):
            await server.when_started()
        gc.collect()
        gc.freeze()
        self._ready = True
        self._say({"is": "ready"})
        flight.note("worker", "ready")
        if (ended := end_of(server)) is not None:
            # A server that says when it has ended, ends its worker.
            ended.addErrback(self._ended_badly).addCallback(lambda _: self.terminate())

    def _ended_badly(self, failure: Failure) -> None:
        """See a server end by itself, and not well."""
        if not self._ending:
            self._tell(failure, "the server has ended by an error", final=False)

    def _failed(self, failure: Failure) -> None:
        if not self._ending:
            self._tell(failure, "the server did not start", final=self._server is None)
            self._end()

    def _tell(self, failure: Failure, what: str, *, final: bool) -> None:
        """Tell the supervisor of a failure, and end with the status for it.

        :param what: happened, for the log.
        :param final: whether no worker can run, if it is an error that is known.
        """
        error = cast(BaseException, failure.value)
        known = isinstance(error, NovasvcError)
        if isinstance(error, SystemExit):
            self.status, problem = status_of(error), f"it ended with SystemExit({error.code!r})"
        elif known:
            self.status, problem = 1, str(error)
        else:
            self.status, problem = UNHANDLED, describe(error)
            _log.failure("{what}", failure, level=LogLevel.critical, what=what)
        self._say({"is": "failed", "problem": problem, "final": known and final})

    # -- signs of life -------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._over:
            return  # what was said last, stays
        legs = (getattr(part, "waiting_for", None) for part in parts(self._server))
        waiting = next((leg for leg in legs if isinstance(leg, str)), None)
        news: Message = {"is": "waiting", "for": waiting}
        if self._ending:
            news = {"is": "draining", "calls": len(self._calls())}
        if news != self._told:
            self._told = news
            self._say(news)

    def _say(self, message: Message) -> None:
        if "problem" in message:
            message["problem"] = message["problem"][:_LONGEST_PROBLEM]
        self.channel.send(message)

    def receive(self, message: Message) -> None:
        """Take what the supervisor says: a question, or that the end is to come at once.

        It may ask for the calls under way, for the request ids of all operations, for the figures, and for the health
        of the services; or answer a question.
        """
        match message:
            case {"answer": key, "said": answer}:
                question = self._questions.pop(key, None)
                if question is not None:
                    question.callback(answer)
            case {"ask": key, "what": "operations"}:
                operations = [_short(request_id) for request_id in self._operations()][:_MOST_OPERATIONS]
                self._say({"is": "asked", "key": key, "answer": operations})
            case {"ask": key, "what": "figures"}:
                self._say({"is": "asked", "key": key, "answer": fitting(metrics.documents())})
            case {"ask": key, "what": "health"}:
                telling = Deferred.fromCoroutine(self._tell_health(key))
                telling.addErrback(lambda failure: _log.failure("how the services are is not known", failure))
            case {"ask": key}:
                calls = [{name: _short(value) for name, value in call.items()} for call in self._calls()[:_MOST_CALLS]]
                self._say({"is": "asked", "key": key, "calls": calls})
            case {"end": "at once", "seconds": seconds}:
                self.terminate()
                self._hurry(seconds)

    def ask_of_siblings(self, request_id: str) -> Deferred[str]:
        """Ask the supervisor about the other workers; see :data:`novasvc.rpc.admission.Siblings`."""
        key = next(self._keys)
        question = self._questions[key] = Deferred[str]()
        self._say({"is": "asking", "key": key, "request_id": _short(request_id)})

        def unanswered(_: object, __: float) -> str:
            self._questions.pop(key, None)
            return NOBODY

        return question.addTimeout(_SIBLINGS_PATIENCE, self._reactor, unanswered)

    def _operations(self) -> set[str]:
        told = (getattr(part, "operations_under_way", None) for part in parts(self._server))
        return {request_id for operations in told if callable(operations) for request_id in operations()}

    async def _tell_health(self, key: int) -> None:
        self._say({"is": "asked", "key": key, "answer": await health_of(parts(self._server))})

    def _calls(self) -> list[dict[str, Any]]:
        return [
            call
            for part in parts(self._server)
            if callable(running := getattr(part, "running_calls", None))
            for call in running()
        ]

    def dump_to_log(self) -> None:
        """Log what happened last, for who sent SIGUSR2 to this process."""
        stacks = self._record.stacks
        self._record.forget_stacks()
        _log.info(
            "stacks:\n{stacks}\nlast events:\n{events}", stacks=stacks, events=flight.dump_text(self._record.recorder)
        )

    # -- the way down --------------------------------------------------------------------------
    #
    # Note [Who says at once]
    #
    # A worker may be told to end many times: by its supervisor, by an operator, by a terminal or a
    # system that sends SIGTERM to the whole group of processes. All of these let it finish what it
    # has begun. That it is to end at once is for the supervisor alone to say, over the channel.
    #
    # Note [Workers without a supervisor]
    #
    # A worker whose supervisor was killed finishes what it has begun, too, within the grace that it
    # has anyway. Nobody watches it any more, so it sets itself a limit that holds without a reactor:
    # first, where it sees the end of its supervisor, the time that a reactor may be blocked; then, in
    # the reactor's turn, the grace. Its forkserver, if it lives, kills what is left after that. The
    # next supervisor waits meanwhile: see Note [One listener] in supervision/claim.py.

    def terminate(self) -> None:
        """Drain. See Note [Who says at once]."""
        if self._ending:
            return
        self._ending = True
        self._tick()
        stopping = succeed(None) if self._server is None else maybeDeferred(self._server.stopService)
        stopping.addErrback(self._stopped_badly)
        stopping.addCallback(self._stopped_all)

    def _stopped_all(self, _: object) -> None:
        for part in parts(self._server):
            if isinstance(leaving := getattr(part, "leaving", None), SystemExit):
                self.status = self.status or status_of(leaving)
        self._end()

    def _stopped_badly(self, failure: Failure) -> None:
        if isinstance(failure.value, SystemExit):
            self.status = status_of(failure.value)
        else:
            _log.failure("the server did not stop cleanly", failure)

    def orphaned(self) -> None:
        """Finish what was begun, and end: there is no supervisor any more. See Note [Workers without a supervisor]."""
        if self._over:
            self._stop()
            return
        self.status, self._orphan = 1, True
        if not self._ready:
            _log.error("supervisor gone before this worker was ready; exiting")
            self.terminate()
            self._hurry(_LAST_WISHES)
            return
        grace = self._grace
        _log.error("the supervisor is gone: this worker finishes what it has begun, within {s:g} s, and ends", s=grace)
        if not self._hurried:
            self._ends_at = math.inf  # the reactor turns
            self._end_within(grace + FORCED, self._exit)
            self._reactor.callLater(grace, self._hurry, ABANDONED)
        self.terminate()

    @property
    def _grace(self) -> float:
        return float(self._order["grace"] or UNSUPERVISED)

    def hung_up(self) -> None:
        """See the channel's end, in a signal's handler: see :mod:`novasvc.workers.orphan`."""
        # If it is over, the channel's end is our own, and threads and exit handlers may take their time.
        if not self._over and not self._orphan:
            self._end_within(min(self._order["silence"] or self._grace, self._grace) + FORCED, signal.SIG_DFL)

    def _end_within(self, seconds: float, handler: Any) -> None:
        """End, even if the reactor does not turn any more. An earlier end that was set stays.

        :param handler: of SIGALRM.
        """
        ends_at = time.monotonic() + seconds
        if ends_at < self._ends_at:
            self._ends_at = ends_at
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _exit(self, _number: int, _frame: object) -> None:
        os._exit(self.status or 1)

    def _hurry(self, seconds: float) -> None:
        self._hurried = True
        if self._server is not None:
            hurry(self._server)
        # Not by the reactor: what is to be cut short may have stopped it, or keep it busy.
        self._end_within(seconds, self._exit)

    def _end(self) -> None:
        if self._over:
            return
        self._ending = self._over = True
        if self._orphan:
            self._stop()
            return
        # Threads and exit handlers may take their time. What is said last is to arrive: the reactor is
        # stopped when the channel has been closed.
        self._say({"is": "done"})
        self.channel.close()
        self._reactor.callLater(_LAST_WISHES, self._stop)

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            # A SIGTERM that comes before ours is the handler, has stopped it.
            with contextlib.suppress(ReactorNotRunning):
                self._reactor.stop()


def _short(value: Any) -> Any:
    """Bound what callers may have made long: an id of a request is theirs."""
    return value if value is None or isinstance(value, int | float) else str(value)[:_LONGEST_NAME]


def fitting(documents: list[Document]) -> list[Document]:
    """Return what fits into a message: without the largest, should it ever be too much."""
    sizes = {document["name"]: len(json.dumps(document)) for document in documents}
    while sum(sizes.values()) > LONGEST - _ENVELOPE:
        largest = max(sizes, key=lambda name: sizes[name])
        _log.error("the figures {name} are left out: they are too many", name=largest)
        del sizes[largest]
    return [document for document in documents if document["name"] in sizes]


async def health_of(services: Iterable[IService]) -> list[dict[str, Any]]:
    """Ask services how they are, side by side.

    :param services: those that are :class:`~novasvc.interfaces.IHealthy` are asked.
    :return: what each tells.
    """
    healthy = [IHealthy(part) for part in services if IHealthy.providedBy(part)]
    return await gatherResults([part.health() for part in healthy], consumeErrors=True)


def make_server(order: Mapping[str, Any], sockets: Sequence[socket.socket], reactor: Any) -> IService:
    """Unpickle what launch_server was given, hand it its sockets, and call it if it makes the server.

    :raises NovasvcError: the server says what is wrong with it.
    """
    if order["problem"]:
        remedy = (
            'put what starts the program under `if __name__ == "__main__":`, and what needs a reactor, '
            "or starts threads, into a module of its own"
        )
        raise NotPreforkableError(order["name"], order["problem"], remedy)
    server = pickle.loads(base64.b64decode(order["server"]))  # noqa: S301 - see the import
    if IPreforkable.providedBy(server):
        server.adopt_sockets(sockets)
    return server if IService.providedBy(server) else server(reactor)


def parts(server: IService | None) -> Iterator[IService]:
    """Return a server and all that is in it."""
    if server is None:
        return
    yield server
    if IServiceCollection.providedBy(server):
        for part in server:
            yield from parts(part)
