"""Tests for `novasvc service`, with a registry in memory."""

import json
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple, TypeVar

import click
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.command_context import CommandContext
from novasvc.cli.service import ALL_COLUMNS, row, service
from novasvc.errors import ProblemError, ServiceNotFoundError
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.testing import MemoryRegistry

T = TypeVar("T")


class MemoryContext(CommandContext):
    """A command context with a registry in memory."""

    def __init__(self, registry: MemoryRegistry) -> None:
        super().__init__((), {"service_down_time": 60}, {})
        self.registry = registry

    def with_registry(self, function: Callable[[IServiceRegistry], Awaitable[T]], reactor: object = None) -> T:
        async def work() -> T:
            return await function(self.registry)

        outcomes: list[T | Failure] = []
        Deferred.fromCoroutine(work()).addBoth(outcomes.append)
        (outcome,) = outcomes
        if isinstance(outcome, Failure):
            outcome.raiseException()
        return outcome


class Ran(NamedTuple):
    """The exit status and output of a command."""

    status: int
    stdout: str
    stderr: str


class ServiceCase(SynchronousTestCase):
    """A test with three services; the one on h2 has had no heartbeat for 100 seconds."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = MemoryRegistry(self.clock)
        self.lost = self.registered("h2", "novasvc-agent", "agent")
        self.clock.advance(100)
        self.agent = self.registered("h1", "novasvc-agent", "agent")
        self.compute = self.registered("h1", "nova-compute", "compute")

    def registered(self, host: str, binary: str, topic: str) -> ServiceRecord:
        record: ServiceRecord = self.successResultOf(self.registry.register(host, binary, topic, 0))
        return record

    def started(self, host: str, zone: str | None, *tags: str) -> ServiceRecord:
        """Register a service that numbers its starts."""
        start = ServiceStart(
            host=host,
            binary="novasvc-agent",
            topic="agent",
            version=0,
            owner="o",
            machine="m1",
            pid=7,
            zone=zone,
            tags=tags,
        )
        record: ServiceRecord = self.successResultOf(self.registry.begin(start))
        return record

    def row(self, record: ServiceRecord) -> ServiceRecord:
        """Read a row again."""
        found: ServiceRecord = self.successResultOf(self.registry.get(str(record.id)))
        return found

    def run_command(self, *arguments: str) -> Ran:
        """Run a command, and return its status and output."""
        context = MemoryContext(self.registry)
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = service.main(arguments, prog_name="service", obj=context, standalone_mode=False)
        return Ran(status or 0, out.getvalue(), err.getvalue())

    def output(self, *arguments: str) -> str:
        """Run a command that succeeds with nothing on standard error; return its output."""
        ran = self.run_command(*arguments)
        self.assertEqual((ran.status, ran.stderr), (0, ""))
        return ran.stdout


class ListTests(ServiceCase):
    """Tests for `novasvc service list`."""

    def test_api_servers_of_nova(self) -> None:
        """Rows of Nova's API servers, which send no heartbeats, are listed and checked only if asked for by name."""
        self.registered("h1", "nova-osapi_compute", "osapi_compute")
        self.assertNotIn("osapi", self.output("list"))
        self.assertIn("osapi", self.output("list", "--binary", "nova-osapi_compute"))

    def test_limit_without_api_servers(self) -> None:
        """They do not count for --limit, in any order."""
        for host in ("a1", "a2", "a3"):
            self.registered(host, "nova-metadata", "metadata")
        for options, ids in (
            (["--sort", "host", "--limit", "2"], "3\n2\n"),
            (["--sort", "id", "--reverse", "--limit", "1"], "3\n"),
            (["--limit", "9"], "3\n2\n1\n"),
        ):
            self.assertEqual(self.output("list", "-f", "value", "-c", "ID", *options), ids, options)
        self.assertEqual(self.run_command("list", "--check", "--sort", "host", "--limit", "1").status, 0)

    def test_rows(self) -> None:
        """Each service has a row with zone, status and state, as in OpenStack's client."""
        columns = ("ID", "Binary", "Host", "Zone", "Status", "State")
        chosen = [part for column in columns for part in ("-c", column)]
        self.assertEqual(
            self.output("list", "-f", "value", *chosen).splitlines(),
            [
                "3 nova-compute h1 nova enabled up",
                "2 novasvc-agent h1 internal enabled up",
                "1 novasvc-agent h2 internal enabled down",
            ],
        )

    def test_columns(self) -> None:
        """The columns are those of OpenStack's client, with --long too."""
        header = "ID,Binary,Host,Zone,Status,State,Updated At"
        self.assertEqual(self.output("list", "-f", "csv").splitlines()[0], header)
        long_ = (
            f"{header},Disabled Reason,Forced Down,Lifecycle,Lifecycle Since,Lifecycle Reason,Incarnation,Tags,Version"
        )
        self.assertEqual(self.output("list", "--long", "-f", "csv").splitlines()[0], long_)

    def test_incarnation(self) -> None:
        """A service that numbers its starts has its state, its number, its zone and its tags; others have none."""
        record = self.started("h3", "az1", "gpu", "ssd")
        self.successResultOf(self.registry.enter(record.id, 1, "failed", reason="no disk"))
        columns = ("Zone", "State", "Lifecycle", "Lifecycle Reason", "Incarnation", "Tags", "Machine", "PID")
        chosen = [part for column in columns for part in ("-c", column)]
        self.assertEqual(
            self.output("list", "--host", "h3", "-f", "csv", *chosen).splitlines()[1:],
            ['az1,down,failed,no disk,1,m1,7,"gpu, ssd"'],
        )
        self.assertIn("internal,", self.output("list", "--host", "h2", "-f", "csv", *chosen).splitlines()[1])
        shown = self.output("show", str(record.id), "-f", "value", "-c", "Lifecycle", "-c", "Machine")
        self.assertEqual(shown.split(), ["failed", "m1"])

    def test_other_columns(self) -> None:
        """Other columns can be selected."""
        self.assertEqual(self.output("list", "-f", "value", "-c", "uuid", "--host", "h2"), f"{self.lost.uuid}\n")
        self.assertEqual(tuple(row(self.lost, 60)), ALL_COLUMNS)
        self.assertEqual(self.output("list", "-f", "csv", "-c", "uuid", "--host", "h9"), "UUID\n")

    def test_filters(self) -> None:
        """--host and --binary filter."""
        self.assertEqual(
            self.output("list", "-f", "value", "-c", "ID", "--host", "h1", "--binary", "nova-compute"), "3\n"
        )
        self.assertEqual(self.output("list", "-f", "value", "--host", "h9"), "")

    def test_host_pattern(self) -> None:
        """--host takes a pattern, as a shell has it; services that do not match do not count for --limit."""
        for options, ids in (
            (["--host", "*2"], "1\n"),
            (["--host", "h[13]", "--binary", "novasvc-agent"], "2\n"),
            (["--host", "h?", "--sort", "id", "--limit", "2"], "1\n2\n"),
            (["--host", "*1", "--sort", "id", "--limit", "1"], "2\n"),
            (["--host", "H*"], ""),
        ):
            self.assertEqual(self.output("list", "-f", "value", "-c", "ID", *options), ids, options)

    def test_zones_and_tags(self) -> None:
        """--zone takes every zone that the list shows, and of several --tag a service has all."""
        self.started("h3", "az1", "blue", "ssd")
        self.started("h4", "internal", "blue")
        for options, ids in (
            (["--zone", "az1"], "4\n"),
            (["--zone", "internal"], "2\n1\n5\n"),
            (["--zone", "internal", "--limit", "1", "--sort", "id", "--reverse"], "5\n"),
            (["--zone", "nova"], "3\n"),
            (["--tag", "blue"], "4\n5\n"),
            (["--tag", "blue", "--tag", "ssd"], "4\n"),
            (["--tag", "blue", "--tag", "gpu"], ""),
        ):
            self.assertEqual(self.output("list", "-f", "value", "-c", "ID", *options), ids, options)

    def test_states(self) -> None:
        """--state, --status, --topic and --search filter."""
        self.output("disable", "2", "--reason", "new disk")
        for options, ids in (
            (["--state", "down"], "1\n"),
            (["--state", "up"], "3\n2\n"),
            (["--status", "disabled"], "2\n"),
            (["--status", "enabled", "--state", "up"], "3\n"),
            (["--topic", "compute"], "3\n"),
            (["--search", "DISK"], "2\n"),
        ):
            self.assertEqual(self.output("list", "-f", "value", "-c", "ID", *options), ids, options)

    def test_order(self) -> None:
        """--sort, --reverse and --limit order and bound the list."""
        for options, ids in (
            (["--sort", "id"], "1\n2\n3\n"),
            (["--sort", "id", "--reverse", "--limit", "2"], "3\n2\n"),
            (["--sort", "seen", "--limit", "1"], "1\n"),
        ):
            self.assertEqual(self.output("list", "-f", "value", "-c", "ID", *options), ids, options)

    def test_ages(self) -> None:
        """The table for people has ages; what programs read has time stamps."""
        self.successResultOf(self.registry.beat(self.agent.id))
        for seconds, age in ((3.9, "4 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (3 * 86400, "3 d ago")):
            self.clock.advance(seconds)
            self.assertEqual(self.output("list", "-f", "value", "-c", "Last Seen", "--host", "h1").split("\n")[1], age)
        self.assertIn("| Last Seen |", self.output("list"))
        self.assertNotIn("Last Seen", self.output("list", "-f", "csv"))

    def test_second_read(self) -> None:
        """Other services are read only if a listed one is silent, and only for people and --check."""

        asked: list[object] = []
        read_outages = MemoryRegistry.outages

        def outages(registry: MemoryRegistry, rule: VerdictRule) -> Deferred[Outages]:
            asked.append(rule)
            return read_outages(registry, rule)

        self.patch(MemoryRegistry, "outages", outages)
        self.successResultOf(self.registry.beat(self.agent.id))
        self.clock.advance(61)
        self.successResultOf(self.registry.beat(self.compute.id))
        self.output("list", "--binary", "nova-compute")
        self.output("list", "-f", "json")
        self.assertEqual(len(asked), 0)
        self.output("list")
        self.run_command("list", "-f", "csv", "--check")
        self.assertEqual(len(asked), 2)

    def test_watch_and_check(self) -> None:
        """--watch never ends, so that it has no status to check."""
        error = self.assertRaises(click.UsageError, self.run_command, "list", "--watch", "--check")
        self.assertIn("use one of them", str(error))

    def test_watch_interval(self) -> None:
        """The interval of --watch is a finite number."""
        for interval in ("nan", "inf", "0.1"):
            self.assertRaises(click.UsageError, self.run_command, "list", "--watch", interval)

    def test_check(self) -> None:
        """--check exits with 1 unless all services are up, and names those that are down."""
        down = self.run_command("list", "--check")
        self.assertEqual((down.status, down.stderr), (1, "novasvc: 1 of 3 down: novasvc-agent@h2\n"))
        self.assertEqual(self.run_command("list", "--check", "--host", "h1").status, 0)

    def test_check_of_nothing(self) -> None:
        """--check fails if no service matches."""
        self.assertEqual(self.run_command("list", "--check", "--host", "h9").status, 1)


class SelectionTests(ServiceCase):
    """Tests for selecting a service."""

    def shown(self, *arguments: str) -> Any:
        return json.loads(self.output("show", "-f", "json", *arguments))["ID"]

    def test_ways(self) -> None:
        """A service is selected by its id, its uuid, or its host and binary."""
        for arguments in (
            ["3"],
            [self.compute.uuid],
            [self.compute.uuid.upper()],
            ["h1", "nova-compute"],
            ["--host", "h1", "--binary", "nova-compute"],
            ["h1", "--binary", "nova-compute"],
            ["--binary", "nova-compute"],
            ["nova-compute@h1"],
        ):
            self.assertEqual(self.shown(*arguments), 3)

    def test_only_service_of_a_host(self) -> None:
        """A host with one service needs no binary."""
        self.assertEqual(self.shown("h2"), 1)

    def test_ambiguous(self) -> None:
        """If several services match, the error lists them."""
        error = self.assertRaises(ProblemError, self.run_command, "show", "h1")
        self.assertIn("service on host h1: several services match: nova-compute@h1, novasvc-agent@h1", str(error))

    def test_unknown(self) -> None:
        """An unknown service is an error that names it."""
        for arguments, said in (
            (["9"], "service 9 "),
            (["h9", "x"], "service x@h9 "),
            (["h9"], "service on host h9 "),
            (["x@h9"], "service x@h9 "),
        ):
            error = self.assertRaises(ServiceNotFoundError, self.run_command, "show", *arguments)
            self.assertIn(said, str(error))


class ChangeTests(ServiceCase):
    """Tests for the commands that change a row."""

    def test_disable_and_enable(self) -> None:
        """A service is disabled with a reason; enabling it clears the reason."""
        self.assertEqual(
            self.output("disable", "1", "--reason", "new disk"), "novasvc-agent@h2 is disabled: new disk\n"
        )
        row = self.row(self.lost)
        self.assertEqual((row.disabled, row.disabled_reason), (True, "new disk"))
        self.assertEqual(self.output("enable", "1"), "novasvc-agent@h2 is enabled\n")
        row = self.row(self.lost)
        self.assertEqual((row.disabled, row.disabled_reason), (False, None))

    def test_force_down(self) -> None:
        """A service is forced down, and its heartbeats count again with --unset."""
        self.output("force-down", "h1", "nova-compute")
        self.assertTrue(self.row(self.compute).forced_down)
        self.assertEqual(self.output("show", "3", "-f", "value", "-c", "State"), "down\n")
        self.output("force-down", "--unset", "h1", "nova-compute")
        self.assertFalse(self.row(self.compute).forced_down)

    def test_delete(self) -> None:
        """A row is deleted; if its node is up, a warning says that it takes in nothing any more."""
        gone = self.run_command("delete", "1")
        self.assertEqual((gone.stdout, gone.stderr), ("novasvc-agent@h2 is deleted\n", ""))
        self.assertIn("takes in nothing from its next heartbeat on", self.run_command("delete", "2").stderr)
        self.assertEqual(self.output("list", "-f", "value", "-c", "ID"), "3\n")
