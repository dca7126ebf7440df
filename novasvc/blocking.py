"""RPC calls from any thread, and from programs without a reactor: each call waits for its result.

In a program of any kind::

    from novasvc import RequestContext, blocking

    with blocking.connect() as client:
        stock = client.prepare(topic="stock", timeout=5)
        print(stock.call(RequestContext(), "reserve", item="tea", amount=2))

In an application that :class:`novasvc.service.WSGIService` serves, ``environ["novasvc.rpc"]`` is such a client. In a
manager's method that runs in a thread (``@rpc.expose(blocking=True)``) ``self.attachments.blocking`` is one.
"""

import atexit
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from weakref import WeakSet

from twisted.internet.defer import Deferred
from twisted.logger import STDLibLogObserver, globalLogBeginner

from novasvc._compat import is_log_begun
from novasvc.config import Settings, load, masked_url
from novasvc.errors import NovasvcError
from novasvc.node.manager_resources import make_client, make_emitter
from novasvc.node.runtime import Runtime, close_quietly
from novasvc.reactor.monotonic import use_monotonic_clock
from novasvc.rpc import Client as ReactorClient
from novasvc.rpc import EventEmitter
from novasvc.rpc.blocking import MAX_WAITING, BlockingClient, ReactorCalls
from novasvc.rpc.contracts.stub import stub
from novasvc.rpc.errors import ForkedClientError, ReactorStoppedError

__all__ = ["MAX_WAITING", "Client", "connect", "stub"]

Client = BlockingClient

_START = 10.0
"""Seconds for the reactor to start in its thread."""
_CLOSE = 5.0
"""Seconds for the broker to close the connections."""

# Note [The reactor of a program that has none]
#
# Twisted has one reactor for a process, and libraries use it without being given it. So connect() runs that one, in a
# daemon thread, and every client of the process shares it. A reactor cannot be started twice: it runs until the process
# ends, and a program that runs it in its own main thread later cannot call connect() before. After a fork the thread is
# not there, and the reactor's files are shared with the parent: the child gets an error.

_lock = Lock()
_started_in = 0
_clients: "WeakSet[BlockingClient]" = WeakSet()


def connect(
    transport_url: str | None = None,
    *,
    settings: Settings | None = None,
    timeout: float | None = None,
    max_waiting: int = MAX_WAITING,
) -> Client:
    """Connect to the broker, and return a client for any thread of this process.

    The client uses the reactor of this process if it runs, in another thread than this one. Otherwise the reactor is
    started in a daemon thread, in which it runs until the process ends. Events are published under the name of the
    program and the host. With ``memory:``, the client reaches the nodes
    of this user on this host. Close the client, or use it in a ``with`` statement.

    :param transport_url: of the broker; None is that of the settings.
    :param settings: None loads ``NOVASVC_*`` variables and the files in ``NOVASVC_CONFIG``, as a node does.
    :param timeout: seconds to wait for a reply; None is the setting rpc_response_timeout.
    :param max_waiting: threads that may wait in a call at a time.
    :raises ConfigurationError: the settings are invalid.
    :raises MiddlewareError: a middleware of rpc_middleware cannot be used.
    :raises BrokerError: the broker cannot be reached, or refuses the connection.
    :raises ReactorThreadError: this is the reactor's thread.
    :raises ForkedClientError: the reactor was started before this process was forked.
    """
    if settings is None:
        given: Mapping[str, Any] = {} if transport_url is None else {"transport_url": transport_url}
        settings = load((), os.environ, given).settings
    elif transport_url is not None:
        raise TypeError("give transport_url or settings, not both")
    reactor = _running_reactor()
    runtime = Runtime.from_settings(settings, reactor)
    calls = ReactorCalls(reactor, 1)

    async def open_client() -> tuple[ReactorClient, EventEmitter]:
        transport = await runtime.broker.acquire()
        try:
            client = make_client(runtime, transport, None)
            events = make_emitter(runtime, transport, f"{Path(sys.argv[0]).stem or 'python'}.{settings.host}")
            return client if timeout is None else client.prepare(timeout=timeout), events
        except BaseException:  # such as a key file that cannot be read: the program may go on without a client
            await close_quietly(runtime.broker.release, runtime.broker.name)
            raise

    client, events = calls.run(open_client, masked_url(settings.transport_url), "connect")

    async def close_client() -> None:
        await client.close()
        await Deferred.fromCoroutine(runtime.broker.release()).addTimeout(_CLOSE, reactor, lambda *_: None)

    connected = BlockingClient(client, reactor=reactor, max_waiting=max_waiting, events=events, _close=close_client)
    _clients.add(connected)
    return connected


def _running_reactor() -> Any:
    """Return the reactor of this process; start it in a daemon thread if it does not run."""
    from twisted.internet import reactor as the_reactor  # noqa: PLC0415 - importing novasvc must not install a reactor

    global _started_in  # noqa: PLW0603 - there is one reactor for a process
    reactor: Any = the_reactor
    with _lock:
        if _forked or _started_in not in {0, os.getpid()}:
            raise ForkedClientError(_started_in or os.getppid())
        if reactor.running:
            return reactor
        if _started_in:
            raise ReactorStoppedError
        _started_in = os.getpid()
        if not is_log_begun():
            # To the program's own logging: events would be kept for a log that never begins.
            globalLogBeginner.beginLoggingTo([STDLibLogObserver("novasvc")], redirectStandardIO=False)
        use_monotonic_clock(reactor)
        started = Event()
        reactor.callWhenRunning(started.set)
        # Signals are the program's.
        run = partial(reactor.run, installSignalHandlers=False)
        Thread(target=run, name="novasvc-reactor", daemon=True).start()
        if not started.wait(_START):
            raise ReactorStoppedError
        atexit.register(_close_all)
    return reactor


_forked = False


def _note_fork() -> None:
    """Remember in a child that the reactor ran when it was forked. Runs in the child, after the fork."""
    global _forked, _lock  # noqa: PLW0603 - of the process
    reactor = sys.modules.get("twisted.internet.reactor")
    _forked = _forked or (reactor is not None and bool(getattr(reactor, "running", False)))
    _lock = Lock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_note_fork)


def _close_all() -> None:
    """Disconnect from the broker when the program ends, as far as it has not closed its clients."""
    if os.getpid() == _started_in:
        for client in list(_clients):
            with suppress(NovasvcError):
                client.close()
