"""Tests for `novasvc fleet`, on nodes that answer over a broker in memory, on a Clock."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import attrs
import click
from click.testing import CliRunner
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli import fleet_history
from novasvc.cli.command_context import CommandContext
from novasvc.cli.fleet import fleet
from novasvc.cli.fleet_connections import FleetConnections
from novasvc.cli.fleet_display import FleetDisplay
from novasvc.cli.fleet_operations import HALTED, operate, resume
from novasvc.cli.fleet_options import who_operates
from novasvc.cli.fleet_ping import ping_fleet
from novasvc.cli.output import Output
from novasvc.cli.progress import ProgressBar
from novasvc.config import Settings
from novasvc.errors import BrokerUnavailableError, OperationConflictError
from novasvc.fleet.calls import NodeCalls
from novasvc.fleet.plan import BatchSize, Limits
from novasvc.fleet.selection import Selection
from novasvc.registry.operation import RUNNER_TIMEOUT
from novasvc.registry.record import ServiceChanges
from tests.support.fleet_rig import FleetRig, make_incarnation, make_record
from tests.support.middleware_rig import Failing

LIMITS = Limits(batch=BatchSize(2), canary=1, timeout=60.0)


class FleetCase(FleetRig):
    """Runs the functions behind the commands."""

    def setUp(self) -> None:
        super().setUp()
        self.out, self.err = StringIO(), StringIO()

        async def connect() -> NodeCalls:
            return self.calls

        self.connections = FleetConnections(Settings(), self.registry, self.store, self.clock, connect)

    def run_it(self, working: Any) -> Any:
        """Run a coroutine to its end, and return its result."""
        with redirect_stdout(self.out), redirect_stderr(self.err):
            running = Deferred.fromCoroutine(working)
            self.run_on(running)
        return self.successResultOf(running)

    def operate(self, kind: str = "restart", selection: Selection | None = None, **given: Any) -> int:
        limits = given.pop("limits", LIMITS)
        given = {"dry_run": False, "as_json": False, "yes": True, **given}
        status: int = self.run_it(operate(self.connections, kind, selection or Selection(), limits, **given))
        return status

    def lines(self) -> list[str]:
        """Return the lines that were printed since the last call."""
        text = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return text.splitlines()


class OperateTests(FleetCase):
    """Tests for novasvc.cli.fleet_operations and fleet_display."""

    def test_text(self) -> None:
        """The plan, each wave and each outcome are lines; the last one sums up."""
        for number in range(4):
            self.add(f"h{number}")
        self.assertEqual(self.operate(), 0)
        self.assertEqual(
            self.lines(),
            [
                "restart: 4 services in 3 waves; canary 1, then 2 each; halts if more than 0 fail; 60 s for each",
                "  wave 1 (canary): novasvc-agent@h0",
                "  wave 2: novasvc-agent@h1, novasvc-agent@h2",
                "  wave 3: novasvc-agent@h3",
                "operation 1 (restart) begins; `novasvc fleet show 1`",
                "wave 1 of 3: novasvc-agent@h0",
                "  novasvc-agent@h0: done: incarnation 2",
                "wave 2 of 3: novasvc-agent@h1, novasvc-agent@h2",
                "  novasvc-agent@h1: done: incarnation 2",
                "  novasvc-agent@h2: done: incarnation 2",
                "wave 3 of 3: novasvc-agent@h3",
                "  novasvc-agent@h3: done: incarnation 2",
                "operation 1 is done: 4 done",
            ],
        )

    def test_json(self) -> None:
        """For programs, each of these is a JSON object."""
        for number in range(2):
            self.add(f"h{number}")
        self.assertEqual(self.operate("disable", as_json=True, options={"reason": "x"}), 0)
        events = [json.loads(line) for line in self.lines()]
        self.assertEqual([event["event"] for event in events], ["plan", "begin", *["wave", "node", "node"] * 2, "end"])
        self.assertEqual(events[0]["waves"], [["novasvc-agent@h0"], ["novasvc-agent@h1"]])
        self.assertEqual(events[3]["state"], "running")
        self.assertEqual(
            events[4], {"event": "node", "service": "novasvc-agent@h0", "state": "done", "detail": "disabled"}
        )
        counts = {"pending": 0, "running": 0, "done": 2, "failed": 0, "skipped": 0}
        self.assertEqual(events[-1], {"event": "end", "id": 1, "state": "done", "reason": None, "counts": counts})

    def test_dry_run(self) -> None:
        """A dry run prints the waves, and stores and changes nothing."""
        for number in range(3):
            self.add(f"h{number}")
        self.assertEqual(self.operate(dry_run=True), 0)
        self.assertEqual(len(self.lines()), 3)
        self.assertEqual((self.result(self.store.list(9)), self.told()), ([], [[]] * 3))

    def test_left_out(self) -> None:
        """Services that are down, or cannot be called, are left out of operations that call nodes, with the reason.

        Then not all that were selected have succeeded, which the last line and the exit status tell.
        """
        self.add("h1")
        self.add("h2").stop()
        forced = self.add("h3")
        self.result(self.registry.update(forced.record.id, ServiceChanges(forced_down=True)))
        self.result(self.registry.register("h4", "novasvc-web", None, 0))
        self.assertEqual(self.operate(dry_run=True), 0)
        self.assertEqual(
            self.lines()[2:],
            [
                "  left out: novasvc-agent@h2: it is down: stopped cleanly at 1970-01-01 00:00:00 UTC",
                "  left out: novasvc-agent@h3: it is down: forced down by an operator",
                "  left out: novasvc-web@h4: it serves no topic, so it cannot be called",
            ],
        )
        self.assertEqual(self.operate("enable", dry_run=True), 0)
        self.assertIn("4 services", self.lines()[0])
        self.assertEqual(self.operate(selection=Selection(host="h2")), 1)
        self.assertIn("no service is left", self.err.getvalue())
        self.assertEqual(self.operate(), 1)
        left_out = "3 left out: novasvc-agent@h2, novasvc-agent@h3, novasvc-web@h4"
        self.assertEqual(self.lines()[-1], f"operation 1 is done: 1 done; {left_out}")

    def test_suspect(self) -> None:
        """Services that are suspect are left out as such, not as down: they run, as far as is known."""
        for number in range(6):
            self.add(f"h{number}")
            self.processes[number]._beating.stop()
        self.clock.pump([10.0] * 7)
        self.assertEqual(self.operate(dry_run=True), 1)
        told = "  left out: novasvc-agent@h0: it is suspect: no heartbeat since 1970-01-01 00:00:00 UTC, as from others"
        self.assertIn(told, self.out.getvalue())

    def test_starting(self) -> None:
        """A service that starts for longer than service_down_time, and tells so, is not left out."""
        self.add("h1")._beating.stop()
        self.clock.pump([10.0] * 7)
        self.processes[0]._enter("starting", until=0.0)
        self.assertEqual(self.operate(dry_run=True), 0)
        self.assertNotIn("left out", self.out.getvalue())

    def test_same_process(self) -> None:
        """Services of the same process that were not selected are named: it happens to them, too."""
        for host in ("h1.a", "h1.b"):
            self.add(host, pid=7, machine="m1")
        self.operate(selection=Selection(host="*.a"), dry_run=True)
        self.assertEqual(self.lines()[-1], "  they share a process, so this happens to them, too: novasvc-agent@h1.b")

    def test_none(self) -> None:
        """A selection that matches nothing is an error that repeats it."""
        self.add("h1")
        self.assertEqual(self.operate(selection=Selection(host="x*", zone="z9")), 1)
        self.assertEqual(self.err.getvalue(), "novasvc: none of 1 registered services matches: host x*, zone z9\n")

    def test_halted(self) -> None:
        """A halted operation has a status of its own, and says why, what is left, and how to go on."""
        for number in range(4):
            self.add(f"h{number}")
        self.processes[0].trouble = "fails"
        self.assertEqual(self.operate(), HALTED)
        self.assertEqual(
            self.lines()[-3:],
            [
                "operation 1 is halted (the canary failed: novasvc-agent@h0): 3 pending, 1 failed",
                "  left: novasvc-agent@h1, novasvc-agent@h2, novasvc-agent@h3",
                "  to go on: `novasvc fleet resume 1`, or without the failed ones: --skip-failed",
            ],
        )
        self.processes[0].trouble = ""
        self.assertEqual(self.run_it(resume(self.connections, 1, skip_failed=True, as_json=False)), 1)
        lines = self.lines()
        self.assertEqual(lines[0], "operation 1 (restart) goes on; `novasvc fleet show 1`")
        self.assertEqual(lines[-1], "operation 1 is done: 3 done, 1 skipped")

    def test_failed(self) -> None:
        """Failures within the budget are status 1."""
        for number in range(3):
            self.add(f"h{number}")
        self.processes[2].trouble = "fails"
        self.assertEqual(self.operate(limits=Limits(batch=BatchSize(2), canary=1, max_failures=1, timeout=60.0)), 1)
        self.assertEqual(self.lines()[-1], "operation 1 is done: 2 done, 1 failed")

    def test_two_operators(self) -> None:
        """A second operator is refused, by the name of the first; afterwards not."""
        for number in range(3):
            self.add(f"h{number}")
        self.begin("restart", owner="alice")
        with redirect_stdout(self.out):
            running = Deferred.fromCoroutine(
                operate(self.connections, "drain", Selection(), LIMITS, dry_run=False, as_json=False, yes=True)
            )
            self.run_on(running, limit=5)
        error = self.failureResultOf(running, OperationConflictError).value
        self.assertIn("operation 1 (restart, by alice@box): it has novasvc-agent@h0, novasvc-agent@h1", str(error))
        self.assertIn("if its command has died, run `novasvc fleet resume 1` after 30 s", str(error))
        self.result(self.store.abort(1, "bob@box"))
        self.assertEqual(self.operate("drain"), 0)

    def test_interrupted(self) -> None:
        """Ctrl-C says how to go on."""
        self.add("h1")
        with redirect_stdout(self.out), redirect_stderr(self.err):
            running = Deferred.fromCoroutine(
                operate(self.connections, "restart", Selection(), LIMITS, dry_run=False, as_json=False, yes=True)
            )
            self.run_on(running, limit=1)
            running.cancel()
            self.clock.advance(0)
        self.failureResultOf(running, CancelledError)
        self.assertIn("operation 1 is interrupted; `novasvc fleet resume 1`", self.err.getvalue())
        self.assertEqual(self.result(self.store.read(1)).state, "halted")

    def test_broker_away(self) -> None:
        """Without the broker no operation begins or is resumed, so none is left behind that holds its nodes."""

        async def refuse() -> NodeCalls:
            raise BrokerUnavailableError("amqp://broker", "connection refused")

        for number in range(2):
            self.add(f"h{number}")
        there, self.connections = self.connections, attrs.evolve(self.connections, connect=refuse)
        given: Any = {"dry_run": False, "as_json": False, "yes": True}
        beginning = Deferred.fromCoroutine(operate(self.connections, "restart", Selection(), LIMITS, **given))
        self.failureResultOf(beginning, BrokerUnavailableError)
        self.assertEqual(self.result(self.store.list(9)), [])
        self.assertEqual(self.operate("disable"), 0)  # needs no broker
        self.processes[0].trouble = "vanishes"
        self.connections = there
        self.assertEqual(self.operate(), HALTED)
        self.connections = attrs.evolve(there, connect=refuse)
        resuming = Deferred.fromCoroutine(resume(self.connections, 2, skip_failed=True, as_json=False))
        self.failureResultOf(resuming, BrokerUnavailableError)
        self.assertEqual(self.result(self.store.read(2)).state, "halted")

    def test_no_terminal(self) -> None:
        """Without a terminal to ask on, --yes is needed."""
        self.add("h1")
        with redirect_stdout(self.out):
            running = Deferred.fromCoroutine(
                operate(self.connections, "restart", Selection(), LIMITS, dry_run=False, as_json=False, yes=False)
            )
            self.run_on(running, limit=1)
        self.assertIn("add --yes", str(self.failureResultOf(running, click.UsageError).value))
        self.assertEqual(self.told(), [[]])

    def test_terminal(self) -> None:
        """On a terminal there is a bar with the wave and those that are waited for."""

        class Terminal(StringIO):
            def isatty(self) -> bool:
                return True

        screen = Terminal()
        for number in range(2):
            self.add(f"h{number}")
        operation = self.begin("restart").operation
        nodes = self.result(self.store.nodes(operation.id))
        with ProgressBar("restart", screen) as bar, redirect_stdout(self.out):
            display = FleetDisplay(as_json=False, bar=bar)
            display.begin(operation, nodes)
            display.wave(0, nodes[:1])
            display.changed(nodes[0].__class__(**{**_fields(nodes[0]), "state": "running"}))
            display.changed(nodes[0].__class__(**{**_fields(nodes[0]), "state": "failed", "detail": "no [b]answer"}))
        self.assertIn("wave 1 of 2", screen.getvalue())
        self.assertIn("waiting for novasvc-agent@h0", screen.getvalue())
        self.assertIn("novasvc-agent@h0: failed: no [b]answer", screen.getvalue())


def _fields(node: Any) -> dict[str, Any]:
    return {name: getattr(node, name) for name in ("service_id", "name", "position", "wave")}


class PingTests(FleetCase):
    """Tests for novasvc.cli.fleet_ping."""

    def ping(self, **given: Any) -> int:
        selection = given.pop("selection", Selection())
        status: int = self.run_it(ping_fleet(self.connections, selection, 5.0, **{"as_json": False, **given}))
        return status

    def test_all(self) -> None:
        """Those that answer are listed, and summed up."""
        for number in range(3):
            self.add(f"h{number}")
        self.assertEqual(self.ping(), 0)
        lines = self.lines()
        self.assertRegex(lines[0], r"^novasvc-agent@h0 responded in \d+\.\d ms$")
        self.assertRegex(lines[3], r"^3 of 3 services responded in \d+\.\d s; half of them within \d+\.\d ms$")

    def test_silent(self) -> None:
        """Those that do not answer are listed with the reason, and make status 1."""
        self.add("h0")
        self.add("h1").stop(cleanly=False)
        self.assertEqual(self.ping(), 1)
        self.assertIn("novasvc-agent@h1: no process serves it: messages to it cannot be delivered", self.lines())

    def test_answer_is_an_error(self) -> None:
        """A service that answers with an exception of Python is listed with it, among the results of the others."""
        self.add("h0", middleware=[Failing()])
        self.add("h1")
        self.assertEqual(self.ping(), 1)
        self.flushLoggedErrors(LookupError)
        lines = self.lines()
        self.assertRegex(lines[0], "^novasvc-agent@h1 responded in ")
        self.assertRegex(lines[1], "^novasvc-agent@h0: remote error: LookupError no such tenant")

    def test_down(self) -> None:
        """Of those that do not answer, the line says what the registry knows."""
        self.add("h0")
        record = self.add("h1").record
        self.registry.update(record.id, ServiceChanges(forced_down=True))
        self.processes[1].stop(cleanly=False)
        self.assertEqual(self.ping(), 1)
        problem = "no process serves it: messages to it cannot be delivered"
        self.assertIn(f"novasvc-agent@h1: {problem}; down: forced down by an operator", self.lines())

    def test_json(self) -> None:
        """For programs, each answer is a JSON object."""
        self.add("h0")
        self.add("h1").stop(cleanly=False)
        self.assertEqual(self.ping(as_json=True), 1)
        first, second = sorted((json.loads(line) for line in self.lines()), key=lambda event: event["service"])
        self.assertEqual((first["problem"], second["milliseconds"]), (None, None))

    def test_none(self) -> None:
        """A selection that matches nothing is an error."""
        self.assertEqual(self.ping(), 1)
        self.assertIn("none of 0 registered services matches: all services", self.err.getvalue())

    def test_bound(self) -> None:
        """At most a hundred are under way; ten thousand need no more than their answers' time."""
        most = waiting = 0

        class Slow(NodeCalls):
            async def ping(self, record: Any, seconds: float) -> float:
                nonlocal most, waiting
                waiting += 1
                most = max(most, waiting)
                tick: Deferred[None] = Deferred()
                clock.callLater(0.01, tick.callback, None)
                await tick
                waiting -= 1
                return 0.01

        clock = self.clock
        self.calls = Slow(self.client, self.clock)
        self.registry._by_id = {number: make_record(number) for number in range(10_000)}
        self.assertEqual(self.ping(), 0)
        self.assertEqual(most, 100)
        (line,) = self.lines()
        self.assertTrue(line.startswith("10000 of 10000 services responded in"), line)


