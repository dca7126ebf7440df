"""Tests for `novasvc shell`, from a pipe and on a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, Process, program, unmeasured

MANAGER = """
from twisted.internet import reactor
from twisted.internet.task import deferLater
from novasvc import Manager, rpc

class Stock(Manager):
    @rpc.expose
    def count(self, context) -> int:
        return 7
    @rpc.expose
    async def slow(self, context, seconds: float) -> str:
        await deferLater(reactor, seconds)
        return "slept"
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class ShellCase(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "shop.py").write_text(MANAGER)
        self.environment = {"NOVASVC_STATE_DIR": str(self.folder / "state")}

    def start_stock(self) -> None:
        stock = Process(
            self, [program("novasvc"), "run", "shop:Stock", "--host", "h1"], self.folder, **self.environment
        )
        stock.wait_for(r" describe stock")


class PipeTests(ShellCase):
    def shell(self, text: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [program("novasvc"), "shell"],
            input=text,
            env={**unmeasured("NOVASVC_"), **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def test_statements(self) -> None:
        """Statements with top-level await run one after the other, and the values of expressions are printed."""
        self.start_stock()
        lines = (
            'number = await call("stock", "count")',
            "number + 1",
            "for _ in range(2):",
            '    print(await call("stock.h1", "count"))',
            "await cast('stock', 'count')",
            '[row.topic for row in await registry.list(None, None, None) if row.host == "h1"]',
            'await rpc.prepare(topic="stock").call(context, "count")',
            'call("stock", "count")',
            "reactor.running",
            "import threading; threading.current_thread().name",
            "async def twice():",
            '    return 2 * await call("stock", "count")',
            "await twice()",
            "None",
        )
        ran = self.shell("\n".join(lines))
        expected = (
            r"8\n7\n7\n\['stock'\]\n7\n<Deferred at \w+>; write `await` in front of it to wait for its result\n"
            r"True\n'reactor'\n14\n"
        )
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertRegex(ran.stdout, f"^{expected}$")

    def test_not_awaited(self) -> None:
        """A call that nobody has awaited when the shell ends is not reported as an unhandled error."""
        self.start_stock()
        ran = self.shell('call("stock", "slow", seconds=60)')
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertIn("write `await` in front of it", ran.stdout)

    @pytest.mark.long
    def test_errors(self) -> None:
        """The first exception ends it with status 1; our own are one line with the names that were meant."""
        self.start_stock()
        for text, status, shown in (
            ("print(1)\n1/0\nprint(2)", 1, "ZeroDivisionError: division by zero"),
            ("await call('stok', 'count')", 1, "did you mean the topic 'stock'?"),
            ("await call('stock', 'cout')", 1, "stock exposes no method 'cout'; did you mean 'count'?"),
            ("await call('stock', 'slow', secnds=1)", 1, "did you mean seconds=?; it takes (seconds: float)"),
            ("await call('', 'count')", 1, "InvalidTargetError"),
            ("def f(", 1, "SyntaxError: '(' was never closed"),
            ("import sys; sys.exit(3)", 3, ""),
            ("raise KeyboardInterrupt", 130, ""),
            ("reactor.stop()\n1", 1, "StateError: the reactor of this shell is stopped and cannot run statements"),
            ("", 0, ""),
        ):
            ran = self.shell(text)
            self.assertEqual(ran.returncode, status, ran.stderr)
            self.assertIn(shown, ran.stderr)
            self.assertNotIn("2\n", ran.stdout)
            self.assertNotIn("/novasvc/", ran.stderr)

    def test_nobody(self) -> None:
        """Without services and database the shell starts, and says so; registry is None."""
        ran = self.shell("print(registry)\nawait call('stock', 'count')")
        self.assertEqual((ran.returncode, ran.stdout), (1, "None\n"), ran.stderr)
        self.assertIn("no server for stock: no process of this user on this host serves it", ran.stderr)
        self.assertFalse((self.folder / "state").exists())

    def test_no_broker(self) -> None:
        """A broker that cannot be reached is one line without the password."""
        ran = self.shell("await call('x', 'y')", NOVASVC_TRANSPORT_URL="amqp://u:s3cret@127.0.0.1:1/")
        self.assertEqual(ran.returncode, 1)
        self.assertIn("Connection was refused", ran.stderr)
        self.assertNotIn("s3cret", ran.stderr + ran.stdout)


class TerminalTests(ShellCase):
    """Tests on a pseudo-terminal."""

    def shell(self) -> None:
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.chdir(self.folder)
            environment = {**unmeasured("NOVASVC_"), **self.environment, "TERM": "dumb", "INPUTRC": os.devnull}
            os.execve(program("novasvc"), ["novasvc", "shell"], environment)  # noqa: S606 - this process is a fork
        self.pid = pid
        self.shown = ""
        self.addCleanup(os.close, self.terminal)
        self.addCleanup(self.end)

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def wait_for(self, pattern: str) -> str:
        """Wait until the terminal shows something; what it shows later is for the next call."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self.terminal], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.fail(f"no {pattern!r} within {PATIENCE} s: {self.shown!r}")
            try:
                self.shown += os.read(self.terminal, 65_536).decode()
            except OSError:  # EIO: it has ended
                self.fail(f"it ended before {pattern!r}: {self.shown!r}")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C until the line is given up."""
        # As a person would: Python's readline loses a signal that arrives between the last character and its select().
        deadline = time.monotonic() + PATIENCE
        while not re.search(r"KeyboardInterrupt\r\n>>> ", self.shown):
            self.assertLess(time.monotonic(), deadline, self.shown)
            self.type("\x03")
            while select.select([self.terminal], [], [], 1.0)[0]:
                self.shown += os.read(self.terminal, 65_536).decode()
        self.shown = ""

    def exit_status(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            self.assertLess(time.monotonic(), deadline)
            if select.select([self.terminal], [], [], 0.05)[0]:
                try:
                    os.read(self.terminal, 65_536)
                except OSError:
                    time.sleep(0.01)  # the terminal is closed, and the process about to end

    def test_session(self) -> None:
        """A person calls, completes, interrupts and leaves; the next session has the history."""
        self.start_stock()
        self.shell()
        banner = self.wait_for(">>> ")
        self.assertIn("Ctrl-C cancels what is awaited, Ctrl-D leaves", banner)
        self.type('await call("stock", "count")\n')
        self.wait_for(r"\r\n7\r\n>>> ")
        # Tab completes topics, methods and Python's own names.
        self.type('await call("sto\t, "cou\t)\n')  # readline closes the quotes
        self.wait_for(r"\r\n7\r\n>>> ")
        self.type("contex\t.is_adm\t\n")
        self.wait_for(r"\r\nTrue\r\n>>> ")
        # Statements over several lines.
        self.type("for n in range(2):\n    print(n + await call('stock', 'count'))\n\n")
        self.wait_for(r"7\r\n8\r\n>>> ")
        # Ctrl-C cancels what is awaited, and the shell goes on.
        self.type('await call("stock", "slow", seconds=60)\n')
        self.wait_for(r"seconds=60\)\r\n")
        os.kill(self.pid, signal.SIGINT)
        self.wait_for(r"KeyboardInterrupt\r\n>>> ")
        # Also a loop that keeps the reactor from turning.
        self.type("while True: pass\n\n")
        self.wait_for(r"\.\.\. \r\n")
        os.kill(self.pid, signal.SIGINT)
        self.wait_for(r"KeyboardInterrupt\r\n>>> ")
        # And a line that is being written.
        self.type("1 + ")
        self.wait_for(r"1 \+ ")
        self.interrupt()
        self.type("1/0\n")
        self.wait_for(r"ZeroDivisionError: division by zero\r\n>>> ")
        self.type("_\n")
        self.wait_for(r"True\r\n>>> ")
        self.type("\x04")
        self.assertEqual(self.exit_status(), 0)
        history = self.folder / "state" / "shell_history"
        self.assertEqual(history.stat().st_mode & 0o777, 0o600)
        self.assertIn('await call("stock", "count")', history.read_text())

        self.shell()
        self.wait_for(">>> ")
        self.type("\x10\n")  # Ctrl-P, the line before
        self.wait_for(r"_\r\n")
        self.type("exit()\n")
        self.assertEqual(self.exit_status(), 0)

    @pytest.mark.long
    def test_blocked(self) -> None:
        """Code that blocks the reactor keeps nobody in the shell."""
        self.shell()
        self.wait_for(">>> ")
        self.type("import time; time.sleep(600)\n")
        self.wait_for(r"600\)\r\n")
        os.kill(self.pid, signal.SIGINT)
        self.wait_for(r"KeyboardInterrupt\r\n>>> ")
        self.type("\x04")
        self.assertEqual(self.exit_status(), 0)

    def test_directory_of_others(self) -> None:
        """In a directory that others can write to, no history is written: it could be a link to any file."""
        state, victim = self.folder / "state", self.folder / "victim"
        state.mkdir(mode=0o700)
        state.chmod(0o770)
        (state / "shell_history").symlink_to(victim)
        self.shell()
        self.wait_for(">>> ")
        self.type("1\n")
        self.wait_for(r"\r\n1\r\n>>> ")
        self.type("\x04")
        self.assertEqual(self.exit_status(), 0)
        self.assertFalse(victim.exists())
