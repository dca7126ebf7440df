"""The RPC client for threads: a call waits for its result, and raises what the client on the reactor raises."""

import os
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from inspect import signature
from threading import Event, Lock
from types import TracebackType
from typing import Any, Never, Self, cast
from weakref import WeakSet

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread

from novasvc.context import RequestContext
from novasvc.reactor.local import ReactorLocal
from novasvc.rpc.client import Client
from novasvc.rpc.errors import (
    ForkedClientError,
    ReactorStoppedError,
    ReactorThreadError,
    RPCTimeoutError,
    TooManyCallsError,
    TransportClosedError,
)
from novasvc.rpc.events.emitter import EventEmitter
from novasvc.rpc.gather import Gathered, Gathering

MAX_WAITING = 256
"""Threads that may wait in the calls of one client; a WSGI application has half as many by default."""

_LOOK = 5.0
"""Seconds between two looks of a waiting thread at the reactor: one that has not run in between is blocked."""

# Note [Waiting in a thread]
#
# The reactor keeps the time of a call: its timeout, its deadline, its keepalives. So a thread waits until the reactor
# has an outcome for it, and only guards against a reactor that has none to give: one that was stopped, and one that is
# blocked. Every few seconds the thread has the reactor run a function; if that has not run when it looks again, the
# call fails. A client that is closed ends the waits itself, in whichever thread close() is called.
#
# In the reactor's own thread a wait would never end, and after a fork there is no reactor. Both are errors at once.


