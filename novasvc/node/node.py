"""A node: the parts of a service, and the order in which they start and stop."""

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel

from novasvc._version import __version__
from novasvc.errors import NovasvcError, add_remedy, describe
from novasvc.interfaces import IServiceRegistry, ITransport
from novasvc.manager import Manager
from novasvc.middleware import Chain
from novasvc.middleware.invocation import EVENT
from novasvc.node.deadline import StopDeadline, TooLateError
from novasvc.node.elections import make_elections
from novasvc.node.endpoint import NodeAPI
from novasvc.node.errors import DirectoryError, StartError, UnreachableError
from novasvc.node.fence import Fence
from novasvc.node.fleet_version import check_service_version
from novasvc.node.health import NodeHealth
from novasvc.node.history import MethodHistory
from novasvc.node.lifecycle import Lifecycle
from novasvc.node.manager_resources import attach_resources, make_client, make_emitter
from novasvc.node.outages import retry_outages
from novasvc.node.reachability import ReachabilityCheck
from novasvc.node.registration import Registration
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.node.twin import tell_twin
from novasvc.periodic import TaskRunner
from novasvc.reactor.abandon import abandon_on_cancel, completion
from novasvc.registry.errors import (
    ServiceForcedDownError,
    ServiceNotFoundError,
    ServiceTwinError,
)
from novasvc.registry.heartbeat import Heartbeat, ServiceIdentity
from novasvc.registry.record import ServiceRecord
from novasvc.rpc import BaseAPI, Client, Endpoints, EventListener, Server
from novasvc.rpc.errors import TransportClosedError
from novasvc.rpc.events.declare import EventHandler, event_handlers
from novasvc.rpc.target import Target
from novasvc.telemetry.flight import note
from novasvc.telemetry.logs import node_fields, pluralize

_log = Logger()
_T = TypeVar("_T")

FENCE_CLEANUP_TIMEOUT = 5.0
"""Seconds that cancelled calls, handlers and tasks of a node that is fenced have to clean up.

Less than the 10 s after fence_after at which its work may be taken over.
"""

VERIFY_INTERVAL = 10.0
"""Seconds between verifications that messages reach a node without heartbeats."""


