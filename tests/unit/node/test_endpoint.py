"""Tests for novasvc.node.endpoint: what a node tells of itself, and what it can be told to do."""

import os
import signal
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from novasvc import __version__, rpc
from novasvc.context import RequestContext
from novasvc.errors import DatabaseUnavailableError, NoSuchMethodError, StateError, UnknownTaskError
from novasvc.interfaces import IProcessControl
from novasvc.manager import Manager
from novasvc.node.endpoint import NodeAPI
from novasvc.node.process_control import process_control
from novasvc.periodic import periodic_task
from novasvc.service import Service
from novasvc.telemetry.flight import note
from novasvc.testing import FleetMixin, memory_runtime
from novasvc.workers.errors import CommandRejectedError, ControlError, ReloadError
from novasvc.workers.signals import Signals
from tests.support.control_rig import ControlCase
from tests.support.flight_rig import record_flight


class Worker(Manager):
    """Has a method that answers, one that raises, one that waits, and a task."""

    service_version = 7

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.waiting: Deferred[str] = Deferred()
        self.copying: Deferred[str] = Deferred()
        self.task: Deferred[None] | None = None
        self.runs = 0

    @rpc.expose(version="1.2")
    def greet(self, context: RequestContext) -> str:
        return "hello"

    @rpc.expose
    def fail(self, context: RequestContext) -> None:
        raise ValueError("x")

    @rpc.expose(expected=(LookupError,))
    def refuse(self, context: RequestContext) -> None:
        raise KeyError("x")

    @rpc.expose
    def wait(self, context: RequestContext) -> Deferred[str]:
        return self.waiting

    @rpc.expose
    def copy(self, context: RequestContext) -> Deferred[str]:
        context.progress(0.4, "x" * 999)
        return self.copying

    @periodic_task(spacing=60)
    def sweep(self, context: RequestContext) -> Deferred[None] | None:
        self.runs += 1
        return self.task


class AtOnce:
    """A reactor that runs."""

    def callWhenRunning(self, function: Callable[[], None]) -> None:
        function()

    def callFromThread(self, function: Callable[[], None]) -> None:
        function()


class NodeCase(FleetMixin, SynchronousTestCase):
    """A node in memory, called over its own RPC."""

    def setUp(self) -> None:
        record_flight(self)
        # Figures are the process's, by topic: no two tests share one.
        self.topic = self.id()[-60:]
        self.service = self.fleet.start(Worker, host="h1", binary="nova-work", topic=self.topic).service
        self.manager = self.service.manager

    def call(self, method: str, namespace: str | None = "node", version: str = "1.0", **args: Any) -> Deferred[Any]:
        prepared = {"topic": self.topic, "server": "h1", "namespace": namespace, "version": version}
        client = self.fleet.client("h1", **prepared, check_liveness=False)  # time jumps over its heartbeats
        calling = client.call(RequestContext(), method, **args)
        self.fleet.advance(0)
        return calling

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = self.successResultOf(self.call("describe"))
        return told

    def method(self, name: str) -> dict[str, Any]:
        """Return the row of a method of the manager's, as describe has it."""
        rows = [row for row in self.describe()["methods"] if (row["method"], row["namespace"]) == (name, None)]
        self.assertEqual(len(rows), 1)
        return rows[0]


