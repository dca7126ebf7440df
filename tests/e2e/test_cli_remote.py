"""Tests for the commands that call services, with real nodes and a real broker."""

import json
import os
import pty
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, Process, program
from tests.servers import shared_broker, vhost_url

MANAGER = '''
import time
from novasvc import Manager, rpc
from twisted.internet.defer import CancelledError, Deferred

class Desk(Manager):
    """Echoes, notes in a file, raises, or takes its time."""
    @rpc.expose
    def echo(self, context, value):
        return value
    @rpc.expose
    def note(self, context, text):
        with open(f"{self.host}.notes", "a") as notes:
            notes.write(text + "\\n")
    @rpc.expose
    def fail(self, context):
        raise LookupError("no such desk\\x1b[2J\\nhere")
    @rpc.expose
    async def work(self, context, begins=False):
        if begins:
            self.note(context, "begun")
        context.progress(0.25, "first\x1b[2J")
        try:
            await Deferred()
        except CancelledError:
            self.note(context, "cancelled")
            raise
    @rpc.expose
    def where(self, context):
        if self.host == "h3":
            raise LookupError("lost")
        return {"host": self.host}

    @rpc.expose(allow="ops")
    def close(self, context):
        return "closed"
    @rpc.expose(blocking=True)
    def sleep(self, context, seconds):
        self.note(context, "sleeps")
        time.sleep(seconds)
'''


