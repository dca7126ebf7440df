"""The operators' commands for workers, run against a real control socket."""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from novasvc.cli import control as client
from novasvc.cli.control import ControlClient, ask
from novasvc.cli.program import run
from novasvc.errors import ConfigurationError, SettingError
from novasvc.workers.errors import CommandRejectedError, ControlError, ReloadError, ResizeError
from tests.support.control_rig import HOSTILE, ControlCase, worker
from tests.support.waiting import until

_NOBODY = 65534
_START = (
    "start a supervisor with `twistd -n novasvc --workers N`, or name its socket with --control-socket or --state-dir"
)


class Ran(NamedTuple):
    """The exit status and output of a command."""

    status: int
    stdout: str
    stderr: str


def in_thread(function: Callable[[], Any]) -> Deferred[Any]:
    """Run a blocking function in a daemon thread, while the reactor runs."""
    result: Deferred[Any] = Deferred()

    def body() -> None:
        try:
            outcome = function()
        except Exception as error:  # noqa: BLE001 - the test sees it
            reactor.callFromThread(result.errback, error)  # type: ignore[attr-defined]
        else:
            reactor.callFromThread(result.callback, outcome)  # type: ignore[attr-defined]

    threading.Thread(target=body, daemon=True).start()
    return result


class CommandCase(ControlCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(os, "environ", {})

    async def run_program(self, *arguments: str) -> Ran:
        """Run the command in a thread of this process."""

        def work() -> Ran:
            with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
                status = run(["--control-socket", str(self.path), *arguments])
            return Ran(status, out.getvalue(), err.getvalue())

        ran: Ran = await in_thread(work)
        return ran

    async def output(self, *arguments: str) -> str:
        """Run a command that succeeds with nothing on standard error; return its output."""
        ran = await self.run_program(*arguments)
        self.assertEqual((ran.status, ran.stderr), (0, ""))
        return ran.stdout

    async def failure(self, *arguments: str) -> str:
        """Run a command that fails; return its message."""
        ran = await self.run_program(*arguments)
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        return ran.stderr


class WorkersTests(CommandCase):
    """Tests for `novasvc workers`."""

    async def test_table(self) -> None:
        """Each worker has a row; memory is in MiB, and control characters are escaped."""
        chosen = [part for name in ("pid", "state", "restarts", "memory", "trouble") for part in ("-c", name)]
        self.assertEqual(
            await self.output("workers", *chosen),
            "+------+-------------+----------+---------+----------------------+\n"
            "| PID  | State       | Restarts | Memory  | Trouble              |\n"
            "+------+-------------+----------+---------+----------------------+\n"
            "| 4000 | ready       | 0        | 7.5 MiB | -                    |\n"
            "| -    | backing off | 3        | -       | killed \\x1b[2J\\u202e |\n"
            "+------+-------------+----------+---------+----------------------+\n",
        )
        header = (await self.output("workers")).splitlines()[1]
        columns = ["Number", "Server", "PID", "State", "Since", "Restarts", "Memory", "Trouble"]
        self.assertEqual(header.replace("|", " ").split(), columns)

    async def test_json(self) -> None:
        """JSON has the supervisor's rows."""
        self.assertEqual(json.loads(await self.output("workers", "-f", "json")), self.supervisor.rows)

    async def test_others(self) -> None:
        """Columns can be selected; memory is in bytes in output for programs."""
        columns = ("-c", "number", "-c", "memory")
        self.assertEqual(await self.output("workers", "-f", "value", *columns), "0 7864320\n1 None\n")
        self.assertEqual(await self.output("workers", "-f", "csv", *columns), "Number,Memory\n0,7864320\n1,\n")
        self.assertEqual(
            json.loads(await self.output("workers", "-f", "json", "-c", "PID")), [{"pid": 4000}, {"pid": None}]
        )

    async def test_none(self) -> None:
        """Without workers the list is empty."""
        self.supervisor.rows = []
        self.assertEqual(await self.output("workers", "-f", "json"), "[]\n")

    async def test_set(self) -> None:
        """`workers set` resizes the only server, or a named one."""
        said = "`novasvc workers` shows the progress\n"
        self.assertEqual(await self.output("workers", "set", "3"), f"resizing to 3 workers; {said}")
        self.assertEqual(
            await self.output("workers", "set", "1", "--server", "api"), f"resizing to 1 worker of api; {said}"
        )
        self.assertEqual(self.supervisor.asked, [("resize", 3, None), ("resize", 1, "api")])

    async def test_set_refused(self) -> None:
        """An impossible number is rejected with the reason."""
        self.supervisor.failing = ResizeError(99, f"at most 64 fit{HOSTILE}")
        self.assertEqual(
            await self.failure("workers", "set", "99"),
            "novasvc: cannot run 99 workers: at most 64 fit\\x1b[2J\\u202e\n",
        )

    async def test_usage(self) -> None:
        """An invalid number is a usage error."""
        for arguments in (
            ["workers", "set", "0"],
            ["workers", "set"],
            ["workers", "st", "1"],
            ["drain", "--worker", "x"],
        ):
            self.assertEqual((await self.run_program(*arguments)).status, 2)
        self.assertEqual(self.supervisor.asked, [])


class DrainTests(CommandCase):
    """Tests for `novasvc drain`."""

    async def test_one(self) -> None:
        """--worker drains one worker; the command returns when it has exited."""
        draining = self.supervisor.wait()
        running = Deferred.fromCoroutine(self.output("drain", "--worker", "1"))
        await until(lambda: self.supervisor.asked)
        self.assertNoResult(running)
        draining.callback(None)
        self.assertEqual(await running, "worker 1 is drained and has exited; a new one replaces it\n")
        self.assertEqual(self.supervisor.asked, [("drain", 1)])

    async def test_unknown(self) -> None:
        """An unknown worker is an error that lists the workers."""
        self.assertEqual(
            await self.failure("drain", "--worker", "7"),
            "novasvc: there is no worker 7; there are: worker 0, worker 1\n",
        )

    async def test_all(self) -> None:
        """The command returns when the supervisor has closed the connection."""
        running = Deferred.fromCoroutine(self.output("drain"))
        await until(lambda: self.supervisor.asked)
        self.assertNoResult(running)
        await self.control.stopService()
        self.assertEqual(await running, f"supervisor {os.getpid()} and its workers are drained and have exited\n")
        self.assertEqual(self.supervisor.asked, [("drain", None)])

    async def test_too_slow(self) -> None:
        """After --timeout the command fails, and says that the supervisor goes on."""
        self.assertEqual(
            await self.failure("drain", "--timeout", "0.1"),
            f"novasvc: control socket '{self.path}': the supervisor has not ended within 0.1 s; "
            "the supervisor is still working on it; `novasvc workers` shows the progress\n",
        )


class ReloadTests(CommandCase):
    """Tests for `novasvc reload`."""

    async def test_changed(self) -> None:
        """Changed settings are listed."""
        self.supervisor.changed = [{"setting": "report_interval", "before": "10", "after": "5"}]
        self.assertEqual(await self.output("reload", "-f", "csv"), "Setting,Before,After\nreport_interval,10,5\n")
        self.assertIn("| report_interval | 10     | 5     |", await self.output("reload"))
        self.assertEqual(json.loads(await self.output("reload", "-f", "json")), self.supervisor.changed)

    async def test_nothing_changed(self) -> None:
        """A reload without a change says so."""
        self.assertEqual(await self.output("reload"), "all workers are replaced; no setting has changed\n")
        self.assertEqual(await self.output("reload", "-f", "json"), "[]\n")

    async def test_refused(self) -> None:
        """A rejected reload has status 1, and a line for each reason."""
        error = SettingError("workers", "x", "file a.toml", "it is no number", "give one")
        self.supervisor.failing = ReloadError(str(ConfigurationError([error, error])))
        self.assertEqual(
            await self.failure("reload"),
            "novasvc: reload failed, previous configuration kept: the configuration has 2 errors:\n"
            + 2 * "  - workers = x (from file a.toml): it is no number; give one\n",
        )

    async def test_too_slow(self) -> None:
        """After --timeout the command fails; the reload goes on."""
        reloading = self.supervisor.wait()
        self.assertIn(
            "reload was not answered within 0.1 s; the supervisor is still working on it",
            await self.failure("reload", "--timeout", "0.1"),
        )
        self.assertFalse(self.supervisor.cancelled)
        reloading.callback([])

    async def test_supervisor_ends(self) -> None:
        """If the supervisor exits, the command says that the reload may be incomplete."""
        reloading = self.supervisor.wait()
        running = Deferred.fromCoroutine(self.failure("reload"))
        await until(lambda: self.supervisor.asked)
        await self.control.stopService()
        self.assertEqual(await running, "novasvc: the supervisor is shutting down; reload() may be incomplete\n")
        reloading.callback([])


class DumpTests(CommandCase):
    """Tests for `novasvc dump`."""

    async def test_text(self) -> None:
        """Each worker has calls, events and stacks; line breaks in other texts are escaped."""
        self.assertEqual(
            await self.output("dump"),
            "worker 0 of agent (pid 4000): ready\n"
            "  calls in flight:\n"
            "    slow for 1.2 s, request req-1\n"
            "  last events:\n"
            "    2026-01-02T03:04:06+00:00 call: slow \\x1b[2J\\u202e\n"
            "  stacks:\n"
            "    Thread 1:\n"
            "      File \\x1b[2J\\u202e\n"
            "\n"
            "worker 1 of agent (no process): backing off\n"
            "  calls in flight: unknown, the worker does not respond\n"
            "  last events: none\n"
            "  stacks: none\n",
        )

    async def test_idle(self) -> None:
        """An idle worker has no calls."""
        self.supervisor.dumped = [{**worker(0), "calls": [], "events": [], "stacks": ""}]
        self.assertIn("  calls in flight: none\n", await self.output("dump"))

    async def test_json(self) -> None:
        """JSON has the supervisor's whole answer."""
        self.assertEqual(json.loads(await self.output("dump", "-f", "json")), self.supervisor.dumped)

    async def test_one(self) -> None:
        """--worker selects one; an unknown one is an error that lists the workers."""
        rows = json.loads(await self.output("dump", "--worker", "1", "-f", "json"))
        self.assertEqual(rows, self.supervisor.dumped[1:])
        self.assertEqual(
            await self.failure("dump", "--worker", "7"),
            "novasvc: there is no worker 7; there are: worker 0, worker 1\n",
        )
        self.supervisor.dumped = []
        self.assertEqual(await self.output("dump", "-f", "json"), "[]\n")


class PlaceTests(CommandCase):
    """Tests for how the commands find the socket."""

    async def test_settings(self) -> None:
        """Without the option, the setting names the socket."""
        file = self.path.parent / "a.toml"
        file.write_text(f'control_socket = "{self.path}"\n')

        def work() -> Ran:
            with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
                status = run(["--config", str(file), "workers", "-f", "value", "-c", "number"])
            return Ran(status, out.getvalue(), err.getvalue())

        self.assertEqual(await in_thread(work), (0, "0\n1\n", ""))

    async def test_process(self) -> None:
        """The command runs as a process, and installs no reactor."""
        program = (
            "import sys; from novasvc.cli.program import run; status = run(sys.argv[1:]);"
            "assert 'twisted.internet.reactor' not in sys.modules; sys.exit(status)"
        )
        arguments = ["-c", program, "--control-socket", str(self.path), "workers", "-f", "value", "-c", "pid"]
        environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
        ran = await getProcessOutputAndValue(sys.executable, arguments, environ)
        self.assertEqual(ran, (b"4000\nNone\n", b"", 0))


class UnreachableTests(SynchronousTestCase):
    """Tests for novasvc.cli.control.ControlClient without a supervisor."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "control"

    def refusal(self, path: Path | None = None) -> str:
        error = self.assertRaises(ControlError, ControlClient, path or self.path)
        self.assertEqual(error.subject, str(path or self.path))
        return f"{error.problem}; {error.remedy}"

    def listen(self, backlog: int = 1) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(str(self.path))
        listening.listen(backlog)
        return listening

    def test_nobody(self) -> None:
        """A missing socket or directory means no supervisor, and the error says what to do."""
        self.assertEqual(self.refusal(), f"no supervisor listens there; {_START}")
        file = self.path.with_name("file")
        file.touch()
        self.assertEqual(self.refusal(file / "control"), f"no supervisor listens there; {_START}")

    def test_stale(self) -> None:
        """A stale socket has a message of its own."""
        self.listen().close()
        self.assertIn("no supervisor listens there any more: the last one was killed; start", self.refusal())

    def test_no_socket(self) -> None:
        """A file that is not a socket is named as such."""
        self.path.touch()
        self.assertIn("the file there is not a socket", self.refusal())

    def test_long(self) -> None:
        """A path that is too long for a socket is an error."""
        self.assertIn("cannot connect: AF_UNIX path too long", self.refusal(self.path / ("x" * 200)))

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes the place of another user")
    def test_permission(self) -> None:
        """Without permission, the error says who may connect."""
        self.listen()
        self.path.parent.chmod(0o755)
        self.path.chmod(0o600)
        os.seteuid(_NOBODY)
        try:
            refusal = self.refusal()
        finally:
            os.seteuid(0)
        self.assertEqual(refusal, f"uid {_NOBODY} may not connect to it; run this as the supervisor's user or as root")

    def test_busy(self) -> None:
        """If the backlog is full, the client fails at once."""
        self.listen(0)
        with ControlClient(self.path):
            self.assertIn("does not accept connections: its backlog is full", self.refusal())

    def test_hangs(self) -> None:
        """A supervisor that does not answer is an error after the timeout."""
        self.listen()
        error = self.assertRaises(ControlError, ask, self.path, "workers", timeout=0.05)
        self.assertIn("workers was not answered within 0.05 s", str(error))


class StrangeTests(TestCase):
    """Tests for novasvc.cli.control.ask with other programs at the socket."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "control"
        self.listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.listening.close)
        self.listening.bind(str(self.path))
        self.listening.listen()

    async def told(self, *answers: bytes, read: bool = True) -> Any:
        """Send a command, and answer it with these pieces and end of file."""

        def serve() -> None:
            accepted, _ = self.listening.accept()
            with accepted:
                if read:
                    accepted.recv(65536)
                for answer in answers:
                    accepted.sendall(answer)

        serving = in_thread(serve)
        try:
            return await in_thread(lambda: ask(self.path, "workers", timeout=30))
        finally:
            await serving

    async def test_pieces(self) -> None:
        """An answer may arrive in pieces."""
        self.assertEqual(await self.told(b'{"resu', b'lt": [', b"]}\n"), [])

    async def test_end(self) -> None:
        """A connection that closes without an answer is an error, whether the request was read or not."""
        for read in (True, False):
            error = await self.assertFailure(Deferred.fromCoroutine(self.told(b'{"result"', read=read)), ControlError)
            self.assertIn("the supervisor exited before it answered workers", str(error))

    async def test_refused_unread(self) -> None:
        """A supervisor may reject a connection without reading the request."""
        answer = b'{"error": {"type": "ControlError", "message": "too many"}}\n'
        error = await self.assertFailure(Deferred.fromCoroutine(self.told(answer, read=False)), CommandRejectedError)
        self.assertEqual((error.kind, str(error)), ("ControlError", "too many"))

    async def test_no_supervisor(self) -> None:
        """An answer that is not of the protocol is an error."""
        for answer in (b"HTTP/1.1 400\n", b"[]\n", b"{}\n", b'{"error": "x"}\n', b"\xff\n", b"[" * 100_000 + b"\n"):
            error = await self.assertFailure(Deferred.fromCoroutine(self.told(answer)), ControlError)
            self.assertIn("the process that listens there is not a novasvc supervisor; start a", str(error))

    async def test_endless(self) -> None:
        """An endless answer is not read beyond the limit."""
        self.patch(client, "MAX_ANSWER_LENGTH", 1000)
        error = await self.assertFailure(Deferred.fromCoroutine(self.told(b"x" * 2000)), ControlError)
        self.assertIn("the process that listens there is not a novasvc supervisor", str(error))