class DescribeTests(NodeCase):
    """Tests for NodeAPI.describe."""

    def test_identity(self) -> None:
        """A node says who it is, what runs, and for how long."""
        self.fleet.advance(90)
        told = self.describe()
        expected = {
            "host": "h1",
            "binary": "nova-work",
            "topic": self.topic,
            "version": __version__,
            "service_version": 7,
            "pid": os.getpid(),
            "worker": None,
            "state": "running",
            "uptime": 90.0,
            "workers": [],
            "in_flight": 0,  # without this call
            "silent": [],
            "quarantined": 0,
        }
        self.assertEqual({name: told[name] for name in expected}, expected)
        self.assertRegex(told["started_at"], r"^\d{4}-\d\d-\d\dT.*\+00:00$")

    def test_calls(self) -> None:
        """Its running calls are told with what they have reported, without the one that asks."""
        self.assertEqual(self.describe()["calls"], [])
        calls = [self.call(method, namespace=None) for method in ("copy", "wait")]
        self.fleet.advance(3)
        copying, waiting = self.describe()["calls"]
        self.assertEqual((copying["method"], copying["fraction"], copying["text"]), ("copy", 0.4, "x" * 200))
        self.assertEqual((waiting["method"], waiting["seconds"]), ("wait", 3.0))
        self.assertNotIn("fraction", waiting)
        for method in (self.manager.copying, self.manager.waiting):
            method.callback("done")
        self.fleet.advance(0)
        self.assertEqual([self.successResultOf(calling) for calling in calls], ["done", "done"])

    def test_tasks(self) -> None:
        """Its tasks are told with their figures, and when they are due again."""
        self.fleet.clock.jump(61)
        self.assertEqual(
            self.describe()["tasks"],
            [
                {
                    "name": "sweep",
                    "spacing": 60,
                    "runs": 1,
                    "failures": 0,
                    "timeouts": 0,
                    "missed": 0,
                    "running": False,
                    "last_lateness": 1.0,
                    "max_lateness": 1.0,
                    "last_duration": 0.0,
                    "next_due_in": 59.0,
                    "scope": "node",
                    "cron": None,
                    "timezone": None,
                    "leads": True,
                    "fencing": None,
                }
            ],
        )

    def test_methods(self) -> None:
        """Methods are counted, those that ended, that raised, that run; what their author expects is no error."""
        for _ in range(3):
            self.call("greet", None)
        self.failureResultOf(self.call("fail", None), ValueError)
        self.flushLoggedErrors(ValueError)
        self.failureResultOf(self.call("refuse", None), KeyError)
        waiting = self.call("wait", None)
        self.fleet.advance(0.2)
        self.assertEqual([self.method("wait")[name] for name in ("calls", "in_flight", "mean")], [0, 1, None])
        self.manager.waiting.callback("done")
        self.fleet.advance(0)
        self.successResultOf(waiting)
        row = self.method("wait")
        self.assertEqual([row[name] for name in ("calls", "errors", "in_flight", "version")], [1, 0, 0, "1.2"])
        self.assertAlmostEqual(row["mean"], 0.2)
        self.assertTrue(0.1 <= row["p99"] <= 0.25)
        self.assertEqual((sum(row["counts"]), len(row["counts"])), (1, len(row["bounds"]) + 1))
        self.assertEqual([self.method("greet")[name] for name in ("calls", "errors")], [3, 0])
        self.assertEqual([self.method("fail")[name] for name in ("calls", "errors")], [1, 1])
        self.assertEqual([self.method("refuse")[name] for name in ("calls", "errors")], [1, 0])

    def test_timed_out(self) -> None:
        """A method that is cut short at its caller's deadline is an error, once."""
        waiting = self.call("wait", None)
        self.fleet.advance(61)
        self.failureResultOf(waiting)
        self.assertEqual([self.method("wait")[name] for name in ("calls", "errors", "in_flight")], [1, 1, 0])

    def test_events(self) -> None:
        """The last events of the flight recorder come with it, a call with its duration in one line, without this."""
        for number in range(120):
            note("test", str(number))
        self.successResultOf(self.call("greet", None))
        self.describe()
        events = self.describe()["events"]
        self.assertEqual(len(events), 100)
        self.assertEqual([event["text"] for event in events if event["kind"] == "test"][-1], "119")
        (call,) = [event for event in events if event["kind"] == "call"]
        self.assertEqual((call["text"], call["outcome"]), ("greet", "done"))
        self.assertGreaterEqual(call["seconds"], 0)
        self.assertTrue(call["request_id"].startswith("req-"))

    def test_errors(self) -> None:
        """The last errors come with it: when, of which call, what and after how long; expected ones do not."""
        self.failureResultOf(self.call("fail", None), ValueError)
        self.flushLoggedErrors(ValueError)
        self.failureResultOf(self.call("refuse", None), KeyError)
        waiting = self.call("wait", None)
        self.fleet.advance(61)
        self.failureResultOf(waiting)
        failed, late = self.describe()["errors"]
        expected = {"method": "fail", "namespace": None, "error": "ValueError", "text": "x", "seconds": 0.0}
        self.assertEqual({name: failed[name] for name in expected}, expected)
        self.assertTrue(failed["request_id"].startswith("req-"))
        self.assertEqual((late["method"], late["error"], late["seconds"]), ("wait", "MethodTimeoutError", 60.0))

    def test_not_counted(self) -> None:
        """The questions of the page, and pings, are neither counted nor recorded."""
        for _ in range(3):
            self.describe()
            self.successResultOf(self.call("history"))
            self.successResultOf(self.call("troubles"))
            self.successResultOf(self.call("ping", "baseapi", arg=1))
        told = self.describe()
        self.assertEqual([row["method"] for row in told["methods"] if row["calls"]], [])
        self.assertEqual([event["text"] for event in told["events"] if event["kind"] == "call"], [])
        self.assertNotIn("describe", [row["method"] for row in told["methods"]])

    def test_history(self) -> None:
        """What the methods did in the last half hour was noted before anybody asked."""
        started = self.fleet.clock.seconds()
        self.fleet.advance(10)
        for _ in range(4):
            self.successResultOf(self.call("greet", None))
        self.fleet.advance(10)
        self.failureResultOf(self.call("fail", None), ValueError)
        self.flushLoggedErrors(ValueError)
        self.fleet.advance(30)
        told = self.successResultOf(self.call("history"))
        rows = {row["method"]: row for row in told["methods"]}
        self.assertEqual(told["interval"], 10)
        self.assertLessEqual(abs(told["length"] * 10 - (self.fleet.clock.seconds() - started)), 10)
        self.assertEqual([sum(rows[name]["calls"]) for name in ("greet", "fail")], [4, 1])
        self.assertEqual(sum(rows["fail"]["errors"]), 1)
        self.assertEqual(len(rows["greet"]["calls"]), told["length"])
        self.fleet.advance(1800)
        told = self.successResultOf(self.call("history"))
        self.assertEqual((told["length"], told["methods"]), (180, []))

    def test_health(self) -> None:
        """Each thing it stands on is told, with since when."""
        legs = self.describe()["health"]
        names = ["service", "broker", "database", "migration", "consumers", "reactor"]
        self.assertEqual([leg["name"] for leg in legs], names)
        self.assertEqual([leg["name"] for leg in legs if not leg["ready"]], [])
        self.assertEqual(set(legs[0]), {"name", "ready", "detail", "since"})