@attrs.define(eq=False, kw_only=True)
class Node:
    """One manager with its RPC server, row, heartbeat and periodic tasks.

    :param registry_connection: the connection to the database, or to the conductor.
    :param report_interval: seconds between heartbeats; 0 for no heartbeats.
    :param periodic_enable: run the periodic tasks.
    :ivar start_error: the last error that delayed or ended the start; None once the start went on.
    :ivar running_since: seconds on the reactor's clock; None before it ran.
    :ivar leaving: the SystemExit of a hook during the stop: the exit status that the manager wants for its process.
    """

    # Note [Order of start and stop]
    #
    # Start: check, row, init_host, pre_start_hook, consume, post_start_hook, heartbeat, tasks. The row
    # comes first, so that a hook can rely on it, and so that a second start of the service ends before
    # it does anything; messages come after the hooks that prepare for them; the first heartbeat comes
    # when the node can do what it announces. A service that is forced down runs its hooks, and does not
    # consume until it is let up: see novasvc.node.fence. Only heartbeats would tell the node that it was
    # forced down since it registered, so until the first one its row is read instead: before it
    # consumes, and while post_start_hook runs. If it cannot be read for fence_after, the node is fenced.
    #
    # Stop is not simply the reverse. First nothing new is accepted (no runs, and only requests of
    # operations under way, see novasvc.rpc.server.admission). Then everything under way is finished. Only
    # then does the node disconnect. It sends heartbeats while it drains, because a node without
    # heartbeats is declared down, and its work may be given to another node.
    identity: ServiceIdentity
    topic: str
    manager: Manager
    tasks: TaskRunner
    runtime: Runtime
    registry_connection: SharedConnection[IServiceRegistry]
    report_interval: float
    periodic_enable: bool
    lifecycle: Lifecycle = attrs.field(init=False)
    health: NodeHealth = attrs.field(init=False)
    waiting_for: str | None = attrs.field(default=None, init=False)
    start_error: NovasvcError | None = attrs.field(default=None, init=False)
    running_since: float | None = attrs.field(default=None, init=False)
    leaving: SystemExit | None = attrs.field(default=None, init=False)
    registry: IServiceRegistry | None = attrs.field(default=None, init=False)
    transport: ITransport | None = attrs.field(default=None, init=False)
    client: Client | None = attrs.field(default=None, init=False)
    server: Server | None = attrs.field(default=None, init=False)
    heartbeat: Heartbeat | None = attrs.field(default=None, init=False)
    reachability: ReachabilityCheck | None = attrs.field(default=None, init=False)
    history: MethodHistory | None = attrs.field(default=None, init=False)
    registration: Registration = attrs.field(init=False)
    fence: Fence = attrs.field(init=False)
    _deadline: StopDeadline = attrs.field(init=False)
    _tasks_ended: Deferred[None] = attrs.field(factory=lambda: succeed(None), init=False)
    _topic_cancelled: Deferred[None] = attrs.field(factory=lambda: succeed(None), init=False)
    _events_cancelled: Deferred[None] = attrs.field(factory=lambda: succeed(None), init=False)
    endpoints: Endpoints = attrs.field(init=False)
    event_handlers: Sequence[EventHandler] = attrs.field(init=False)
    events: EventListener | None = attrs.field(default=None, init=False)
    _step: str = attrs.field(default="", init=False)
    _unreached: str | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.endpoints = Endpoints(self.manager, *self.manager.additional_endpoints, BaseAPI(self.topic), NodeAPI(self))
        self.event_handlers = event_handlers(self.manager, *self.manager.additional_endpoints)
        self.health = NodeHealth(self)
        self.registration = Registration(self.runtime, self.identity)
        self.fence = Fence(
            self.identity,
            self._leave_service,
            self._enter_service,
            self._begin_again,
            self.runtime.reactor,
            self.runtime.settings.fence_after,
        )
        self._deadline = StopDeadline(self.runtime.reactor)
        self.lifecycle = Lifecycle(f"node {self.identity}", self.begin, self.end, self._entered)

    @property
    def record(self) -> ServiceRecord | None:
        """The node's row, as it was last registered; None before that."""
        return self.registration.record

    def _entered(self, state: str) -> None:
        if state == "draining":
            self._begin_drain()
            grace = self.runtime.settings.graceful_shutdown_timeout
            self._deadline.begin(grace)
            self.registration.drain(self.registry, grace, lambda: len(self.operations()))
        if state == "running":
            self.running_since = self.runtime.reactor.seconds()
        note("node", f"{self.identity} is {state}")
        _log.info("{node} is {state}", node=self.identity, state=state, **self._log_fields())

    def hurry(self) -> None:
        """Limit the rest of the stop to a second, by cancelling what is under way.

        Called when the stop has begun.
        """
        if self.lifecycle.state not in {"stopped", "failed"}:
            self._deadline.interrupt()

    def _log_fields(self) -> dict[str, str | None]:
        return {"host": self.identity.host, "binary": self.identity.binary, "topic": self.identity.topic}

    # -- start ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start the parts in order.

        :raises StartError: a part could not be started; it is logged too.
        """
        node_fields.set(self._log_fields())
        self._deadline.clear()
        try:
            await self._start_parts()
        except (Exception, SystemExit) as error:  # a hook's SystemExit fails the start, and does not end the process
            if isinstance(error, CancelledError | TransportClosedError) and self.lifecycle.state == "draining":
                raise CancelledError from error  # a stop interrupted the start
            known = isinstance(error, NovasvcError)
            add_remedy(error)
            failed = StartError(str(self.identity), self._step, str(error) if known else describe(error))
            _log.critical("{error}", error=failed)
            if not known:
                _log.failure("traceback of the failed start", level=LogLevel.debug)
            raise failed from error

    async def _start_parts(self) -> None:
        _log.info("starting {topic} node {node}, version {v}", topic=self.topic, node=self.identity, v=__version__)
        self._step = "basic_config_check"
        self.basic_config_check()

        self._step = "registration"
        connection = self.registry_connection
        registry = self.registry = await self._retry_outages(connection.name, connection.acquire)
        if not self.runtime.settings.allow_older_service:
            down_time = self.runtime.settings.service_down_time
            identity = self.identity
            await self._retry_outages(connection.name, lambda: check_service_version(registry, identity, down_time))
        record = await self._register(registry)
        self.registration.keep_starting(registry)

        self._step = "transport"
        transport = self.transport = await self._retry_outages("broker", self.runtime.broker.acquire)
        self.client = make_client(self.runtime, transport, lambda: registry)
        events = make_emitter(self.runtime, transport, f"{self.topic}.{self.identity.host}")
        attach_resources(
            self.manager, self.runtime, self.client, registry, self.tasks, events, self.registration.number
        )
        await self._hook("init_host")
        await self._hook("pre_start_hook")

        self._step = "consumers"
        checks = [self._why_not_consuming, self.why_not_reached]
        clock, identity = self.runtime.reactor, self.identity
        heartbeat = self.heartbeat = Heartbeat(
            registry, identity, record, clock, self.report_interval, self.fence, checks, self._tell_withheld
        )
        await heartbeat.hear()
        if not self._stays():  # a stop has begun meanwhile
            raise CancelledError
        if not self.fence.is_fenced:
            await self._retry_outages("broker", lambda: self._serve(transport))
        self.fence.start(partial(getattr, heartbeat, "confirmed_at"))
        await self._run_post_start_hook(heartbeat)
        if not self._stays():  # the stop has cancelled the last reading of the row, which tells no error
            raise CancelledError

        self._step = "heartbeat"
        await heartbeat.start()
        self._start_tasks()
        await self.registration.enter(registry, "ready", reason=heartbeat.withheld)

    async def _run_post_start_hook(self, heartbeat: Heartbeat) -> None:
        """Call post_start_hook, and read the row meanwhile as often as heartbeats are sent afterwards."""
        hearing = LoopingCall(copy_context().run, heartbeat.hear)
        hearing.clock = self.runtime.reactor
        ended: Deferred[Any] = succeed(None)
        if self.report_interval:
            ended = hearing.start(self.report_interval, now=False)
            ended.addErrback(lambda failure: failure.trap(CancelledError) and None)  # by the stop of the heartbeat
            ended.addErrback(
                lambda failure: _log.failure("the row of {node} is not read any more", failure, node=self.identity)
            )
        try:
            await self._hook("post_start_hook")
        finally:
            if hearing.running:
                hearing.stop()
        await ended

    async def _register(self, registry: IServiceRegistry) -> ServiceRecord:
        def wait_for_twin(error: ServiceTwinError) -> None:
            self.waiting_for, self.start_error = "end of another start", error

        self.fence.reset()
        try:
            record = await self.registration.begin(
                registry, lambda attempt: self._retry_outages(self.registry_connection.name, attempt), wait_for_twin
            )
        except ServiceTwinError as error:
            self.waiting_for = None
            await tell_twin(self.runtime, self.topic, self.identity, error)
            raise
        if record.forced_down:
            self.fence.forced_down(ServiceForcedDownError(record.name))
        return record

    def _start_tasks(self) -> None:
        # A node that was let up while it starts has started them already.
        wanted = self.periodic_enable and not self.fence.is_fenced and not self.tasks.is_started
        if wanted and self.registry is not None:
            self.tasks.start(make_elections(self.runtime, self.identity, self.topic, self.registry))

    async def _begin_again(self) -> ServiceRecord:
        """Register anew in a database that has lost the row, and give the manager its new number."""
        assert self.registry is not None
        record = await self.registration.begin_again(self.registry)
        self.manager.attach(attrs.evolve(self.manager.attachments, incarnation=self.registration.number))
        if self.lifecycle.state == "running":
            await self.registration.enter(self.registry, "ready")
        return record

    def _tell_withheld(self, reason: str | None) -> None:
        """Tell the registry why no heartbeats are sent, or that they are again."""
        if self.lifecycle.state == "running" and not self.fence.is_fenced:
            self.registration.enter(self.registry, "ready", reason=reason)

    # -- fence ---------------------------------------------------------------------------------

    async def _leave_service(self, reason: str) -> None:
        """Take in nothing from now on, and cancel what is under way."""
        node_fields.set(self._log_fields())
        server, events, reachability = self.server, self.events, self.reachability
        self.server = self.events = self.reachability = None
        if reachability is not None:
            self._unreached = reachability.problem
            reachability.stop()
        if self.history is not None:
            self.history.stop()
        tasks_ended = self.tasks.stop()
        ended = [tasks_ended]
        self.tasks.cancel_running()
        if server is not None:
            ended += server.close(f"{self.identity} is fenced: {reason}"), server.drained()
        if events is not None:
            ended += events.drain(), events.drained()
            events.cut_short()
        # What was cancelled may clean up in a `finally` that awaits something.
        cleaned_up = completion(DeferredList(ended, consumeErrors=True))
        try:
            with suppress(DeferredTimeoutError):
                await cleaned_up.addTimeout(FENCE_CLEANUP_TIMEOUT, self.runtime.reactor)
        finally:
            tasks_ended.cancel()
            await _close(events)

    async def _enter_service(self, beat: Callable[[], Awaitable[None]]) -> None:
        """Take in calls, events and runs of tasks again, as soon as a heartbeat is written.

        :param beat: writes it.
        :raises RPCError: the node cannot consume, or messages do not reach it.
        :raises CancelledError: the node stops.
        """
        if self.transport is None or not self._stays():
            raise CancelledError
        await self._serve(self.transport, beat)
        events, server = self.events, self.server
        self.fence.lift()
        self._start_tasks()
        # Last, because what has arrived begins at once, and may stop the node.
        if events is not None:
            events.resume()
        if server is not None:
            server.resume()

    def _stays(self) -> bool:
        return self.lifecycle.state in {"starting", "running"}

    async def _serve(self, transport: ITransport, beat: Callable[[], Awaitable[None]] | None = None) -> None:
        """Take in calls and events. A failure closes what was begun, because the next attempt begins anew.

        :param beat: writes the heartbeat without which nothing that arrives is begun: it waits for ``resume()`` of the
            server and of the listener of events. None begins at once.
        """
        try:
            await self._begin_serving(transport, beat)
        except CancelledError:
            raise  # the stop closes what was begun
        except Exception:
            events, server = self.events, self.server
            self.events = self.server = None
            await _close(events, server)
            raise

    async def _begin_serving(self, transport: ITransport, beat: Callable[[], Awaitable[None]] | None) -> None:
        server = await self._consume(transport, paused=beat is not None)
        interval = self.report_interval or VERIFY_INTERVAL
        reachability = ReachabilityCheck(
            server.verify, interval, self.runtime.reactor, self.runtime.random_source, self._unreached
        )
        if reachability.problem is not None:
            await reachability.verify()
            if not self._stays():  # a stop cancels the verification, which then keeps the last result
                raise CancelledError
            if reachability.problem is not None:
                raise UnreachableError(str(self.identity), reachability.problem)
        if beat is not None:
            await beat()
        if not self._stays():  # a stop has begun meanwhile, and would not end the verifications
            raise CancelledError
        self._unreached = None
        self.reachability = reachability
        reachability.start()
        if self.history is None:  # a node that enters service again goes on with its history
            self.history = MethodHistory(server.method_metrics, server.delivery_metrics, self.runtime.reactor)
        self.history.start()

    async def _consume(self, transport: ITransport, *, paused: bool) -> Server:
        """Start to consume requests and events; return the server of the requests.

        :param paused: what arrives waits for ``resume()``.
        """
        settings = self.runtime.settings
        self.runtime.authorizer.warn_of_refusals(self.endpoints)
        # First, because an event may begin twice: if the second fails, again and again, the first has received some.
        if self.event_handlers:
            listener = self.events = EventListener(
                transport,
                self.topic,
                self.event_handlers,
                clock=self.runtime.reactor,
                run_blocking=self.runtime.run_blocking,
                notification_topic=settings.event_topic,
                concurrency=settings.rpc_concurrency,
                attempts=settings.event_attempts,
                retry_delay=settings.event_retry_delay,
                chain=Chain.of(self.runtime.middleware, EVENT),
            )
            if paused:
                listener.pause()
            await listener.start()
            if not self._stays():  # a stop has begun meanwhile, and knows of no server
                raise CancelledError
        server = self.server = Server(
            transport,
            Target(self.topic, self.identity.host),
            self.endpoints,
            clock=self.runtime.reactor,
            concurrency=settings.rpc_concurrency,
            max_deliveries=settings.rpc_max_deliveries,
            run_blocking=self.runtime.run_blocking,
            unstarted_record=self.runtime.unstarted_record,
            operations=self._other_operations,
            siblings=self.runtime.siblings,
            worker=self.runtime.worker,
            middleware=self.runtime.middleware,
            authorizer=self.runtime.authorizer,
        )
        if paused:
            server.pause()
        await server.start()
        return server

    def operations(self) -> set[str]:
        """Return the request ids of the operations under way: methods, periodic tasks, outgoing calls."""
        return self._other_operations() if self.server is None else self.server.operations()

    def _other_operations(self) -> set[str]:
        calls = set() if self.client is None else self.client.request_ids_in_flight()
        events = set() if self.events is None else self.events.operations()
        return calls | events | self.tasks.operations()

    def basic_config_check(self) -> None:
        """Check that the temporary directory exists and is writable.

        :raises DirectoryError: it does not exist, or is not writable.
        """
        path = str(self.runtime.settings.tempdir or tempfile.gettempdir())
        try:
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            remedy = "create it, make it writable for this user, or set tempdir to another"
            raise DirectoryError(f"temporary directory {path!r}", error.strerror or str(error), remedy) from error

    async def _hook(self, name: str) -> None:
        self._step = name
        hook = maybeDeferred(getattr(self.manager, name))
        try:
            await abandon_on_cancel(hook)
        except CancelledError:
            # The cancelled hook may still clean up. The start ends here, even if the hook returns normally.
            await self._stop_step(name, lambda: hook)
            raise

    async def _retry_outages(self, dependency: str, attempt: Callable[[], Awaitable[_T]]) -> _T:
        return await retry_outages(self, dependency, attempt, self._stays)

    def _why_not_consuming(self) -> str | None:
        consuming = self.server is not None and self.server.live and (self.events is None or self.events.live)
        live = self.lifecycle.state == "draining" or consuming
        return None if live else "its consumers are not active"

    def why_not_reached(self) -> str | None:
        """Return why messages do not reach this node although it consumes; None if they do, or while it drains."""
        if self.reachability is None or self.lifecycle.state == "draining":
            return None
        return self.reachability.problem

    # -- stop ----------------------------------------------------------------------------------

    async def end(self) -> None:
        """Stop whatever ``begin`` has started, in order. Errors are logged, and the other steps still run."""
        node_fields.set(self._log_fields())
        self.waiting_for = None
        await self._drain()
        self.fence.stop()
        await self._stop_step("leave service", lambda: self.fence.closing)
        if self.transport is not None:
            await self._stop_step("cleanup_host", self.manager.cleanup_host)
        if self.heartbeat is not None:
            await self._stop_step("stop the heartbeat", self.heartbeat.stop)
        await self._stop_step("leave service", lambda: self.fence.closing)
        await self._stop_step("tell the registry", self._tell_end)
        self.registration.release()
        if self.history is not None:
            self.history.stop()
        if self.events is not None:
            await self._stop_step("close the listener of events", self.events.close)
        if self.server is not None:
            await self._stop_step("close the RPC server", self.server.close)
        if self.client is not None:
            await self._stop_step("close the RPC client", self.client.close)
        if self.transport is not None:
            await self._stop_step("close the transport", self.runtime.broker.release)
        if self.registry is not None:
            await self._stop_step(
                f"disconnect from the {self.registry_connection.name}", self.registry_connection.release
            )
        self.registry = self.transport = self.client = self.server = self.heartbeat = self.reachability = None
        self.events = self._unreached = None

    def _tell_end(self) -> Deferred[None]:
        reason = self.lifecycle.reason
        if reason is None:
            return self.registration.enter(self.registry, "stopped")
        return self.registration.enter(self.registry, "failed", reason=str(reason))

    def _begin_drain(self) -> None:
        """Accept nothing new from this moment on, so that "draining" can be relied on."""
        if self.heartbeat is None or not self.heartbeat.is_running:
            self.fence.stop()  # Nothing would tell it that heartbeats arrive.
        self._tasks_ended = self.tasks.stop()
        if self.fence.is_fenced:
            # It was about to enter service. A drain would begin requests of operations under way, without a heartbeat.
            events, server = self.events, self.server
            self.events = self.server = None
            self._topic_cancelled = self._events_cancelled = Deferred.fromCoroutine(_close(events, server))
            return
        self._topic_cancelled = succeed(None) if self.server is None else self.server.drain()
        self._events_cancelled = succeed(None) if self.events is None else self.events.drain()

    async def _drain(self) -> None:
        """Finish the tasks and calls under way, within graceful_shutdown_timeout."""
        if self.reachability is not None:
            await self._stop_step("stop verifying", self.reachability.stop)
        await self._stop_step("stop consuming from the topic", lambda: self._topic_cancelled)
        await self._stop_step("stop consuming events", lambda: self._events_cancelled)
        try:
            await self._deadline.limit(Deferred.fromCoroutine(self._finish()), work=True)
        except TooLateError:
            await self._cut_short()

    async def _finish(self) -> None:
        """Wait for tasks and calls. Without any, no later message can belong to an operation of this node."""
        events, server = self.events, self.server  # the fence may take both away meanwhile
        await self._tasks_ended
        if events is not None:
            await events.drained()
        if server is not None:
            await server.drained()
            await server.stop_consuming()
            await server.drained()

    async def _cut_short(self) -> None:
        """Cancel the tasks and calls that have not ended, and wait for their end before the node cleans up."""
        events, server = self.events, self.server  # the fence may take both away meanwhile
        running = [task.name for task in self.tasks.stats() if task.running]
        handling = 0 if events is None else events.running_calls()
        _log.warn(
            "{node}: {cause}: cancelling {calls}{events} and {tasks}",
            node=self.identity,
            cause=self._cause,
            calls=pluralize(0 if server is None else server.in_flight, "call"),
            events=f", {pluralize(handling, 'handler')} of events" if handling else "",
            tasks=pluralize(len(running), "periodic task") + (f" ({', '.join(running)})" if running else ""),
        )
        self.tasks.cancel_running()
        await self._stop_step("the end of the tasks", self.tasks.stop)
        if events is not None:
            events.cut_short()
            await self._stop_step("the end of the handlers of events", events.drained)
        if server is not None:
            # Before cut_short(), because requests given back would otherwise be delivered here again.
            await self._stop_step("stop consuming", server.stop_consuming)
            server.cut_short(f"{self.identity} was shutting down: {self._cause}; {self._remedy}")
            await self._stop_step("the end of the calls", server.drained)

    @property
    def _cause(self) -> str:
        """Why tasks and calls are cancelled."""
        if self._deadline.interrupted_early:
            return "told to stop immediately"
        return f"graceful_shutdown_timeout ({self.runtime.settings.graceful_shutdown_timeout:g} s) expired"

    @property
    def _remedy(self) -> str:
        """What a caller or an operator can do about it."""
        if self._deadline.interrupted_early:
            return "see what the method did before calling again"
        return "raise that setting there if its methods take longer, and see what this one did before calling again"

    async def _stop_step(self, what: str, step: Callable[[], Any]) -> None:
        """Run one step of the stop within its time limit; log its error, SystemExit included, and continue."""
        try:
            await self._deadline.limit(maybeDeferred(step))
        except TooLateError:
            _log.error("{node} stops waiting for {what}: the deadline has passed", node=self.identity, what=what)
        except SystemExit as error:
            _log.warn("{what} of {node} ended with {error!r}", what=what, node=self.identity, error=error)
            self.leaving = self.leaving or error
        except Exception:  # noqa: BLE001 - the other steps of the stop still run
            _log.failure(
                "{what} of {node} failed; the stop continues", level=LogLevel.error, node=self.identity, what=what
            )

    async def delete_row(self) -> None:
        """Soft-delete this node's row; log a warning if it is missing. Called when the node has stopped."""
        if self.record is None:
            return
        registry = await self.registry_connection.acquire()
        try:
            await registry.delete(self.record.id)
        except ServiceNotFoundError:
            _log.warn("the row of {node} was deleted already", node=self.identity, **self._log_fields())
        finally:
            await self.registry_connection.release()


async def _close(*parts: EventListener | Server | None) -> None:
    await DeferredList([part.close() for part in parts if part is not None], consumeErrors=True)
