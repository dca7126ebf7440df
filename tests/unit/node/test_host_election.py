"""Tests for novasvc.node.host_election: the lock file, and the nodes of one process."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.node.host_election import POLL, FileElection, ProcessElection
from novasvc.workers.file_lock import FileLock
from tests.contract.election_contract import TASKS, Contender

HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


class FileCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Path(self.mktemp()).absolute()
        self.fallback = Path(self.mktemp()).absolute()
        self.contenders: list[Contender] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        for contender in self.contenders:
            for task in TASKS:
                contender.election.resign(task)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def stand(self) -> Contender:
        election = FileElection(FileLock([self.directory, self.fallback], "x.lock"), self.clock)
        self.contenders.append(Contender(election).start())
        return self.contenders[-1]

    @property
    def file(self) -> Path:
        return self.directory / "x.lock"


class FileElectionTests(FileCase):
    def test_modes(self) -> None:
        """Directory and file are accessible only to their owner, and the file has the leader's pid."""
        contender = self.stand()
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)
        self.assertEqual(self.file.read_text(), f"{os.getpid()}\n")
        self.assertEqual(contender.election.leader("nightly"), f"process {os.getpid()}")

    def test_killed_leader(self) -> None:
        """The lock of a process that is killed by SIGKILL is taken over within POLL seconds."""
        self.directory.mkdir()
        self.file.touch()
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(self.file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert holder.stdin is not None
        self.addCleanup(holder.stdin.close)
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.wait, 30)
        self.addCleanup(holder.kill)
        self.assertEqual(holder.stdout.readline(), b"locked\n")
        contender = self.stand()
        self.clock.pump([POLL] * 5)
        self.assertEqual(contender.leads, [])
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        self.clock.advance(POLL)
        self.assertEqual(contender.leads, ["hourly", "nightly"])

    def test_not_writable(self) -> None:
        """Without a usable state directory all processes use the second directory."""
        self.directory.touch()  # a file where the directory should be
        one, two = self.stand(), self.stand()
        self.assertEqual((one.leads, two.leads), (["hourly", "nightly"], []))
        self.assertTrue((self.fallback / "x.lock").exists())

    def test_nothing_writable(self) -> None:
        """If no directory can be used, no task runs, the log says so once, and it is tried again."""
        self.directory.touch()
        self.fallback.touch()
        with capturedLogs() as events:
            contender = self.stand()
            self.clock.pump([POLL] * 5)
        self.assertEqual(contender.leads, [])
        (event,) = events
        self.assertIn("do not run in this worker: cannot lock a file: ", formatEvent(event))
        self.assertIn(str(self.directory), formatEvent(event))
        self.directory.unlink()
        self.clock.advance(POLL)
        self.assertEqual(contender.leads, ["hourly", "nightly"])

    def test_symbolic_link(self) -> None:
        """A symbolic link in place of the lock file is not followed."""
        self.directory.mkdir()
        victim = self.directory / "victim"
        victim.write_text("keep")
        self.file.symlink_to(victim)
        self.stand()
        self.assertEqual(victim.read_text(), "keep")

    def test_deleted_file(self) -> None:
        """If somebody deletes the lock file, there is one leader again after two polls at most."""
        one, two = self.stand(), self.stand()
        self.file.unlink()
        self.clock.pump([POLL] * 2)
        self.assertEqual(sorted([one.leads, two.leads]), [[], ["hourly", "nightly"]])
        if one.lost:
            self.assertIn("the lock file x.lock was deleted", one.lost)
        self.clock.pump([POLL] * 10)
        self.assertEqual(sorted([one.leads, two.leads]), [[], ["hourly", "nightly"]])

    def test_child(self) -> None:
        """A child process that was forked without exec does not keep the lock of a leader that resigned."""
        one, two = self.stand(), self.stand()
        assert one.election._file._descriptor is not None
        shared = os.dup(one.election._file._descriptor)  # as a forked child has it
        self.addCleanup(os.close, shared)
        for task in TASKS:
            one.election.resign(task)
        self.clock.advance(POLL)
        self.assertEqual(two.leads, ["hourly", "nightly"])
        other = os.open(self.file, os.O_RDWR)
        self.addCleanup(os.close, other)
        self.assertRaises(BlockingIOError, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_partial_resignation(self) -> None:
        """A leader whose last run is under way keeps the lead until that has ended."""
        one, two = self.stand(), self.stand()
        one.election.resign("hourly")
        self.clock.pump([POLL] * 3)
        self.assertEqual(two.leads, [])
        one.election.resign("nightly")
        self.clock.advance(POLL)
        self.assertEqual(two.leads, ["hourly", "nightly"])


class ProcessElectionTests(SynchronousTestCase):
    def test_apart(self) -> None:
        """Nodes of other topics or hosts lead their own tasks."""
        clock = Clock()
        for host, topic in (("h1", "shop"), ("h1", "bank"), ("h2", "shop")):
            contender = Contender(ProcessElection(clock, host, topic)).start()
            self.assertEqual(contender.leads, ["hourly", "nightly"])

    def test_at_once(self) -> None:
        """The next node of the process takes over at once."""
        clock = Clock()
        one, two = (Contender(ProcessElection(clock, "h1", "shop")).start() for _ in range(2))
        for task in TASKS:
            one.election.resign(task)
        self.assertEqual(two.leads, ["hourly", "nightly"])