class RunTaskTests(NodeCase):
    """Tests for NodeAPI.run_task."""

    def test_runs(self) -> None:
        """A task is run at once, and is due again one spacing later."""
        self.fleet.advance(30)
        self.assertEqual(self.successResultOf(self.call("run_task", name="sweep")), {"started": True})
        self.assertEqual(self.manager.runs, 1)
        self.fleet.advance(59)
        self.assertEqual(self.manager.runs, 1)
        self.fleet.advance(1)
        self.assertEqual(self.manager.runs, 2)

    def test_running(self) -> None:
        """One that is running is not run a second time, and the caller is told so."""
        self.manager.task = Deferred()
        self.successResultOf(self.call("run_task", name="sweep"))
        error = self.failureResultOf(self.call("run_task", name="sweep"), StateError).value
        self.assertEqual(str(error), "the periodic task 'sweep' is running and cannot be started again")
        self.assertEqual(self.manager.runs, 1)
        self.manager.task.callback(None)
        self.successResultOf(self.call("run_task", name="sweep"))

    def test_unknown(self) -> None:
        """There is none of that name: the caller is told which there are."""
        error = self.failureResultOf(self.call("run_task", name="swep"), UnknownTaskError).value
        self.assertEqual(str(error), "no periodic task is named 'swep'; existing tasks: sweep")

    def test_failing(self) -> None:
        """How the run ends is no matter of the call's: a failure is logged and counted."""
        self.manager.task = Deferred()
        self.successResultOf(self.call("run_task", name="sweep"))
        self.manager.task.errback(ValueError("x"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.describe()["tasks"][0]["failures"], 1)


class DrainTests(NodeCase):
    """Tests for NodeAPI.drain."""

    def test_service(self) -> None:
        """In a process that is not novasvc's own the service stops alone, after the answer."""
        self.assertEqual(self.successResultOf(self.call("drain")), {"draining": "service"})
        self.fleet.advance(0)
        self.assertEqual(self.service.state, "stopped")

    def test_finishes(self) -> None:
        """What was begun is finished."""
        waiting = self.call("wait", None)
        self.successResultOf(self.call("drain"))
        self.fleet.advance(0)
        self.assertEqual(self.service.state, "draining")
        self.manager.waiting.callback("done")
        self.fleet.advance(0)
        self.assertEqual(self.successResultOf(waiting), "done")
        self.assertEqual(self.service.state, "stopped")

    def test_process(self) -> None:
        """In a process of its own it is told to end as by SIGTERM, after the answer."""
        told: list[str] = []
        taking = Signals(AtOnce(), {signal.SIGTERM: lambda: told.append("TERM")})
        taking.startService()
        self.addCleanup(taking.stopService)
        self.assertEqual(self.successResultOf(self.call("drain")), {"draining": "process"})
        self.assertEqual((told, self.service.state), (["TERM"], "running"))

    def test_not_exposed(self) -> None:
        """Only what is exposed can be called."""
        self.failureResultOf(self.call("stop"), NoSuchMethodError)


@implementer(IProcessControl)
class StandInControl:
    """The control of a process: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def reload_report(self) -> dict[str, Any]:
        return {"ended": 3, "under_way": False, "problem": "no such file"}

    def begin_reload(self) -> None:
        self.told.append("reload")

    def drain(self) -> None:
        self.told.append("drain")

    def restart(self) -> None:
        self.told.append("restart")


class StatusTests(NodeCase):
    """Tests for NodeAPI.status."""

    def status(self) -> dict[str, Any]:
        calling = self.call("status", version="1.2")
        told: dict[str, Any] = self.successResultOf(calling)
        return told

    def test_status(self) -> None:
        """A node tells whether it works, since when, and how its reloads went."""
        self.fleet.advance(90)
        told = self.status()
        expected = {
            "host": "h1",
            "binary": "nova-work",
            "topic": self.topic,
            "version": __version__,
            "service_version": 7,
            "pid": os.getpid(),
            "worker": None,
            "state": "running",
            "uptime": 90.0,
            "problems": [],
            "reloads": None,
        }
        self.assertEqual({name: told[name] for name in expected}, expected)
        self.assertEqual(told.keys() - expected.keys(), {"incarnation"})

    def test_problems(self) -> None:
        """What does not work is told, one line each."""
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "away")
        self.fleet.advance(120)
        self.assertTrue([problem for problem in self.status()["problems"] if problem.startswith("database: ")])
        self.fleet.registry.outage = None

    def test_reloads(self) -> None:
        """In a process of its own, the process tells of its reloads."""
        process_control.set(self.fleet.clock, StandInControl())
        self.assertEqual(self.status()["reloads"], {"ended": 3, "under_way": False, "problem": "no such file"})


class ProcessTests(NodeCase):
    """Tests for NodeAPI.reload and NodeAPI.restart, in a process of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.control = StandInControl()
        process_control.set(self.fleet.clock, self.control)

    def test_reload(self) -> None:
        """The process reloads, after the answer."""
        self.assertEqual(self.successResultOf(self.call("reload", version="1.2")), {"reloading": "process"})
        self.fleet.advance(0)
        self.assertEqual(self.control.told, ["reload"])

    def test_drain(self) -> None:
        """The process is asked to drain, after the answer: it knows whether it was asked before."""
        taking = Signals(AtOnce(), {signal.SIGTERM: lambda: self.control.told.append("TERM")})
        taking.startService()
        self.addCleanup(taking.stopService)
        for _ in range(2):
            self.assertEqual(self.successResultOf(self.call("drain")), {"draining": "process"})
            self.fleet.advance(0)
        self.assertEqual(self.control.told, ["drain", "drain"])

    def test_restart(self) -> None:
        """The process restarts, after the answer."""
        self.assertEqual(self.successResultOf(self.call("restart", version="1.2")), {"restarting": "process"})
        self.fleet.advance(0)
        self.assertEqual(self.control.told, ["restart"])

    def test_other_incarnation(self) -> None:
        """A restart that is meant for another incarnation is refused: it has happened already."""
        calling = self.call("restart", version="1.2", incarnation=41)
        error = self.failureResultOf(calling, StateError).value
        self.assertIn("cannot restart as incarnation 41", str(error))
        self.fleet.advance(0)
        self.assertEqual(self.control.told, [])

    def test_part_of_an_application(self) -> None:
        """In the process of another application both are refused, before anything happens."""
        process_control.set(self.fleet.clock, None)
        for method in ("reload", "restart"):
            error = self.failureResultOf(self.call(method, version="1.2"), StateError).value
            self.assertIn(f"part of another application and cannot {method} its process", str(error))


class SupervisedTests(ControlCase):
    """Tests for NodeAPI in a worker: its supervisor is asked, at a real socket with a stand-in behind it."""

    def setUp(self) -> None:
        super().setUp()
        runtime = memory_runtime(reactor, control_socket=self.path)  # type: ignore[arg-type]  # a clock
        service = Service("h1", "nova-work", "work", Worker, runtime=attrs.evolve(runtime, worker=3))
        self.node = NodeAPI(service.node)

    async def test_describe(self) -> None:
        """The rows of all workers come with what one of them tells."""
        told = await self.node.describe(RequestContext())
        self.assertEqual((told["worker"], told["workers"]), (3, self.supervisor.rows))

    async def test_all_workers(self) -> None:
        """Figures are those of all workers, whoever answers; workers that do not answer are named."""
        own = await self.node.describe(RequestContext())
        count = {"method": "greet", "namespace": None, "version": "1.2", "calls": 5, "errors": 1, "in_flight": 2}
        other = {
            **own,
            "worker": 1,
            "methods": [{**count, "mean": 0.02, "p50": 0.02, "p99": 0.02, "bounds": [], "counts": [5]}],
            "in_flight": 2,
            "errors": [{"time": "2026-01-02T03:04:05+00:00", "method": "greet", "error": "ValueError"}],
        }
        names = {"server": "agent", "pid": 7, "state": "ready"}
        self.supervisor.inspected = [
            {"number": 1, **names, "services": [other, {**other, "binary": "nova-other"}]},
            {"number": 2, **names, "services": None},
            {"number": 3, **names, "services": [own]},
            {"number": 4, **names, "state": "backing off", "services": None},
        ]
        told = await self.node.describe(RequestContext())
        (greet,) = [row for row in told["methods"] if row["method"] == "greet"]
        self.assertEqual((greet["calls"], greet["errors"], greet["in_flight"]), (5, 1, 2))
        self.assertEqual((told["worker"], told["in_flight"], told["silent"]), (3, 2, [2]))
        self.assertEqual([error["worker"] for error in told["errors"]], [1])
        self.assertIn(("inspect", "describe"), self.supervisor.asked)

    async def test_troubles(self) -> None:
        """A worker that is not as it should be, and a check that is not ready, are troubles."""
        found = {trouble["title"]: trouble for trouble in await self.node.troubles(RequestContext())}
        self.assertEqual(found["worker crashes"]["why"][:44], "worker 1 is backing off, 3 restarts: killed ")
        self.assertEqual(found["worker crashes"]["since"], "2026-01-02T03:04:05+00:00")
        self.assertIn("not ready", found)  # this service was not started

    async def test_no_supervisor(self) -> None:
        """A supervisor that does not answer is not waited for, and nothing is told of its workers."""
        await self.control.stopService()
        self.assertEqual((await self.node.describe(RequestContext()))["workers"], [])

    async def test_drain(self) -> None:
        """A drain is the supervisor's, of all workers."""
        self.assertEqual(await self.node.drain(RequestContext()), {"draining": "supervisor"})
        self.assertEqual(self.supervisor.asked, [("drain", None)])

    async def test_restart(self) -> None:
        """So is a restart."""
        self.assertEqual(await self.node.restart(RequestContext()), {"restarting": "supervisor"})
        self.assertEqual(self.supervisor.asked, [("restart",)])

    async def test_reload(self) -> None:
        """A reload is begun by the supervisor, and not waited for: this worker is replaced meanwhile."""
        self.supervisor.wait()
        self.assertEqual(await self.node.reload(RequestContext()), {"reloading": "supervisor"})
        self.assertEqual(self.supervisor.asked, [("begin_reload",)])

    async def test_reload_refused(self) -> None:
        """What the supervisor refuses, the caller is told."""
        self.supervisor.failing = ReloadError("workers = -1 is not a whole number")
        reloading = Deferred.fromCoroutine(self.node.reload(RequestContext()))
        error = await self.assertFailure(reloading, CommandRejectedError)
        self.assertIn("workers = -1", str(error))

    async def test_status(self) -> None:
        """The supervisor tells of its reloads; one that does not answer tells nothing."""
        status = await self.node.status(RequestContext())
        self.assertEqual((status["worker"], status["reloads"]), (3, self.supervisor.reloads))
        await self.control.stopService()
        self.assertIsNone((await self.node.status(RequestContext()))["reloads"])

    async def test_undrained(self) -> None:
        """Where it cannot be told, the caller is told."""
        await self.control.stopService()
        draining = Deferred.fromCoroutine(self.node.drain(RequestContext()))
        await self.assertFailure(draining, ControlError)