class RemoteCommandTests(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "desks.py").write_text(MANAGER)
        self.url = vhost_url(self, shared_broker())

    def node(self, host: str, **environ: str) -> Process:
        """Start a node that serves the topic "desk"."""
        options = ["--host", host, "--topic", "desk", "--binary", "desk", "--manager", "desks.Desk"]
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--transport-url", self.url, *options]
        state = {"NOVASVC_STATE_DIR": str(self.folder / f"state-{host}"), "PYTHONPATH": str(self.folder)}
        node = Process(self, command, self.folder, **state, **environ)
        node.wait_for("is running")
        return node

    def begin(self, *arguments: str, **environ: str) -> Process:
        return Process(self, [program("novasvc"), "--transport-url", self.url, *arguments], self.folder, **environ)

    def run_command(self, *arguments: str, **environ: str) -> tuple[int, str]:
        command = self.begin(*arguments, **environ)
        return command.wait(), command.output

    def notes(self, host: str, count: int) -> list[str]:
        """Wait until a host has this number of notes."""
        path = self.folder / f"{host}.notes"
        deadline = time.monotonic() + PATIENCE
        while not path.exists() or len(path.read_text().splitlines()) < count:
            if time.monotonic() > deadline:
                self.fail(f"{host} has not {count} notes")
            time.sleep(0.02)  # another process writes the file
        return path.read_text().splitlines()

    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_one_node(self) -> None:
        """A node is called by topic and by host; each failure is one line with status 1."""
        self.node("h1.example.org")
        self.assertEqual(self.run_command("call", "desk", "echo", "value=h\u00e9"), (0, "h\u00e9\n"))
        self.assertEqual(self.run_command("call", "desk", "echo", "value=1", "--idempotent"), (0, "1\n"))
        status, output = self.run_command("call", "desk.h1.example.org", "echo", "value=[1, null]", "--json")
        self.assertEqual((status, json.loads(output)), (0, [1, None]))
        status, output = self.run_command("ping", "desk.h1.example.org", "--count", "2", "--interval", "0")
        self.assertEqual(status, 0)
        self.assertRegex(
            output, r"1: desk responded in [\d.]+ ms\n2: desk responded in [\d.]+ ms\n2 of 2 calls answered\n"
        )
        for arguments, text in (
            (("call", "desk", "nothing"), "no method 'nothing'"),
            (("call", "desk", "echo"), "value"),
            (("call", "desk", "fail"), r"remote error: LookupError no such desk\x1b[2J\nhere"),
            (("call", "desk", "echo", "value=1", "--version", "9.0"), "9.0"),
            (("call", "desk", "sleep", "seconds=9", "--timeout", "0.5"), "within 0.5 s"),
            (("call", "desk.elsewhere", "echo", "value=1"), "no server for desk.elsewhere"),
        ):
            status, output = self.run_command(*arguments)
            self.assertEqual((status, output.count("\n")), (1, 1), output)
            self.assertIn(text, output)
        status, output = self.run_command("ping", "nobody", "--count", "1")
        self.assertEqual(status, 1)
        self.assertIn("0 of 1 calls answered", output)

    @pytest.mark.long
    @pytest.mark.timeout(120)
    def test_signed(self) -> None:
        """A method with ``allow`` is called with the operator's key, and without it is refused."""
        status, line = self.run_command("key", "ops", "--file", "ops.key")
        self.assertEqual(status, 0)
        callers = self.folder / "callers"
        callers.write_text(line)
        callers.chmod(0o644)
        self.node("h1", NOVASVC_RPC_CALLERS_FILE=str(callers))
        status, output = self.run_command("call", "desk", "close")
        self.assertEqual(status, 1)
        self.assertIn("it is not signed; set rpc_signing_key_file at the caller", output)
        key = {"NOVASVC_RPC_SIGNING_KEY_FILE": str(self.folder / "ops.key")}
        self.assertEqual(self.run_command("call", "desk", "close", **key), (0, "closed\n"))

    @pytest.mark.timeout(240)
    def test_unreachable(self) -> None:
        """With access to the registry, the error for a service that is up does not advise starting it."""
        # So seldom that the node does not restore the exchange before the command has called.
        self.node("h1", NOVASVC_REPORT_INTERVAL="200", NOVASVC_SERVICE_DOWN_TIME="600")
        state = {"NOVASVC_STATE_DIR": str(self.folder / "state-h1"), "NOVASVC_SERVICE_DOWN_TIME": "600"}
        vhost = self.url.rpartition("/")[2]
        for target, text in (
            ("desk.h2", "no such service is registered"),
            (
                "desk.h11",
                "no such service is registered; start a service with this topic, or check topic and host; did",
            ),
            ("desk.h11", "did you mean desk.h1?"),
            ("dsk.h1", "did you mean the topic 'desk'?"),
            ("desk.h1", "although 1 of 1 such services are up"),
        ):
            if target == "desk.h1":
                shared_broker().delete_exchange(vhost, "nova")
            command = Process(
                self,
                [program("novasvc"), "--transport-url", self.url, "call", target, "echo", "value=1"],
                self.folder,
                **state,
            )
            self.assertEqual((command.wait(), command.output.count("\n")), (1, 1), command.output)
            self.assertIn(text, command.output)

    @pytest.mark.long
    def test_watched(self) -> None:
        """With --call-monitor a call may last longer than the heartbeat timeout."""
        self.node("h1")
        self.assertEqual(
            self.run_command("call", "desk", "sleep", "seconds=3", "--call-monitor", "2", "--json"), (0, "null\n")
        )

    def test_interrupted(self) -> None:
        """An interrupted call ends at once, and leaves no queue behind."""
        self.node("h1")
        calling = self.begin("call", "desk.h1", "sleep", "seconds=60")
        self.notes("h1", 1)
        vhost = self.url.rpartition("/")[2]
        self.assertEqual([q for q in shared_broker().queues(vhost) if q.startswith("reply_")][1:], [])
        begun = time.monotonic()
        status = calling.stop(signal.SIGINT)
        self.assertEqual(
            (status, calling.output),
            (130, "\nnovasvc: interrupted; if desk.h1 has the call, it was asked to cancel 'sleep'\n"),
        )
        self.assertLess(time.monotonic() - begun, 10)
        self.assertEqual([q for q in shared_broker().queues(vhost) if q.startswith("reply_")], [])

    @pytest.mark.slow
    def test_progress(self) -> None:
        """On a terminal a bar shows the progress of the method; an interrupt cancels the method."""
        self.node("h1")
        main, terminal = pty.openpty()
        self.addCleanup(os.close, main)
        command = [program("novasvc"), "--transport-url", self.url, "call", "desk", "work"]
        calling = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"}
        )
        os.close(terminal)
        self.addCleanup(lambda: calling.poll() is not None or calling.kill())
        output = b""
        while b"first" not in output:
            output += os.read(main, 4096)
        self.assertIn(b"25%", output)
        self.assertIn(rb"first\x1b[2J", output)
        calling.send_signal(signal.SIGINT)
        self.assertEqual(self.notes("h1", 1), ["cancelled"])
        with suppress(OSError):  # EIO: the command has closed the terminal
            while os.read(main, 4096):
                pass
        self.assertEqual(calling.wait(PATIENCE), 130)

    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_gather(self) -> None:
        """With --gather each host answers once; who failed, or is missing, costs the exit status."""
        for host in ("h1", "h2"):
            self.node(host)
        arguments = [program("novasvc"), "--transport-url", self.url, "call", "desk", "where", "--gather", "--timeout"]
        state = {"NOVASVC_STATE_DIR": str(self.folder / "state-none")}
        gathering = Process(self, [*arguments, "2"], self.folder, **state)
        self.assertEqual(gathering.wait(), 0, gathering.output)
        self.assertEqual(
            sorted(gathering.output.splitlines()),
            [
                'h1: {"host": "h1"}',
                'h2: {"host": "h2"}',
                "who is missing is unknown: this host does not reach the registry",
            ],
        )
        self.node("h3")
        state = {"NOVASVC_STATE_DIR": str(self.folder / "state-h3")}  # its registry knows h3 only
        gathering = Process(self, [*arguments, "20", "--json"], self.folder, **state)
        self.assertEqual(gathering.wait(), 1, gathering.output)
        answers = {answer["host"]: answer for answer in map(json.loads, gathering.output.splitlines())}
        self.assertEqual(answers["h3"], {"host": "h3", "error": "LookupError: lost"})

    @pytest.mark.long
    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_gather_workers(self) -> None:
        """Of a node with several workers one answers; a cancellation reaches the worker that runs the call."""
        (self.folder / "desk.toml").write_text(
            '[[service]]\nbinary = "desk"\ntopic = "desk"\nmanager = "desks.Desk"\nworkers = 3\n'
        )
        state = {"NOVASVC_STATE_DIR": str(self.folder / "state"), "PYTHONPATH": str(self.folder)}
        options = ["--transport-url", self.url, "--host", "h1", "--config", "desk.toml"]
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", *options]
        node = Process(self, command, self.folder, **state)
        for _ in range(3):
            node.wait_for("desk@h1 is running")
        call = [program("novasvc"), "--transport-url", self.url, "call", "desk"]
        for number in range(1, 4):
            gathering = Process(self, [*call, "note", "text=x", "--gather"], self.folder, **state)
            self.assertEqual((gathering.wait(), gathering.output), (0, "h1: null\n"))
            self.assertEqual(self.notes("h1", number), ["x"] * number)
        working = Process(self, [*call, "work", "begins=true"], self.folder, **state)
        self.assertEqual(self.notes("h1", 4)[3:], ["begun"])
        self.assertEqual(working.stop(signal.SIGINT), 130)
        self.assertEqual(self.notes("h1", 5)[4:], ["cancelled"])
        self.assertEqual(node.stop(), -signal.SIGTERM)

    @pytest.mark.long
    def test_interrupted_while_it_connects(self) -> None:
        """An interrupt while the broker does not answer ends the command at once."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(PATIENCE)
            url = f"amqp://127.0.0.1:{silent.getsockname()[1]}/"
            command = Process(self, [program("novasvc"), "--transport-url", url, "ping", "desk"], self.folder)
            connection, _ = silent.accept()
            with connection:
                begun = time.monotonic()
                self.assertEqual((command.stop(signal.SIGINT), command.output), (130, "\n"))
                self.assertLess(time.monotonic() - begun, 5)  # the handshake has 10 s

    @pytest.mark.long
    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_fleet(self) -> None:
        """A cast reaches one node of the topic, the named one, or all with --fanout."""
        for host in ("h1", "h2"):
            self.node(host)
        status, output = self.run_command("cast", "desk.h3", "note", "text=nobody")
        self.assertEqual((status, "no server for desk.h3" in output), (1, True), output)
        self.assertEqual(self.run_command("cast", "desk.h2", "note", "text=only h2"), (0, ""))
        self.assertEqual(self.notes("h2", 1), ["only h2"])
        self.assertEqual(self.run_command("cast", "--fanout", "desk", "note", "text=all"), (0, ""))
        self.assertEqual(self.notes("h1", 1), ["all"])
        self.assertEqual(self.notes("h2", 2), ["only h2", "all"])
        status, output = self.run_command("call", "--fanout", "desk", "note", "text=again")
        self.assertEqual(status, 0)
        self.assertIn("returns no results", output)
        self.assertEqual(self.notes("h1", 2), ["all", "again"])

    @pytest.mark.slow
    @pytest.mark.long
    @pytest.mark.timeout(180)
    def test_migrate(self) -> None:
        """Queues are replaced while a node serves; a command that was killed is run again, and goes on."""
        self.node("h1")
        registry = {"NOVASVC_STATE_DIR": str(self.folder / "state-h1")}
        status, output = self.run_command("broker", "migrate", "--to", "quorum", "--dry-run", **registry)
        self.assertEqual(
            (status, output.count("would be replaced by a quorum queue: 0 messages, 1 consumer\n")), (0, 2)
        )
        killed = self.begin("broker", "migrate", "--to", "quorum", **registry)
        killed.wait_for("emptying the old queues")
        killed.stop(signal.SIGKILL)
        self.assertEqual(self.run_command("call", "desk", "echo", "value=1"), (0, "1\n"))
        status, output = self.run_command("broker", "migrate", "--to", "quorum", "--json", **registry)
        lines = [json.loads(line) for line in output.splitlines()]
        self.assertEqual((status, lines[-1]), (0, {"replaced": ["desk", "desk.h1"], "dry_run": False}))
        status, output = self.run_command("broker", "migrate", "--to", "quorum", "--topic", "desk")
        self.assertEqual(status, 0)
        self.assertIn("nothing to do; set rabbit_quorum_queue = true for all services and clients\n", output)

    def test_no_broker(self) -> None:
        """An unavailable broker is one line without the password."""
        command = Process(
            self, [program("novasvc"), "--transport-url", "amqp://u:s3cret@127.0.0.1:1/", "ping", "x"], self.folder
        )
        self.assertEqual(command.wait(), 1)
        self.assertIn("Connection was refused", command.output)
        self.assertNotIn("s3cret", command.output)
        self.assertEqual(command.output.count("\n"), 1)


SHOP = """
from novasvc import Manager, rpc