@attrs.define(eq=False)
class _Wait:
    """A thread that waits for an outcome.

    :param what: the target and the method, for errors.
    :ivar outcome: the result or a Failure, as soon as :attr:`done` is set; the first one counts.
    """

    what: tuple[str, str]
    done: Event = attrs.field(factory=Event, init=False)
    outcome: Any = attrs.field(default=None, init=False)
    working: Deferred[Any] | None = attrs.field(default=None, init=False)
    _lock: Lock = attrs.field(factory=Lock, init=False)

    def end(self, outcome: Any) -> None:
        """Wake the thread with an outcome; called in any thread."""
        with self._lock:
            if not self.done.is_set():
                self.outcome = outcome
                self.done.set()

    def begin(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Begin in the reactor; called in its thread."""

        async def run() -> Any:
            return await work()

        if not self.done.is_set():
            self.working = Deferred.fromCoroutine(run()).addBoth(self.end)

    def cancel(self) -> None:
        """Cancel in the reactor what nobody waits for any more; called in its thread."""
        if self.working is not None:
            self.working.cancel()


class ReactorCalls:
    """Runs work in the reactor for threads that wait for it. See Note [Waiting in a thread].

    :param reactor: provides IReactorCore and IReactorFromThreads.
    :param bound: the number of threads that may wait.
    """

    def __init__(self, reactor: Any, bound: int) -> None:
        self._reactor = reactor
        self._bound = bound
        self._process = os.getpid()
        self._lock = Lock()
        self._waits: set[_Wait] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """The number of threads that wait."""
        return len(self._waits)

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked after the client was made."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Check that this thread may wait.

        :raises ForkedClientError: the client was made in another process, which forked this one.
        :raises ReactorThreadError: this is the reactor's thread.
        :raises ReactorStoppedError: the reactor does not run.
        """
        if self.is_forked:
            raise ForkedClientError(self._process)
        if not self._reactor.running:
            raise ReactorStoppedError
        if isInIOThread():
            raise ReactorThreadError

    def run(self, work: Callable[[], Awaitable[Any]], target: str, method: str) -> Any:
        """Run work in the reactor, in a copy of this thread's context variables; wait for its result.

        :param work: returns an awaitable with a deadline of its own.
        :param target: for errors, as ``method``.
        :raises TransportClosedError: :meth:`close` was called, before or meanwhile.
        :raises TooManyCallsError: too many threads wait.
        :raises RPCTimeoutError: the reactor is blocked.
        """
        self.check()
        wait = _Wait((target, method))
        with self._lock:
            if self._closed:
                raise TransportClosedError("sending")
            if len(self._waits) >= self._bound:
                raise TooManyCallsError(self._bound)
            self._waits.add(wait)
        try:
            self._reactor.callFromThread(copy_context().run, self._begin, wait, work)
            self._wait(wait)
        except BaseException:  # such as KeyboardInterrupt: nobody waits for the result any more
            self._reactor.callFromThread(wait.cancel)
            raise
        finally:
            with self._lock:
                self._waits.discard(wait)
        if isinstance(wait.outcome, Failure):
            wait.outcome.raiseException()
        return wait.outcome

    def close(self) -> None:
        """End all waits with TransportClosedError at once, and accept no more; called in any thread."""
        with self._lock:
            self._closed = True
            waits, self._waits = self._waits, set()
        for wait in waits:
            wait.end(Failure(TransportClosedError("waiting for a reply")))
        if isInIOThread():
            _cancel(waits)
        elif self._reactor.running:
            self._reactor.callFromThread(_cancel, waits)

    def _begin(self, wait: _Wait, work: Callable[[], Awaitable[Any]]) -> None:
        _closed_at_shutdown.get(self._reactor).add(self)
        wait.begin(work)

    def _wait(self, wait: _Wait) -> None:
        began = time.monotonic()
        turned: Event | None = None
        while not wait.done.wait(_LOOK):
            if not self._reactor.running:
                raise TransportClosedError("waiting for a reply")
            if turned is not None and not turned.is_set():
                problem = "the reactor of this process is blocked: see its log, and find what blocks its thread"
                raise RPCTimeoutError(*wait.what, time.monotonic() - began, unconfirmed=problem)
            turned = Event()
            self._reactor.callFromThread(turned.set)


def _cancel(waits: Iterable[_Wait]) -> None:
    for wait in waits:
        wait.cancel()


def _close_at_shutdown(reactor: Any) -> "WeakSet[ReactorCalls]":
    """Return a set of what is closed when the reactor stops: threads that wait then would keep it from its end."""
    closed: WeakSet[ReactorCalls] = WeakSet()

    def close() -> None:
        for calls in list(closed):
            calls.close()

    # Not "before": what drains its requests then may call others to the end.
    reactor.addSystemEventTrigger("during", "shutdown", close)
    return closed


_closed_at_shutdown = ReactorLocal(_close_at_shutdown)


class BlockingClient:
    """Call methods of remote services from a thread; each call waits for its result.

    The parameters of a call, its timeouts and its errors are those of :class:`novasvc.rpc.Client`. It may be used by
    many threads. It must not be used in the reactor's thread, which a wait would block, nor in a process that was
    forked after it was made.

    :param client: makes the calls, on the reactor; or a function that returns an awaitable of it, called in the
        reactor's thread before each call.
    :param reactor: the running reactor of the client.
    :param events: publishes events, on the reactor; or a function that returns an awaitable of it, as for ``client``.
    :param max_waiting: threads that may wait at a time; the next call fails with TooManyCallsError.
    """

    def __init__(
        self,
        client: Client | Callable[[], Awaitable[Client]],
        *,
        reactor: Any,
        max_waiting: int = MAX_WAITING,
        events: EventEmitter | Callable[[], Awaitable[EventEmitter]] | None = None,
        _calls: ReactorCalls | None = None,
        _changes: dict[str, Any] | None = None,
        _close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._events = events
        self._reactor = reactor
        self._owns_calls = _calls is None
        self._calls = ReactorCalls(reactor, max_waiting) if _calls is None else _calls
        self._changes = _changes or {}
        self._closing = _close

    @property
    def waiting(self) -> int:
        """The number of threads that wait in a call; prepared clients share it."""
        return self._calls.waiting

    def prepare(self, **changes: Any) -> "BlockingClient":
        """Return a client with some parameters changed; the others are this client's.

        :param changes: those of :meth:`novasvc.rpc.Client.prepare`: topic, server, version, namespace, timeout...
        :raises TypeError: there is no such parameter.
        """
        unknown = changes.keys() - _PREPARED
        if unknown:
            raise TypeError(f"prepare() takes {', '.join(sorted(_PREPARED))}; not {', '.join(sorted(unknown))}")
        return BlockingClient(
            self._client,
            reactor=self._reactor,
            events=self._events,
            _calls=self._calls,
            _changes={**self._changes, **changes},
        )

    def call(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> Any:
        """Call a method and wait for its result; see :meth:`novasvc.rpc.Client.call`.

        :return: the result, of JSON types.
        :raises TransportClosedError: the client or its service was stopped, before the call or meanwhile.
        :raises TooManyCallsError: too many threads wait.
        :raises ReactorThreadError: this is the reactor's thread.
        :raises ForkedClientError: this process was forked after the client was made.
        :raises ReactorStoppedError: the reactor does not run.
        """
        return self._run("call", context, method, positional, args)

    def cast(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> None:
        """Send a message that runs a method, and wait until it is sent; see :meth:`novasvc.rpc.Client.cast`."""
        self._run("cast", context, method, positional, args)

    def fanout(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> None:
        """Run a method on every server of the topic; otherwise as :meth:`cast`."""
        self._run("fanout", context, method, positional, args)

    def gather(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> Gathered:
        """Call a method of all servers of the topic, and wait for their answers; see :meth:`novasvc.rpc.Client.gather`.

        :return: the answers of those that have answered in time, and the hosts that have not.
        """
        return cast("Gathered", self._run("gather", context, method, positional, args))

    def emit(
        self, context: RequestContext, event_type: str = "", payload: Any = None, *, priority: str = "info"
    ) -> None:
        """Publish an event, and wait until it is sent; see :meth:`novasvc.rpc.EventEmitter.emit`.

        :raises TypeError: this client was made without ``events``.
        """
        events = self._events
        if events is None:
            raise TypeError(
                "this client cannot publish events; use manager.attachments.blocking, environ['novasvc.rpc'] or "
                "novasvc.blocking.connect(), or give BlockingClient its events"
            )

        async def work() -> None:
            emitter = events if isinstance(events, EventEmitter) else await events()
            await emitter.emit(context, event_type, payload, priority=priority)

        self._calls.run(work, "events", event_type)

    def close(self) -> None:
        """End the waiting calls of all clients prepared from this one, and accept no more.

        A prepared client does nothing here, because others share its connection: so does ``environ["novasvc.rpc"]``.
        A client of :func:`novasvc.blocking.connect` disconnects as well. Closing twice does nothing, and closing in a
        process that was forked leaves the parent's client as it is.

        :raises ReactorThreadError: this is the reactor's thread, and there is something to disconnect.
        """
        if not self._owns_calls or self._calls.is_forked:
            return
        connected = self._closing is not None and self._reactor.running  # with the reactor, its connections have ended
        if connected:
            self._calls.check()
        closing, self._closing = self._closing, None
        self._calls.close()
        if connected and closing is not None:
            ReactorCalls(self._reactor, 1).run(closing, "the client", "close")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self, how: str, context: RequestContext, method: str, positional: tuple[Never, ...], args: dict[str, Any]
    ) -> Any:
        async def work() -> Any:
            client = self._client if isinstance(self._client, Client) else await self._client()
            if self._changes:
                client = client.prepare(**self._changes)
            sending = getattr(client, how)(context, method, *positional, **args)
            return await (sending.all() if isinstance(sending, Gathering) else sending)

        return self._calls.run(work, str(self._changes.get("topic", "the target")), method)


_PREPARED = frozenset(signature(Client.prepare).parameters) - {"self"}
