"""The Service of the seed: its course, its order, its hooks, on a Clock and in memory."""

from typing import Any

from constantly import NamedConstant
from twisted.application.service import IService
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import (
    DatabaseCorruptError,
    DatabaseReadOnlyError,
    DatabaseServerReadOnlyError,
    DatabaseUnavailableError,
    DirectoryError,
    ManagerError,
    MethodTimeoutError,
    NoSuchMethodError,
    SettingError,
    StartError,
    StateError,
    UndeliverableError,
)
from novasvc.interfaces import IManager, IStartable
from novasvc.manager import Manager
from novasvc.periodic import periodic_task
from novasvc.registry.liveness import is_up
from novasvc.service import Service
from novasvc.telemetry.logs import FieldsObserver
from novasvc.testing import Fleet, memory_runtime
from tests.support.flight_rig import record_flight, said


class Diarist(Manager):
    """Writes down what happens to it; its hooks answer as the test says."""

    def __init__(self, *names: str, host: str, **options: Any) -> None:
        super().__init__(host)
        self.names, self.options = names, options
        self.diary: list[str] = []
        self.answers: dict[str, Any] = {}
        self.runs = 0
        self.work: Deferred[str] = Deferred()

    def _hook(self, name: str) -> Any:
        self.diary.append(name)
        answer = self.answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def init_host(self) -> Any:
        return self._hook("init_host")

    def pre_start_hook(self) -> Any:
        return self._hook("pre_start_hook")

    def post_start_hook(self) -> Any:
        return self._hook("post_start_hook")

    def cleanup_host(self) -> Any:
        return self._hook("cleanup_host")

    @rpc.expose
    def echo(self, context: RequestContext, text: str) -> str:
        return f"{text} from {self.host}"

    @rpc.expose
    def wait_for_work(self, context: RequestContext) -> Deferred[str]:
        return self.work

    def not_exposed(self) -> str:
        return "local"

    @periodic_task(spacing=5)
    def count(self, context: RequestContext) -> None:
        self.runs += 1


class ServiceTestCase(SynchronousTestCase):
    """A node in memory."""

    def make(self, **settings: Any) -> Service:
        self.fleet = Fleet(**settings)
        self.addCleanup(self.fleet.stop)
        self.clock = self.fleet.clock
        self.runtime = self.fleet.runtime("h1")
        self.service = self.fleet.add(Diarist, host="h1", binary="nova-diary", topic="diary").service
        self.diary = self.service.manager.diary
        return self.service

    def started(self, **settings: Any) -> Service:
        service = self.make(**settings)
        self.successResultOf(service.start())
        return service

    def rows(self) -> list[Any]:
        return self.fleet.rows()

    def told(self, level: NamedConstant) -> list[str]:
        """Return a list that fills with what is logged at a level from now on."""
        lines: list[str] = []

        def note(event: LogEvent) -> None:
            if event["log_level"] is level:
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        return lines

    def call(self, method: str, **args: Any) -> Deferred[Any]:
        client = self.service.rpc.prepare(topic="diary")
        called = client.call(RequestContext(), method, **args)
        self.fleet.advance(0)
        return called


async def hang_and_tidy(tidying: Deferred[None]) -> None:
    """Hang until cancelled, and then until the tidying is done."""
    try:
        await Deferred()
    finally:
        await tidying