class HistoryTests(FleetCase):
    """Tests for novasvc.cli.fleet_history."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(3):
            self.add(f"h{number}")
        self.context = _Context(self)

    def command(self, *arguments: str) -> str:
        ran = CliRunner().invoke(fleet, arguments, obj=self.context, catch_exceptions=False)
        self.assertEqual(ran.exit_code, 0, ran.output)
        return ran.output

    def test_list(self) -> None:
        """Operations are listed, the latest first, with how far they are."""
        self.operate("disable")
        self.begin("restart", owner="bob")
        self.clock.advance(RUNNER_TIMEOUT + 1)
        rows = json.loads(self.command("list", "-f", "json"))
        states = [(row["ID"], row["Kind"], row["State"]) for row in rows]
        self.assertEqual(states, [(2, "restart", "unattended"), (1, "disable", "done")])
        self.assertEqual((rows[0]["Left"], rows[1]["Done"], rows[0]["Operator"]), (3, 3, "bob@box"))
        self.assertIn("unattended", self.command("list", "--limit", "1"))

    def test_show(self) -> None:
        """An operation is shown with its services."""
        self.processes[0].trouble = "fails"
        self.operate()
        shown = self.command("show", "1")
        self.assertIn("is halted: the canary failed: novasvc-agent@h0", shown)
        self.assertIn("its start failed: init_host: no disk", shown)
        found = json.loads(self.command("show", "1", "-f", "json"))
        self.assertEqual([node["State"] for node in found["Nodes"]], ["failed", "pending", "pending"])
        incarnations = self.command("show", "1", "--state", "nothing", "-f", "csv", "-c", "Incarnation Before")
        self.assertEqual(incarnations, "Incarnation Before\n")
        failed = self.command("show", "1", "--state", "failed", "-f", "value", "-c", "Service")
        self.assertEqual(failed, "novasvc-agent@h0\n")

    def test_abort(self) -> None:
        """An operation is aborted, and what is left is said."""
        self.begin("restart")
        self.assertEqual(self.command("abort", "1"), "operation 1 is aborted: 0 done, 0 failed, 3 left\n")
        self.assertEqual(self.result(self.store.read(1)).reason, f"aborted by {who_operates()}")


class _Context(CommandContext):
    """A command context whose fleet is in memory."""

    def __init__(self, case: FleetCase) -> None:
        super().__init__((), {}, {})
        self.case = case

    def with_fleet(self, function: Any) -> Any:
        return self.case.run_it(function(self.case.connections))


class OptionTests(SynchronousTestCase):
    """What is refused before anything is done."""

    def test_refused(self) -> None:
        """Options that are not valid are usage errors that say what is right."""
        for arguments, text in (
            (("restart", "--batch", "0"), "not a number of nodes"),
            (("restart", "--batch", "200%"), "a percentage such as"),
            (("restart", "--canary", "-1"), "--canary"),
            (("restart", "--max-failures", "x"), "--max-failures"),
            (("restart", "--timeout", "inf"), "not a number of seconds"),
            (("disable", "--reason", ""), "--reason takes 1 to 255 characters"),
            (("show", "x"), "'x' is not a valid integer"),
            (("restrat",), "Did you mean 'restart'?"),
        ):
            ran = CliRunner().invoke(fleet, arguments, obj=CommandContext((), {}, {}))
            self.assertEqual(ran.exit_code, 2, arguments)
            self.assertIn(text, ran.output.replace("\n", " "))

    def test_output(self) -> None:
        """A row of the list has all its columns."""
        self.assertEqual(tuple(fleet_history.row(_operation())), fleet_history.ALL_COLUMNS)
        self.assertTrue(Output("table", ()))

    def test_selection(self) -> None:
        """Services are selected by name, pattern, zone and tag, and ordered by zone, host and binary."""
        records = [
            make_record(1, host="b1", incarnation=make_incarnation(zone="z2", tags=("gpu",))),
            make_record(2, host="a1", incarnation=make_incarnation(zone="z2")),
            make_record(3, host="c1", incarnation=make_incarnation(zone="z1", tags=("gpu", "big"))),
            make_record(4, host="a2", topic="web", binary="web"),
        ]

        def hosts(**given: Any) -> list[str]:
            return [record.host for record in Selection(**given).choose(records)]

        self.assertEqual(hosts(), ["a2", "c1", "a1", "b1"])
        self.assertEqual(hosts(zone="z2"), ["a1", "b1"])
        self.assertEqual(hosts(tag="gpu"), ["c1", "b1"])
        self.assertEqual(hosts(host="a*"), ["a2", "a1"])
        self.assertEqual(hosts(host="[bc]1", tag="gpu", zone="z1"), ["c1"])
        self.assertEqual((hosts(binary="web"), hosts(topic="web"), hosts(host="A*")), (["a2"], ["a2"], []))


def _operation() -> Any:
    rig = FleetRig("setUp")
    rig.setUp()
    rig.add("h1")
    return rig.begin("drain").operation