class Stock(Manager):
    @rpc.expose
    def reserve(self, context, item, amount=1):
        return f"{amount} {item}"
    @rpc.expose
    def count(self, context):
        return 7

class Till(Manager):
    @rpc.expose
    async def sell(self, context, item):
        stock = self.attachments.rpc.prepare(topic="stock")
        return "sold " + await stock.call(context, "reserve", item=item)
"""


class WithoutBrokerTests(TestCase):
    """Nodes and commands of one user on one host, on the default transport_url."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "shop.py").write_text(SHOP)
        self.environment = {"NOVASVC_STATE_DIR": str(self.folder / "state"), "PYTHONPATH": str(self.folder)}

    def node(self, topic: str, *options: str) -> Process:
        manager = ("--topic", topic, "--binary", topic, "--manager", f"shop.{topic.title()}")
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--host", "h1", *manager, *options]
        node = Process(self, command, self.folder, **self.environment)
        node.wait_for("is running" if not options else "runs")
        return node

    def run_command(self, *arguments: str) -> tuple[int, str]:
        command = Process(self, [program("novasvc"), *arguments], self.folder, **self.environment)
        return command.wait(), command.output

    @pytest.mark.long
    @pytest.mark.timeout(120)
    def test_two_processes(self) -> None:
        """The commands reach the nodes of two processes, and these reach each other."""
        stock = self.node("stock")
        stock.wait_for(r"try +\S*novasvc service list")
        stock.wait_for(r" ping stock")
        self.assertEqual(self.run_command("call", "stock", "count"), (0, "7\n"))
        self.assertEqual(self.run_command("call", "stock.h1", "reserve", "item=tea", "amount=2"), (0, "2 tea\n"))
        self.node("till")
        self.assertEqual(self.run_command("call", "till", "sell", "item=tea"), (0, "sold 1 tea\n"))
        status, output = self.run_command("ping", "stock", "--count", "1")
        self.assertEqual((status, "1 of 1 calls answered" in output), (0, True), output)
        self.assertEqual(self.run_command("cast", "stock", "count")[0], 0)

    @pytest.mark.long
    @pytest.mark.timeout(120)
    def test_nobody(self) -> None:
        """Without a node of the topic, or without any node, the command says what is missing."""
        status, output = self.run_command("call", "stock", "count")
        self.assertEqual((status, "no service of this user runs on this host" in output), (1, True), output)
        stock = self.node("stock")
        for command in ("call", "cast"):
            status, output = self.run_command(command, "till", "sell", "item=tea")
            self.assertEqual((status, "no server for till" in output), (1, True), output)
        self.assertEqual(self.run_command("cast", "--fanout", "till", "sell", "item=tea"), (0, ""))
        stock.popen.kill()
        stock.popen.wait()
        status, output = self.run_command("call", "stock", "count")
        self.assertEqual((status, "no server for stock: no process of this user" in output), (1, True), output)
        self.assertEqual(list((self.folder / "state" / "rpc").iterdir()), [])

    @pytest.mark.timeout(120)
    def test_workers(self) -> None:
        """The workers of a node have the calls in turn."""
        self.node("stock", "--workers", "2")
        self.assertEqual(len(list((self.folder / "state" / "rpc").iterdir())), 2)
        for _ in range(4):
            self.assertEqual(self.run_command("call", "stock", "count"), (0, "7\n"))

    @pytest.mark.timeout(180)
    def test_run(self) -> None:
        """`novasvc run` runs a manager by its name, again when its code changes, and two in one directory."""
        stock = Process(self, [program("novasvc"), "run", "shop:Stock", "--reload"], self.folder, **self.environment)
        stock.wait_for(r" ping stock")
        till = Process(self, [program("novasvc"), "run", "shop:Till", "--host", "h2"], self.folder, **self.environment)
        till.wait_for("is running")
        self.assertEqual(self.run_command("call", "till", "sell", "item=tea"), (0, "sold 1 tea\n"))
        status, output = self.run_command("describe", "stock")
        self.assertEqual((status, "reserve(item, amount=1)" in output), (0, True), output)
        (self.folder / "shop.py").write_text(SHOP.replace("return 7", "return 8"))
        stock.wait_for("shop.py changed, starting again")
        stock.wait_for(r" ping stock")
        self.assertEqual(self.run_command("call", "stock", "count"), (0, "8\n"))
        (self.folder / "shop.py").write_text("class Stock(:")
        stock.wait_for("invalid syntax")
        (self.folder / "shop.py").write_text(SHOP)
        stock.wait_for(r" ping stock")
        stock.popen.send_signal(signal.SIGTERM)
        self.assertEqual(stock.wait(), 128 + signal.SIGTERM)
