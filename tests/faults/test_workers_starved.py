"""Supervisors and workers that are given no descriptors, threads or processes any more, for a while."""

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.fleet_rig import FleetCase, until
from tests.servers.process import free_ports

CALLERS = 20
SPARE = 5


@contextmanager
def limited(pid: int, limit: int, number: int, prefix: Sequence[str] = ()) -> Iterator[None]:
    """Give a process less of something.

    :param prefix: a command that runs another as the user of that process.
    """
    name = {resource.RLIMIT_NOFILE: "nofile", resource.RLIMIT_NPROC: "nproc"}[limit]
    command = [*prefix, "prlimit", f"--pid={pid}"]
    figures = subprocess.run(
        [*command, f"--{name}", "--output=SOFT", "--noheadings"], check=True, capture_output=True, text=True
    )
    subprocess.run([*command, f"--{name}={number}:"], check=True)
    try:
        yield
    finally:
        subprocess.run([*command, f"--{name}={figures.stdout.strip()}:"], check=True)


def descriptors(pid: int) -> int:
    """Return a limit that leaves a process what it has, and, where there are gaps, a few more."""
    return 1 + max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())


def as_nobody() -> list[str]:
    """Return a command that runs another as a user who has no process yet: root has no limit of processes."""
    if os.getuid() != 0:
        return []
    uid = 40_000 + os.getpid() % 20_000
    # Python and its modules may be where only root can read.
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *rights]


class DescriptorTests(FleetCase):
    def setUp(self) -> None:
        super().setUp()
        (self.port,) = free_ports(1)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(b"hello\r\n")
        return connection

    def answer(self, connection: socket.socket) -> str:
        """Return what the server says; "" if it turns us away."""
        with connection.makefile() as answers:
            try:
                return answers.readline()
            except ConnectionResetError:
                return ""

    def test_supervisor(self) -> None:
        """A supervisor without descriptors starts no worker, takes no question, and says so; later it does both."""
        fleet = self.script(
            "obedient:one=1", f"echo:tcp:{self.port}:interface=127.0.0.1=1", NOVASVC_WORKER_RESTART_BUDGET="50"
        )
        before = fleet.ready(2)
        with ExitStack() as askers:

            def ask() -> list[str]:
                asking = askers.enter_context(socket.socket(socket.AF_UNIX))
                asking.connect(str(fleet.folder / "novasvc.control"))
                return fleet.said("cannot accept connections: Too many open files; retrying in 0.5 s")

            with limited(fleet.pid, resource.RLIMIT_NOFILE, descriptors(fleet.pid)):
                fleet.popen.send_signal(signal.SIGTTIN)
                fleet.says("worker 3 of one could not be forked: Too many open files; restarting it in")
                until(ask)
                with self.connect() as connection:
                    self.assertEqual(self.answer(connection), f"{before[2]} hello\n")
        after = fleet.ready(4)
        self.assertEqual((after[1], after[2]), (before[1], before[2]))

    def test_worker(self) -> None:
        """A worker without descriptors turns callers away, and serves others when some have gone."""
        fleet = self.script(f"echo:tcp:{self.port}:interface=127.0.0.1=1")
        before = fleet.ready(1)
        with limited(before[1], resource.RLIMIT_NOFILE, descriptors(before[1]) + SPARE), ExitStack() as callers:
            answers = [self.answer(callers.enter_context(self.connect())) for _ in range(CALLERS)]
            served = answers.count(f"{before[1]} hello\n")
            self.assertEqual(served + answers.count(""), CALLERS)
            self.assertIn(served, range(1, CALLERS))
        until(self.is_served)
        self.assertEqual(fleet.ready(1), before)

    def is_served(self) -> bool:
        with self.connect() as connection:
            return self.answer(connection).endswith("hello\n")


class UserTests(FleetCase):
    def test_threads_and_processes(self) -> None:
        """A user's limit of processes is named where it bites: in a worker's threads, and when workers are started."""
        prefix = as_nobody()
        (self.folder / "h1").mkdir()
        for folder in (self.folder, self.folder / "h1"):
            folder.chmod(0o777)
        fleet = self.twistd("--workers", "2", prefix=prefix)
        before = fleet.ready(2)
        with limited(before[2], resource.RLIMIT_NPROC, 1, prefix):
            self.assertRegex(
                fleet.tell("worker-2", "think"), "the system cannot start a thread: .*; see this user.s limits"
            )
        self.assertEqual(fleet.tell("worker-2", "think"), "thought")
        with limited(fleet.forkserver, resource.RLIMIT_NPROC, 1, prefix):
            killed = fleet.kill(1)
            fleet.says("worker 1 of .* could not be forked: fork failed: .*; restarting it in")
        fleet.replaced(1, killed)
        self.assertEqual(fleet.worker(2)["pid"], before[2])
        self.assertEqual(fleet.stop(), -signal.SIGTERM)