class StartTests(ServiceTestCase):
    """The way up."""

    def test_interfaces(self) -> None:
        """A service is an IService whose start can be waited for, and its manager an IManager."""
        service = self.make()
        verifyObject(IService, service)
        verifyObject(IStartable, service)
        verifyObject(IManager, service.manager)

    def test_registers_beats_and_serves(self) -> None:
        """A started service has its row, has beaten, and answers calls."""
        self.started()
        (row,) = self.rows()
        self.assertEqual((row.host, row.binary, row.topic, row.report_count), ("h1", "nova-diary", "diary", 1))
        self.assertEqual(self.successResultOf(self.call("echo", text="hi")), "hi from h1")

    def test_flight(self) -> None:
        """The states of a node are noted in the flight recorder."""
        recorder = record_flight(self)
        service = self.started()
        service.stop()
        self.fleet.advance(5)
        states = ("starting", "incarnation 1", "running", "draining", "stopped")
        self.assertEqual(said(recorder, "node"), [f"nova-diary@h1 is {state}" for state in states])

    def test_control_exchange(self) -> None:
        """A service under a control exchange of its own answers those who call through it."""
        self.started(control_exchange="elsewhere")
        self.assertEqual(self.successResultOf(self.call("echo", text="hi")), "hi from h1")

    def test_hooks_in_order(self) -> None:
        """Each hook is awaited before the next step, and no message comes in before post_start_hook."""
        service = self.make()
        waits = {name: Deferred() for name in ("init_host", "pre_start_hook", "post_start_hook")}
        service.manager.answers.update(waits)
        started = service.start()
        self.assertEqual(self.diary, ["init_host"])
        self.assertEqual(len(self.rows()), 1)
        waits["init_host"].callback(None)
        self.assertEqual(self.diary, ["init_host", "pre_start_hook"])
        self.failureResultOf(self.call("echo", text="early"), UndeliverableError)
        waits["pre_start_hook"].callback(None)
        self.assertEqual(self.diary, ["init_host", "pre_start_hook", "post_start_hook"])
        self.successResultOf(self.call("echo", text="now"))
        self.assertEqual(self.rows()[0].report_count, 0)
        waits["post_start_hook"].callback(None)
        self.successResultOf(started)
        self.assertEqual(self.rows()[0].report_count, 1)

    def test_coroutine_hook(self) -> None:
        """A hook may be a coroutine function."""
        service = self.make()
        hooked: Deferred[None] = Deferred()

        async def init_host() -> None:
            await hooked

        service.manager.init_host = init_host
        started = service.start()
        self.assertNoResult(started)
        hooked.callback(None)
        self.successResultOf(started)

    def test_hook_that_raises(self) -> None:
        """A hook that raises fails the start with one error that names node, hook, error and line."""
        for hook in ("init_host", "pre_start_hook", "post_start_hook"):
            service = self.make()
            service.manager.answers[hook] = ValueError("no disk")
            error = self.failureResultOf(service.start(), StartError).value
            self.assertRegex(
                str(error),
                rf"nova-diary@h1 did not start; step {hook} failed: ValueError: no disk \(.*test_service.py:\d+",
            )
            self.assertEqual(service.state, "failed")
            self.fleet.advance(0)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            # The traceback was logged as well, at debug level.
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_hook_that_exits(self) -> None:
        """A hook that raises SystemExit fails the start like any other error."""
        service = self.make()

        def leave() -> None:
            raise SystemExit(3)

        service.manager.init_host = leave
        error = self.failureResultOf(service.start(), StartError).value
        self.assertIn("init_host failed: SystemExit: 3", str(error))
        self.flushLoggedErrors(SystemExit)

    def test_temporary_directory(self) -> None:
        """A temporary directory that cannot be used fails the start before anything is touched."""
        service = self.make(tempdir="/nowhere/at/all")
        error = self.failureResultOf(service.start(), StartError).value
        self.assertIn("temporary directory '/nowhere/at/all': No such file or directory", str(error))
        self.assertEqual(self.rows(), [])
        self.assertRaises(DirectoryError, service.basic_config_check)

    def test_database_away(self) -> None:
        """A database that is away is waited for, with growing pauses, and is no failure."""
        service = self.make()
        registry = self.registry()
        registry.outage = DatabaseUnavailableError("sqlite:///x", "away")
        started = service.start()
        self.fleet.advance(100)
        self.assertNoResult(started)
        self.assertEqual(service.node.waiting_for, "database")
        registry.outage = None
        self.fleet.advance(31)
        self.successResultOf(started)
        self.assertIsNone(service.node.waiting_for)

    def test_read_only_database(self) -> None:
        """A failover that leaves a read-only server is waited for; a file that is read-only fails the start."""
        service = self.make()
        registry = self.registry()
        registry.unwritable = DatabaseServerReadOnlyError("postgresql://db/x", "in a read-only transaction")
        started = service.start()
        self.fleet.advance(100)
        self.assertNoResult(started)
        registry.unwritable = None
        self.fleet.advance(31)
        self.successResultOf(started)
        self.successResultOf(service.stop())
        registry.unwritable = DatabaseReadOnlyError("sqlite:///x", "attempt to write a readonly database")
        self.failureResultOf(service.start(), StartError)

    def registry(self) -> Any:
        """Return the runtime's registry, without being counted as its user."""
        registry = self.successResultOf(Deferred.fromCoroutine(self.runtime.database.acquire()))
        self.successResultOf(Deferred.fromCoroutine(self.runtime.database.release()))
        return registry

    def test_fail_fast(self) -> None:
        """With fail_fast a database that is away fails the start."""
        service = self.make(fail_fast=True)
        self.registry().outage = DatabaseUnavailableError("sqlite:///x", "away")
        self.assertIn(
            "step registration failed: database sqlite:///x: away", str(self.failureResultOf(service.start()).value)
        )

    def test_corrupt_database(self) -> None:
        """A database that no waiting can mend fails the start at once."""
        service = self.make()
        self.registry().outage = DatabaseCorruptError("sqlite:///x", "not a database")
        self.failureResultOf(service.start(), StartError)

    def test_stop_while_waiting(self) -> None:
        """A stop during the wait for the database ends it promptly."""
        service = self.make()
        self.registry().outage = DatabaseUnavailableError("sqlite:///x", "away")
        started = service.start()
        self.successResultOf(service.stop())
        self.failureResultOf(started, StateError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_makes_outage(self) -> None:
        """A stop ends the start, also where the cancelled request fails as it does in an outage."""
        service = self.make()

        def fail_as_away(opening: Deferred[None]) -> None:
            opening.errback(DatabaseUnavailableError("sqlite:///x", "no answer"))

        self.patch(type(self.registry()), "open", lambda _: Deferred(fail_as_away))
        started = service.start()
        self.assertNoResult(started)
        self.successResultOf(service.stop())
        self.failureResultOf(started, StateError)
        self.fleet.advance(30)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_in_hook(self) -> None:
        """A stop while a hook is awaited cancels the hook."""
        service = self.make()
        cancelled: list[Any] = []
        service.manager.answers["init_host"] = Deferred(cancelled.append)
        started = service.start()
        self.successResultOf(service.stop())
        self.assertEqual(len(cancelled), 1)
        self.failureResultOf(started, StateError)

    def test_periodic_tasks(self) -> None:
        """Periodic tasks run by themselves once the node runs, and in a pass that is asked for."""
        service = self.started()
        self.fleet.advance(5)
        self.assertEqual(service.manager.runs, 1)
        self.fleet.advance(4)
        self.assertAlmostEqual(self.successResultOf(service.periodic_tasks()), 1.0)

    def test_periodic_disabled(self) -> None:
        """With periodic_enable off no task runs by itself."""
        service = self.started(periodic_enable=False)
        self.fleet.advance(20)
        self.assertEqual(service.manager.runs, 0)

    def test_events_are_the_nodes(self) -> None:
        """Every event from the way up carries host, binary and topic, the manager's own too."""
        events: list[dict[str, Any]] = []
        observer = FieldsObserver(events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.started()
        self.fleet.advance(10)
        of_novasvc = [event for event in events if str(event.get("log_namespace")).startswith("novasvc.node")]
        self.assertTrue(of_novasvc)
        events.clear()
        self.failureResultOf(self.call("no_such_method"), NoSuchMethodError)
        of_novasvc += [event for event in events if "refused" in str(event.get("log_format"))]
        self.assertEqual(
            {(event["host"], event["binary"], event["topic"]) for event in of_novasvc}, {("h1", "nova-diary", "diary")}
        )


class UnbeatenTests(ServiceTestCase):
    """A report_interval of 0."""

    def test_row(self) -> None:
        """The service registers and runs; its row is never beaten, and is down in time. A stop is as ever."""
        service = self.started(report_interval=0)
        self.fleet.advance(70)
        (row,) = self.rows()
        self.assertEqual((row.report_count, row.last_seen_up), (0, None))
        self.assertFalse(is_up(row, 60))
        self.assertEqual(service.state, "running")
        self.successResultOf(service.stop())

    def test_of_one_service(self) -> None:
        """So does one whose own interval is 0, whatever the setting says."""
        runtime = memory_runtime()
        service = Service("h1", "nova-diary", "diary", Diarist, report_interval=0, runtime=runtime)
        self.successResultOf(service.start())
        self.assertEqual(service.node.heartbeat.sent, 0)
        self.successResultOf(service.stop())


class StopTests(ServiceTestCase):
    """The way down."""

    def test_idle(self) -> None:
        """An idle service stops at once, tidies up, and keeps its row."""
        service = self.started()
        waiting = service.wait()
        self.assertNoResult(waiting)
        self.successResultOf(service.stop())
        self.successResultOf(waiting)
        self.assertEqual(self.diary[-1], "cleanup_host")
        self.assertEqual(len(self.rows()), 1)
        self.assertEqual(service.state, "stopped")
        self.fleet.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_finishes_calls(self) -> None:
        """A call in flight is finished and answered before the service leaves; it beats meanwhile."""
        service = self.started()
        other = Service(f"other{len(self.rows())}", "nova-diary", "diary2", Diarist, runtime=self.runtime)
        self.successResultOf(other.start())
        called = other.rpc.prepare(topic="diary").call(RequestContext(), "wait_for_work")
        self.fleet.advance(0)
        stopped = service.stop()
        before = self.rows()[0].report_count
        self.fleet.advance(20)
        self.assertEqual(self.rows()[0].report_count, before + 2)
        self.assertNoResult(stopped)
        self.assertEqual(service.state, "draining")
        service.manager.work.callback("done")
        self.fleet.advance(0)
        self.assertEqual(self.successResultOf(called), "done")
        self.successResultOf(stopped)
        self.successResultOf(other.stop())

    def test_deadline(self) -> None:
        """What is not finished after graceful_shutdown_timeout is cancelled."""
        service = self.started(graceful_shutdown_timeout=7)
        cancelled: list[Any] = []
        service.manager.work = Deferred(cancelled.append)
        called = self.call("wait_for_work")
        called.addErrback(lambda _: None)
        stopped = service.stop()
        self.fleet.advance(6.9)
        self.assertNoResult(stopped)
        self.fleet.advance(0.2)
        self.successResultOf(stopped)
        self.assertEqual(cancelled, [service.manager.work])

    def cut_call(self, service: Service, *, hurry_after: float | None = None) -> tuple[str, list[str]]:
        """Stop a service with a call under way; return what its caller is told, and what is logged.

        :param hurry_after: seconds after which whoever drains the process has it hurry; None is not at all.
        """
        service.manager.work = Deferred(lambda _: None)
        other = Service(f"other{len(self.rows())}", "nova-diary", "diary2", Diarist, runtime=self.runtime)
        self.successResultOf(other.start())
        self.addCleanup(lambda: self.successResultOf(other.stop()))
        calling = other.rpc.prepare(topic="diary").call(RequestContext(), "wait_for_work")
        self.fleet.advance(0)
        told = self.told(LogLevel.warn)
        stopped = service.stop()
        if hurry_after is not None:
            self.fleet.advance(hurry_after)
            service.hurry()
        self.fleet.advance(7.1 if hurry_after is None else 0)
        self.successResultOf(stopped)
        return str(self.failureResultOf(calling, MethodTimeoutError).value), told

    def test_reason_of_the_deadline(self) -> None:
        """A caller whose call is cut short at the deadline is told who shut down, its grace, and what to raise."""
        error, told = self.cut_call(self.started(graceful_shutdown_timeout=7))
        self.assertEqual(
            error,
            "'wait_for_work' was cancelled after 7 s: nova-diary@h1 was shutting down: "
            "graceful_shutdown_timeout (7 s) expired; "
            "raise that setting there if its methods take longer, and see what this one did before calling again",
        )
        self.assertIn(
            "nova-diary@h1: graceful_shutdown_timeout (7 s) expired: cancelling 1 call and 0 periodic tasks", told
        )

    def test_reason_of_the_process_deadline(self) -> None:
        """Whoever measures the deadline of the process is a moment early: the reason is the deadline all the same."""
        error, _ = self.cut_call(self.started(graceful_shutdown_timeout=7), hurry_after=6.95)
        self.assertIn(
            "nova-diary@h1 was shutting down: graceful_shutdown_timeout (7 s) expired; raise that setting", error
        )

    def test_reason_of_a_sudden_end(self) -> None:
        """A caller whose server is told to end at once is told that, and of no setting; after another start, too."""
        service = self.started(graceful_shutdown_timeout=7)
        error, _ = self.cut_call(service, hurry_after=1)
        self.assertIn(
            "after 1 s: nova-diary@h1 was shutting down: told to stop immediately; see what the method did", error
        )
        self.successResultOf(service.start())
        error, _ = self.cut_call(service)
        self.assertIn("graceful_shutdown_timeout (7 s) expired", error)

    def test_cleanup_that_raises(self) -> None:
        """A cleanup_host that raises is logged and stops nothing."""
        service = self.started()
        service.manager.answers["cleanup_host"] = ValueError("no")
        self.successResultOf(service.stop())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_cleanup_that_hangs(self) -> None:
        """A cleanup_host that hangs is given up at the deadline."""
        service = self.started(graceful_shutdown_timeout=5)
        service.manager.answers["cleanup_host"] = Deferred()
        stopped = service.stop()
        self.fleet.advance(4.9)
        self.assertNoResult(stopped)
        self.fleet.advance(0.2)
        self.successResultOf(stopped)

    def test_everything_hangs(self) -> None:
        """Whatever hangs on the way down, the node has left half a second after the deadline."""
        service = self.started(graceful_shutdown_timeout=5)
        service.manager.answers["cleanup_host"] = Deferred(lambda _: None)
        service.manager.work = Deferred(lambda _: None)
        self.call("wait_for_work").addErrback(lambda _: None)
        for leg in (self.runtime.broker, self.runtime.database):
            self.patch(type(leg), "release", lambda _self: Deferred())
        stopped = service.stop()
        self.fleet.advance(4.9)
        self.assertNoResult(stopped)
        self.fleet.advance(0.5)
        self.successResultOf(stopped)

    def test_cleanup_that_tidies(self) -> None:
        """A cleanup_host that hangs in its own tidying, when it is cancelled, is left behind and named."""
        service = self.started(graceful_shutdown_timeout=5)
        told = self.told(LogLevel.error)
        tidying: Deferred[None] = Deferred()
        service.manager.cleanup_host = lambda: hang_and_tidy(tidying)
        stopped = service.stop()
        self.fleet.advance(4.9)
        self.assertNoResult(stopped)
        self.fleet.advance(0.2)
        self.successResultOf(stopped)
        self.assertEqual(told, ["nova-diary@h1 stops waiting for cleanup_host: the deadline has passed"])
        tidying.errback(ValueError("at last"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_init_that_tidies(self) -> None:
        """A hook that tidies up when a stop cancels it has until the deadline, and the start never goes on."""
        service = self.make(graceful_shutdown_timeout=5)
        told = self.told(LogLevel.error)
        tidying: Deferred[None] = Deferred()
        service.manager.init_host = lambda: hang_and_tidy(tidying)
        started, stopped = service.start(), service.stop()
        self.fleet.advance(4.9)
        self.assertNoResult(stopped)
        self.fleet.advance(0.2)
        self.successResultOf(stopped)
        self.failureResultOf(started, StateError)
        self.assertEqual(told, ["nova-diary@h1 stops waiting for init_host: the deadline has passed"])
        tidying.callback(None)
        self.assertNotIn("pre_start_hook", self.diary)
        self.assertEqual(service.state, "stopped")

    def test_init_that_tidies_in_time(self) -> None:
        """A stop waits for a hook that tidies up, and goes on when it has."""
        service = self.make(graceful_shutdown_timeout=5)
        tidying: Deferred[None] = Deferred()
        service.manager.init_host = lambda: hang_and_tidy(tidying)
        service.start().addErrback(lambda _: None)
        stopped = service.stop()
        self.assertNoResult(stopped)
        tidying.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cleanup_after_calls(self) -> None:
        """Cleanup_host comes when the calls that had to be cut short have ended."""
        service = self.started(graceful_shutdown_timeout=7)
        service.manager.work = Deferred(lambda _: self.diary.append("work was cancelled"))
        self.call("wait_for_work").addErrback(lambda _: None)
        stopped = service.stop()
        self.fleet.advance(7.1)
        self.successResultOf(stopped)
        self.assertEqual(self.diary[-2:], ["work was cancelled", "cleanup_host"])

    def test_hook_that_cancels_itself(self) -> None:
        """A hook that fails by a cancellation of its own making is a failed start like any other."""
        service = self.make()
        service.manager.answers["init_host"] = fail(CancelledError())
        error = self.failureResultOf(service.start(), StartError).value
        self.assertIn("init_host failed: CancelledError", str(error))
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

    def test_kill(self) -> None:
        """To kill a service is to stop it and to delete its row."""
        service = self.started()
        self.successResultOf(service.kill())
        self.assertEqual(self.rows(), [])

    def test_kill_after_new_row(self) -> None:
        """A node whose row the database has lost registers again; kill() deletes the row that it has then."""
        service = self.started()
        self.assertEqual((service.node.record.id, service.manager.attachments.incarnation), (1, 1))
        self.fleet.registry._by_id.clear()
        self.fleet.registry._hosts.clear()
        self.fleet.registry._incarnations._rows.clear()
        told = self.told(LogLevel.warn)
        self.fleet.advance(10)
        self.assertEqual(told, ["the registry had lost this start of nova-diary@h1; registered it again"])
        self.assertEqual((service.node.record.id, service.manager.attachments.incarnation), (2, 2))
        self.assertEqual(self.rows()[0].incarnation.state, "ready")
        self.successResultOf(service.kill())
        self.assertEqual(self.rows(), [])

    def test_kill_without_row(self) -> None:
        """A row that is already gone is a warning to who kills."""
        service = self.started()
        registry = self.successResultOf(Deferred.fromCoroutine(self.runtime.database.acquire()))
        self.successResultOf(registry.delete(1))
        self.successResultOf(service.kill())

    def test_start_again(self) -> None:
        """A service that has stopped can be started again, in its old row."""
        service = self.started()
        self.successResultOf(service.stop())
        self.successResultOf(service.start())
        (row,) = self.rows()
        self.assertEqual(row.report_count, 2)
        self.assertEqual(self.successResultOf(self.call("echo", text="hi")), "hi from h1")

    def test_start_from_stop(self) -> None:
        """A service can be started again by who hears that it has stopped."""
        service = self.started()
        self.successResultOf(service.stop().addCallback(lambda _: service.start()))
        self.assertEqual(service.state, "running")

    def test_start_while_draining(self) -> None:
        """A start while it drains fails, by a Deferred, and the service does not claim to run."""
        service = self.started()
        called = self.call("wait_for_work")
        called.addErrback(lambda _: None)
        stopped = service.stop()
        service.startService()
        self.failureResultOf(service.start(), StateError)
        self.assertFalse(service.running)
        service.manager.work.callback("done")
        self.fleet.advance(0)
        self.successResultOf(stopped)

    def test_running(self) -> None:
        """A service runs, for Twisted, from the begin of its start to its stop or failure."""
        service = self.make(tempdir="/nowhere/at/all")
        self.assertFalse(service.running)
        self.failureResultOf(service.start(), StartError)
        self.assertFalse(service.running)
        service = self.started()
        self.assertTrue(service.running)
        self.successResultOf(service.stop())
        self.assertFalse(service.running)


class ConstructionTests(SynchronousTestCase):
    """What is given, and what follows from it."""

    def setUp(self) -> None:
        self.runtime = memory_runtime(host="here", managers={"diary": f"{__name__}.Diarist"})

    def test_create_defaults(self) -> None:
        """Create takes the host from the settings, the topic from the binary, the manager from <topic>_manager."""
        self.runtime = memory_runtime(host="here", managers={"diary": "novasvc.host_agent.HostAgent"})
        service = Service.create(binary="nova-diary", runtime=self.runtime)
        self.assertEqual((service.host, service.binary, service.topic), ("here", "nova-diary", "diary"))
        self.assertEqual(type(service.manager).__name__, "HostAgent")

    def test_create_without_prefix(self) -> None:
        """The topic of a binary without "nova-" is the whole binary."""
        service = Service.create(binary="diary", manager=Diarist, runtime=self.runtime)
        self.assertEqual(service.topic, "diary")

    def test_create_from_program(self) -> None:
        """The binary is the base name of the program unless it is given."""
        self.patch(__import__("sys"), "argv", ["/usr/bin/nova-diary"])
        service = Service.create(manager=Diarist, runtime=self.runtime)
        self.assertEqual((service.binary, service.topic), ("nova-diary", "diary"))

    def test_create_without_manager(self) -> None:
        """Without a manager the error names the setting that is missing."""
        error = self.assertRaises(SettingError, Service.create, binary="nova-other", runtime=self.runtime)
        self.assertIn("other_manager", str(error))

    def test_arguments_for_manager(self) -> None:
        """What the service does not take itself reaches the manager's constructor, with the host."""
        service = Service("h", "b", "t", Diarist, 5, True, 1, None, True, "more", color="red", runtime=self.runtime)
        manager = service.manager
        self.assertEqual((manager.host, manager.names, manager.options), ("h", ("more",), {"color": "red"}))
        self.assertEqual(service.report_interval, 5)

    def test_intervals_from_settings(self) -> None:
        """Intervals that are not given come from the settings."""
        runtime = memory_runtime(report_interval=3, periodic_fuzzy_delay=4)
        service = Service("h", "b", "t", Diarist, runtime=runtime)
        self.assertEqual((service.report_interval, service.periodic_fuzzy_delay), (3, 4))

    def test_interval_over_down_time(self) -> None:
        """A service that would beat no more often than it is declared down is refused."""
        error = self.assertRaises(SettingError, Service, "h", "b", "t", Diarist, 60, runtime=self.runtime)
        self.assertIn("service_down_time (60 s)", str(error))

    def test_interval_and_fence_after(self) -> None:
        """A service that would be fenced although it is healthy is refused."""
        runtime = memory_runtime(fence_after=45)
        for interval, problem in ((0, "because it sends no heartbeats"), (45, "between two heartbeats")):
            error = self.assertRaises(SettingError, Service, "h", "b", "t", Diarist, interval, runtime=runtime)
            self.assertIn(f"the service would be fenced {problem}: fence_after is 45 s", str(error))
        self.assertEqual(Service("h", "b", "t", Diarist, 44, runtime=runtime).report_interval, 44)

    def test_intervals_that_cannot_be(self) -> None:
        """An interval that cannot be waited is an error that names it, its value and the service."""
        nan, endless = float("nan"), float("inf")
        for name, values in {
            "report_interval": (-1, nan, True, "10"),
            "periodic_fuzzy_delay": (-1, endless, nan, "1"),
            "periodic_interval_max": (-0.5, nan, False, "60"),
        }.items():
            for value in values:
                given = {name: value, "runtime": self.runtime}
                error = self.assertRaises(SettingError, Service, "h", "b", "t", Diarist, **given)
                self.assertTrue(str(error).startswith(f"{name} = {value!r} (from the service b@h): "), str(error))

    def test_tasks_before_start(self) -> None:
        """A pass over the tasks can be asked for before the start, and after the stop, when it begins none."""
        service = Service("h", "b", "t", Diarist, periodic_fuzzy_delay=0, runtime=self.runtime)
        self.runtime.reactor.advance(6)
        self.assertAlmostEqual(self.successResultOf(service.periodic_tasks()), 5.0)
        self.assertEqual(service.manager.runs, 1)
        self.successResultOf(service.start())
        self.successResultOf(service.stop())
        self.runtime.reactor.advance(6)
        self.successResultOf(service.periodic_tasks())
        self.assertEqual(service.manager.runs, 1)

    def test_manager_that_raises(self) -> None:
        """A manager whose constructor raises is an error that names the manager and the reason."""

        class Broken(Manager):
            def __init__(self, host: str) -> None:
                raise KeyError("secret")

        error = self.assertRaises(ManagerError, Service, "h", "b", "t", Broken, runtime=self.runtime)
        self.assertRegex(str(error), r"Broken': its constructor raised KeyError: 'secret' \(.*:\d+ in __init__\)")

    def test_fall_through(self) -> None:
        """Public names of the manager are found on the service, private ones are not."""
        service = Service("h", "b", "t", Diarist, runtime=self.runtime)
        self.assertEqual(service.not_exposed(), "local")
        self.assertRaises(AttributeError, getattr, service, "_hook")
        self.assertRaises(AttributeError, getattr, service, "no_such_thing")

    def test_fall_through_is_no_way_in(self) -> None:
        """A public method that is not exposed cannot be called by RPC, fall-through or not."""
        service = Service("h", "b", "t", Diarist, runtime=self.runtime)
        self.successResultOf(service.start())
        called = service.rpc.prepare(topic="t").call(RequestContext(), "not_exposed")
        self.runtime.reactor.pump([0] * 6)
        self.failureResultOf(called, NoSuchMethodError)
        self.successResultOf(service.stop())

    def test_registry_in_errors(self) -> None:
        """What cannot be reached by RPC is looked up in the registry that the service has, for the error."""
        service = Service("h", "b", "t", Diarist, runtime=self.runtime)
        self.successResultOf(service.start())
        called = service.rpc.prepare(topic="other").call(RequestContext(), "ping")
        self.runtime.reactor.pump([0] * 6)
        self.assertEqual(self.failureResultOf(called, UndeliverableError).value.registered, 0)
        self.successResultOf(service.stop())

    def test_rpc_before_start(self) -> None:
        """A service that is not started has nothing to call others with, and says so."""
        service = Service("h", "b", "t", Diarist, runtime=self.runtime)
        self.assertRaises(StateError, lambda: service.rpc)


class AtOnceTests(ServiceTestCase):
    """Ends that are to come at once."""

    def cut(self) -> Deferred[None]:
        """Stop a node with a call under way, and have it hurry."""
        self.service.manager.work = Deferred(lambda _: self.diary.append("work was cancelled"))
        self.call("wait_for_work").addErrback(lambda _: None)
        self.fleet.advance(0)
        stopped = self.service.stop()
        self.assertNoResult(stopped)
        self.service.hurry()
        return stopped

    def test_calls_cut_short(self) -> None:
        """Calls under way are cut short, and the node tidies up and leaves as ever."""
        self.started(graceful_shutdown_timeout=0)
        told = self.told(LogLevel.warn)
        stopped = self.cut()
        self.fleet.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.diary[-2:], ["work was cancelled", "cleanup_host"])
        self.assertIn("nova-diary@h1: told to stop immediately: cancelling 1 call and 0 periodic tasks", told)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tidying_has_its_time(self) -> None:
        """What tidies up is not cut short, as long as it takes no longer than half a second."""
        service = self.started()
        service.manager.answers["cleanup_host"] = tidying = Deferred()
        stopped = service.stop()
        service.hurry()
        self.fleet.advance(0.4)
        self.assertNoResult(stopped)
        tidying.callback(None)
        self.successResultOf(stopped)

    def test_all_hangs(self) -> None:
        """Where calls and hooks hang, whatever is done to them, it takes a second, and the row is left in order."""
        service = self.started()
        service.manager.cleanup_host = lambda: hang_and_tidy(Deferred())
        service.manager.work = Deferred.fromCoroutine(hang_and_tidy(Deferred()))
        self.call("wait_for_work").addErrback(lambda _: None)
        self.fleet.advance(0)
        told = self.told(LogLevel.error)
        began = self.clock.seconds()
        stopped = service.stop()
        service.hurry()
        while not stopped.called and self.clock.seconds() < began + 2:
            self.fleet.advance(0.01)
        self.successResultOf(stopped)
        self.assertLess(self.clock.seconds(), began + 1)
        self.assertEqual(
            [line.split(" stops waiting for ")[1] for line in told],
            [f"{step}: the deadline has passed" for step in ("the end of the calls", "cleanup_host")],
        )

    def test_before_its_turn(self) -> None:
        """A node that waits for its turn to stop has no more time either."""
        service = self.started()
        service.hurry()
        self.fleet.advance(5)
        service.manager.work = Deferred(lambda _: self.diary.append("work was cancelled"))
        self.call("wait_for_work").addErrback(lambda _: None)
        self.fleet.advance(0)
        stopped = service.stop()
        self.fleet.advance(0)
        self.successResultOf(stopped)
        self.assertIn("work was cancelled", self.diary)

    def test_while_starting(self) -> None:
        """A hook that tidies up, when the start is interrupted, has half a second."""
        service = self.make()
        service.manager.init_host = lambda: hang_and_tidy(Deferred())
        service.start().addErrback(lambda _: None)
        stopped = service.stop()
        service.hurry()
        self.fleet.advance(0.49)
        self.assertNoResult(stopped)
        self.fleet.advance(0.52)
        self.successResultOf(stopped)

    def test_next_time(self) -> None:
        """A node that is started again has all the time it is given."""
        service = self.started()
        stopped = self.cut()
        self.fleet.advance(0)
        self.successResultOf(stopped)
        self.successResultOf(service.start())
        service.manager.work = Deferred()
        self.call("wait_for_work").addErrback(lambda _: None)
        self.fleet.advance(0)
        stopped = service.stop()
        self.fleet.advance(30)
        self.assertNoResult(stopped)
