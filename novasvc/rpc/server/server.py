"""The RPC server: starts, drains and stops what serves one target."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from novasvc.errors import StateError
from novasvc.interfaces import IListener, ITransport, Reachability
from novasvc.middleware import Chain, load_middleware
from novasvc.middleware.invocation import SERVE
from novasvc.rpc.baseapi import write_ping
from novasvc.rpc.endpoint import Endpoints, Method
from novasvc.rpc.identity.authorization import Authorizer
from novasvc.rpc.server.admission import EXTRA_ROOM, Admission, Siblings
from novasvc.rpc.server.dispatcher import Dispatcher
from novasvc.rpc.server.unstarted_record import UnstartedRecord
from novasvc.rpc.target import Target
from novasvc.telemetry.metrics import DeliveryMetrics, MethodMetrics

_HOLD_WHILE_PAUSED = 0.5
"""Seconds after which a paused server gives a request back: the topic's other servers can run it in time."""


class Server:
    """Serve one target: run the exposed method that each request names, and publish its reply.

    :class:`novasvc.rpc.server.dispatcher.Dispatcher` decides about each delivery, and begins the calls.

    :param transport: an open transport.
    :param target: topic and server to serve; the topic's fanout is served too.
    :param endpoints: the methods that can be called.
    :param clock: measures deadlines.
    :param concurrency: calls in flight at a time, > 0; also the prefetch. Prefetched deliveries wait here
        unacknowledged until a call ends; all other messages wait in the broker.
    :param run_blocking: runs a function in a thread and returns a Deferred of its result.
    :param max_deliveries: quarantine an idempotent call after this many processes died while running it, > 0.
    :param send_tracebacks: send callers the whole traceback of an error, not only its last line.
    :param unstarted_record: requests that dead siblings received and did not begin; None without siblings.
    :param operations: returns the request ids of this node's other operations: periodic tasks and outgoing calls.
    :param siblings: asks this node's other workers during a drain; see :mod:`novasvc.rpc.server.admission`.
    :param worker: the number of this worker process, told to callers with an error; None without workers.
    :param middleware: what :func:`novasvc.middleware.load_middleware` takes, outermost first, around methods.
    :param authorizer: decides about the callers of methods with ``allow=``; None allows nobody.
    :raises MiddlewareError: a middleware cannot be used.
    """

    def __init__(
        self,
        transport: ITransport,
        target: Target,
        endpoints: Endpoints,
        *,
        clock: IReactorTime,
        concurrency: int = 64,
        run_blocking: Callable[..., Deferred[Any]],
        max_deliveries: int = 3,
        send_tracebacks: bool = False,
        unstarted_record: UnstartedRecord | None = None,
        operations: Callable[[], Collection[str]] = frozenset,
        siblings: Siblings | None = None,
        worker: int | None = None,
        middleware: Iterable[Any] = (),
        authorizer: Authorizer | None = None,
    ) -> None:
        self._transport = transport
        self._target = target
        self._clock = clock
        self._concurrency = concurrency
        self._dispatcher = Dispatcher(
            transport,
            target,
            endpoints,
            clock,
            concurrency=concurrency,
            run_blocking=run_blocking,
            max_deliveries=max_deliveries,
            send_tracebacks=send_tracebacks,
            unstarted_record=unstarted_record,
            consuming=self._is_consuming,
            hold_after=self._hold_after,
            worker=worker,
            chain=Chain.of(load_middleware(middleware), SERVE),
            authorizer=authorizer,
        )
        self._operations = operations
        self._siblings = siblings
        self._admission: Admission | None = None
        self._listener: IListener | None = None
        self._stopping = self._paused = False
        self._state = "new"

    # -- state ---------------------------------------------------------------------------------

    @property
    def delivery_metrics(self) -> DeliveryMetrics:
        """Metrics of the messages that are not run, or whose replies are lost."""
        return self._dispatcher.delivery_metrics

    @property
    def method_metrics(self) -> Mapping[Method, MethodMetrics]:
        """Metrics by method."""
        return self._dispatcher.method_metrics

    @property
    def recent_errors(self) -> list[dict[str, Any]]:
        """The last errors that methods raised; see :mod:`novasvc.rpc.server.recent_errors`."""
        return self._dispatcher.execution.recent_errors.rows()

    @property
    def live(self) -> bool:
        """Whether the server consumes from all its queues; false during a drain."""
        return self._admission is None and self._listener is not None and bool(self._listener.live)

    def verify(self, timeout: float) -> Deferred[Reachability]:
        """Verify that messages reach this server; see :meth:`novasvc.interfaces.IListener.verify`.

        :param timeout: seconds, > 0.
        :return: Deferred of the Reachability, which holds a problem if the server does not consume yet.
        """
        if self._listener is None:
            return succeed(Reachability("it has not started to consume"))
        verifying: Deferred[Reachability] = self._listener.verify(write_ping, timeout)
        return verifying

    @property
    def in_flight(self) -> int:
        """The number of running methods and of replies being published."""
        return len(self._dispatcher.execution)

    def running_calls(self) -> list[dict[str, Any]]:
        """Return the running calls, oldest first, including calls that were cut short and have not ended.

        Calls of methods that are not counted are left out.

        :return: one mapping per call: {"method": str, "request_id": str, "seconds": float since it began}, and if it
            has reported progress, {"fraction": float, "text": str} as well.
        """
        return self._dispatcher.execution.running_calls()

    def operations(self) -> set[str]:
        """Return the request ids of this node's operations: running methods, periodic tasks and outgoing calls."""
        return {*self._dispatcher.execution.operations(), *self._operations()}

    # -- start and stop ------------------------------------------------------------------------

    def pause(self) -> None:
        """Begin no call until :meth:`resume`. Called before :meth:`start`.

        Requests are held only shortly, and given back: a pause may take longer than their callers wait, and the topic's
        other servers can run them.
        """
        self._paused = True
        self._dispatcher.limit(0)

    def resume(self) -> None:
        """Begin the calls that have arrived, and all later ones. Has no effect unless paused, or once closed."""
        if not self._paused or self._state == "closed":
            return
        self._paused = False
        self._dispatcher.limit(self._concurrency)
        self._dispatcher.start_holding()

    def start(self) -> Deferred[None]:
        """Start consuming. Called once.

        :return: Deferred[None], fired when the consumers are active; fails with the transport's error, or
            with StateError if the server was started before.
        """
        if self._state != "new":
            return fail(StateError(f"the RPC server of {self._target}", self._state, "start"))
        self._state = "started"
        self._dispatcher.use_scope(copy_context())
        listening: Deferred[IListener] = self._transport.listen(
            self._target, self._dispatcher.receive, self._concurrency
        )
        return listening.addCallback(self._started)

    def _started(self, listener: IListener) -> Deferred[None] | None:
        self._listener = listener
        if self._state == "closed":  # by a stop while it started
            return self.stop_consuming().addBoth(lambda _: listener.close())
        self._dispatcher.start_holding()
        return None if self._admission is None else self._cancel_topic(self._admission)

    def _hold_after(self) -> float | None:
        if self._paused:
            return _HOLD_WHILE_PAUSED
        seconds: float | None = None if self._listener is None else self._listener.hold_after
        return seconds

    def _is_consuming(self) -> bool:
        return self._stopping or (self._listener is not None and bool(self._listener.live))

    def drain(self) -> Deferred[None]:
        """Begin a graceful shutdown: from now on, run only calls that belong to operations under way.

        Other waiting requests are settled by the rules of :mod:`novasvc.rpc.server.admission`. Has no effect if the
        server drains already or is not started.

        :return: Deferred[None], fired when no message to the topic and no fanout will be delivered any more.
        """
        if self._state != "started":
            return succeed(None)
        self._state = "draining"
        admission = self._admission = Admission(
            str(self._target), self._dispatcher, self._clock, operations=self.operations, siblings=self._siblings
        )
        self._dispatcher.drain(admission)
        return self._cancel_topic(admission)

    def _cancel_topic(self, admission: Admission) -> Deferred[None]:
        if self._listener is None:
            return succeed(None)  # _started() calls this again with the listener.
        cancelled: Deferred[None] = self._listener.cancel_topic(self._concurrency + EXTRA_ROOM)
        return cancelled.addBoth(lambda _: admission.topic_cancelled())

    def stop_consuming(self) -> Deferred[None]:
        """Stop consuming; calls that were delivered still run.

        Redelivered calls whose deaths would not be counted are requeued: counting needs another delivery.

        :return: Deferred[None], fired when no further delivery will arrive.
        """
        if self._listener is None:
            return succeed(None)
        cancelled: Deferred[None] = self._listener.cancel()
        self._stopping = True
        if self._state != "closed":
            self._dispatcher.stop_moving()
        return cancelled

    def drained(self) -> Deferred[None]:
        """Wait until no call waits or runs, and all replies are published.

        :return: a new Deferred[None] each time; cancelling it stops only this wait.
        """
        return self._dispatcher.when_idle()

    def cut_short(self, reason: str) -> None:
        """Cancel the running methods, and requeue the waiting calls.

        A caller whose method was cut short gets a MethodTimeoutError. An idempotent call is requeued
        instead, to run again elsewhere.

        :param reason: text of the MethodTimeoutError: why, and what the caller can do; not "".
        """
        self._dispatcher.cut_short(reason)

    def close(self, reason: str | None = None) -> Deferred[None]:
        """Cut short the running calls, publish their replies, and close the listener.

        :param reason: as for :meth:`cut_short`; by default that the server was closed.
        :return: Deferred[None], fired when the listener is closed. Methods that were cut short may clean up still: see
            :meth:`drained`.
        """
        self._state = "closed"
        # First, so that the broker does not redeliver to this server what it requeues now.
        stopped = self.stop_consuming()
        closed = f"the RPC server of {self._target} was closed; see what the method did before calling again"
        published = self._dispatcher.close(reason or closed)
        return stopped.addBoth(lambda _: published).addBoth(self._close_listener)

    def _close_listener(self, _: object) -> Deferred[None]:
        self._dispatcher.release()
        closed: Deferred[None] = succeed(None) if self._listener is None else self._listener.close()
        return closed
