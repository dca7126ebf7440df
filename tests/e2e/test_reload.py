"""Tests for `novasvc run --reload`: restarts, and what is wrong with code while it is written."""

import os
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import Process, program

SHOP = """
from novasvc import Manager, rpc

class Stock(Manager):
    @rpc.expose
    def count(self, context) -> int:
        return 7
"""
SLOW = """
import time
time.sleep(2)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class ReloadTests(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        self.code = self.folder / "shop.py"
        self.code.write_text(SHOP)
        self.environment = {"NOVASVC_STATE_DIR": str(self.folder / "state")}

    def begin(self, *arguments: str) -> Process:
        return Process(self, [program("novasvc"), *arguments], self.folder, **self.environment)

    def node(self, *options: str) -> Process:
        node = self.begin("run", "shop:Stock", "--reload", *options)
        self.addCleanup(end_group, node)
        node.wait_for(" describe ")
        return node

    def call(self, *arguments: str) -> tuple[int, str]:
        command = self.begin("call", *(arguments or ("stock", "count")))
        return command.wait(), command.output

    def test_call_waits(self) -> None:
        """A call during a restart waits until the node is back."""
        node = self.node()
        self.assertEqual(self.call(), (0, "7\n"))
        self.code.write_text(SLOW + SHOP.replace("return 7", "return 8"))
        node.wait_for("shop.py changed, ending the process")
        node.wait_for("shop.py changed, starting again")
        self.assertEqual(self.call(), (0, "8\n"))
        # One for a topic that nobody serves does not wait.
        status, output = self.call("stok", "count")
        self.assertEqual((status, "did you mean the topic 'stock'?" in output), (1, True), output)

    @pytest.mark.long
    def test_broken_code(self) -> None:
        """Code that cannot be loaded is shown; calls say so at once; mended code runs again."""
        node = self.node()
        for broken, shown in (
            ("import nowhere\n" + SHOP, "shop imports 'nowhere', which is not installed"),
            (SHOP.replace("class Stock", "class Stork"), "shop has no 'Stock'; it has: Stork"),
            (SHOP.replace("(self, context)", "(self)"), r"parameters are not \(self, context\).*shop.py:5"),
            (SHOP + "1/0\n", "importing shop raised ZeroDivisionError: division by zero .*shop.py:8"),
        ):
            self.code.write_text(broken)
            node.wait_for(shown)
            node.wait_for("it ended with status 1; it starts again when a file changes")
            status, output = self.call()
            self.assertEqual(status, 1)
            self.assertIn("stock does not run: it ended with status 1, and `novasvc run --reload`", output)
            self.assertEqual(output.count("\n"), 1)
        self.assertNotIn("Traceback", node.output)
        self.code.write_text(SHOP)
        node.wait_for(" describe stock")
        self.assertEqual(self.call(), (0, "7\n"))

    @pytest.mark.long
    def test_syntax_error(self) -> None:
        """A file with a syntax error is shown, and the service runs on with the code that it has."""
        node = self.node()
        self.code.write_text("class Stock(:\n")
        node.wait_for(r"SyntaxError: invalid syntax \(.*/shop.py:1: class Stock\(:\); nothing starts again")
        self.assertEqual(self.call(), (0, "7\n"))
        self.code.write_text(SHOP.replace("return 7", "return 8"))
        node.wait_for("shop.py changed, starting again")
        self.assertEqual(self.call(), (0, "8\n"))

    @pytest.mark.long
    def test_port_in_use(self) -> None:
        """A port in use is named, and the next change tries again."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            node = self.begin("run", "shop:Stock", "--reload", "--api", "--api-listen-port", str(port))
            self.addCleanup(end_group, node)
            node.wait_for(f"cannot listen on 127.0.0.1:{port}: Address already in use")
            node.wait_for("it starts again when a file changes")
        self.code.write_text(SHOP + "\n")
        node.wait_for(" describe stock")

    def test_killed(self) -> None:
        """If the process that watches is killed, its node ends too, gracefully."""
        node = self.node()
        node.popen.send_signal(signal.SIGKILL)
        # The output is open as long as the node runs.
        self.assertEqual(node.wait(), -signal.SIGKILL)
        self.assertIn("SIGTERM: draining", node.output)
        status, output = self.call()
        self.assertEqual((status, "no service of this user runs on this host" in output), (1, True), output)
        self.assertEqual(list((self.folder / "state" / "rpc").iterdir()), [])

    def test_interrupted(self) -> None:
        """A signal ends both, while the node runs and after it has failed."""
        self.assertEqual(self.node().stop(signal.SIGTERM), 128 + signal.SIGTERM)
        node = self.node()
        self.code.write_text("1/0\n")
        node.wait_for("it starts again when a file changes")
        self.assertEqual(node.stop(signal.SIGINT), 1)
        self.assertEqual(list((self.folder / "state" / "rpc").iterdir()), [])

    def test_interrupted_on_a_terminal(self) -> None:
        """Ctrl-C is a signal to both processes: nobody says that the node starts again."""
        node = self.node()
        os.killpg(node.popen.pid, signal.SIGINT)
        self.assertEqual(node.wait(), 128 + signal.SIGINT)
        self.assertNotIn("starts again", node.output)

    @pytest.mark.long
    def test_elsewhere(self) -> None:
        """Options of the node say where its callers wait for it."""
        node = self.node("--topic", "depot", "--state-dir", str(self.folder / "other"))
        self.code.write_text(SLOW + SHOP)
        node.wait_for("shop.py changed, starting again")
        self.environment["NOVASVC_STATE_DIR"] = str(self.folder / "other")
        self.assertEqual(self.call("depot", "count"), (0, "7\n"))


def end_group(process: Process) -> None:
    """Kill what a process has left in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.popen.pid, signal.SIGKILL)
