"""Who has a control socket's place, with real files, sockets and processes."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from twisted.trial.unittest import SynchronousTestCase

from novasvc.workers.control.path_lock import PathLock
from novasvc.workers.errors import ControlError, OrphansError

_NOBODY = 65534

_CLAIMANT = """
import sys, time
from pathlib import Path
from novasvc.workers.control.path_lock import PathLock
from novasvc.workers.errors import ControlError

print("here", flush=True)
for line in sys.stdin:
    moment = float(line)
    while time.monotonic() < moment:
        pass
    try:
        lock = PathLock.acquire(Path(sys.argv[1]))
    except ControlError as error:
        lock = None
        print(error, flush=True)
    else:
        print("won", flush=True)
    sys.stdin.readline()
    if lock is not None:
        lock.release()
    print("done", flush=True)
"""


_ORPHANING = """
import os, signal, sys
from pathlib import Path
from novasvc.workers.control.path_lock import PathLock

lock = PathLock.acquire(Path(sys.argv[1]))
if not os.fork():
    lock.socket.close()
    print(os.getpid(), flush=True)
    os.close(1)
signal.pause()
"""


class LockHolder:
    """A process that claims the place when it is told to."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", _CLAIMANT, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class PathLockCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "state" / "control"

    def take(self) -> PathLock:
        """Take the place until the test ends."""
        lock = PathLock.acquire(self.path)
        self.addCleanup(self._release, lock)
        return lock

    def _release(self, lock: PathLock) -> None:
        if lock.socket.fileno() != -1:
            lock.release()

    def refusal(self, path: Path | None = None) -> str:
        """Return why it cannot be taken."""
        return str(self.assertRaises(ControlError, PathLock.acquire, path or self.path))

    def holder(self) -> LockHolder:
        holder = LockHolder(self.path)
        self.addCleanup(holder.end)
        self.assertEqual(holder.read(), "here")
        return holder

    def bind(self, kind: int = socket.SOCK_STREAM, backlog: int | None = None) -> socket.socket:
        """Have a socket of somebody else there."""
        self.path.parent.mkdir(exist_ok=True)
        other = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(other.close)
        other.bind(str(self.path))
        if backlog is not None:
            other.listen(backlog)
        return other


class AcquireTests(PathLockCase):
    """Tests for novasvc.workers.control.path_lock.PathLock.acquire."""

    def test_modes(self) -> None:
        """The socket is for its user alone, and so is the directory that is made for it, whatever the umask is."""
        self.addCleanup(os.umask, os.umask(0))
        self.take()
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (self.path, self.path.parent, Path(f"{self.path}.lock"))]
        self.assertEqual(modes, [0o600, 0o700, 0o600])
        self.assertEqual(os.umask(0), 0)

    def test_directory_that_is_there(self) -> None:
        """A directory that is there keeps its mode."""
        self.path.parent.mkdir(mode=0o755)
        self.path.parent.chmod(0o755)
        self.take()
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o755)

    def test_listens(self) -> None:
        """Connections are accepted as soon as it is taken."""
        lock = self.take()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))
            accepted, _ = lock.socket.accept()
            accepted.close()

    def test_stale(self) -> None:
        """A socket at which nobody listens is replaced."""
        self.bind(backlog=1).close()
        self.assertTrue(self.path.exists())
        self.take()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))

    def test_never_listened(self) -> None:
        """A socket that was bound by one that never listened is replaced, too."""
        self.bind()
        self.take()

    def test_taken(self) -> None:
        """A place that a supervisor has is refused; who has it, and what to do, is said; the file stays."""
        self.take()
        before = self.path.stat().st_ino
        self.assertEqual(
            self.refusal(),
            f"control socket '{self.path}': another launcher of this process already uses it; "
            "give each launcher a control_socket of its own",
        )
        self.assertEqual(self.path.stat().st_ino, before)

    def test_live(self) -> None:
        """A socket of a process that is no supervisor is not unlinked while that listens, locked or not."""
        self.bind(backlog=1)
        self.assertIn(f"process {os.getpid()} listens there; stop that process, or", self.refusal())
        self.assertTrue(self.path.is_socket())

    def test_busy(self) -> None:
        """One that has no place for a connection lives as well, and is not waited for."""
        self.bind(backlog=0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for client in clients:
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect_ex(str(self.path))
        self.assertIn("its backlog is full", self.refusal())
        self.assertTrue(self.path.is_socket())

    def test_other_kind(self) -> None:
        """A socket of datagrams is left alone."""
        self.bind(socket.SOCK_DGRAM)
        self.assertIn("cannot find out who listens there: Protocol wrong type", self.refusal())
        self.assertTrue(self.path.is_socket())

    def test_no_socket(self) -> None:
        """Neither a file nor a directory nor a link is touched."""
        self.path.parent.mkdir()
        for make in (
            lambda: self.path.write_text("precious"),
            self.path.mkdir,
            lambda: self.path.symlink_to("/nowhere"),
        ):
            make()
            before = self.path.lstat()
            self.assertIn("the file there is not a socket; remove it, or set", self.refusal())
            self.assertEqual(self.path.lstat(), before)
            self.path.rmdir() if self.path.is_dir() else self.path.unlink()

    def test_long(self) -> None:
        """A path that no socket can have is refused with both lengths; the longest that one can have is taken."""
        name = "x" * (107 - len(str(self.directory)) - 1)
        lock = PathLock.acquire(self.directory / name)
        lock.release()
        self.assertIn("a path of 108 bytes exceeds", self.refusal(self.directory / f"{name}x"))
        self.assertIn("a path of 108 bytes", self.refusal(self.directory / f"{name[:-1]}é"))

    def test_directory_that_is_none(self) -> None:
        """A directory that cannot be made is named."""
        file = self.directory / "file"
        file.touch()
        self.assertRegex(self.refusal(file / "a" / "control"), r"Not a directory: .*; make its directory writable for")

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes the place of another user")
    def test_not_writable(self) -> None:
        """A directory of another user is refused, and what to do is said."""
        self.path.parent.mkdir(mode=0o755)
        self.directory.chmod(0o755)
        os.seteuid(_NOBODY)
        try:
            self.assertRegex(self.refusal(), r"Permission denied: .*; make its directory writable for this user, or")
        finally:
            os.seteuid(0)

    def test_lock_that_is_a_link(self) -> None:
        """A lock file that is a link is not followed."""
        self.path.parent.mkdir()
        Path(f"{self.path}.lock").symlink_to(self.directory / "elsewhere")
        self.assertIn("cannot create files there", self.refusal())
        self.assertFalse((self.directory / "elsewhere").exists())

    def test_no_descriptor_left(self) -> None:
        """One that is refused has kept no descriptor."""
        self.bind(backlog=1)
        before = len([*Path("/proc/self/fd").iterdir()])
        self.refusal()
        self.assertEqual(len([*Path("/proc/self/fd").iterdir()]), before)


class ReleaseTests(PathLockCase):
    """Tests for novasvc.workers.control.path_lock.PathLock.release."""

    def test_release(self) -> None:
        """The socket's file is gone, and the place can be taken again."""
        self.take().release()
        self.assertFalse(self.path.exists())
        self.take()

    def test_another_file(self) -> None:
        """A file that another process has put there stays, and so does no file at all."""
        lock = self.take()
        self.path.unlink()
        self.bind()
        lock.release()
        self.assertTrue(self.path.is_socket())
        again = self.take()
        self.path.unlink()
        again.release()


class ProcessTests(PathLockCase):
    """Tests for claims of several processes."""

    def test_orphans(self) -> None:
        """While a worker of a supervisor that was killed has the lock open, the place is not free, and then it is."""
        with subprocess.Popen(
            [sys.executable, "-c", _ORPHANING, str(self.path)], stdout=subprocess.PIPE, text=True
        ) as supervisor:
            assert supervisor.stdout is not None
            worker = int(supervisor.stdout.readline())
            self.assertRaises(ControlError, PathLock.acquire, self.path)
            supervisor.kill()
        error = self.assertRaises(OrphansError, PathLock.acquire, self.path)
        self.assertEqual(
            str(error),
            f"control socket '{self.path}': the workers of the previous supervisor (pid {supervisor.pid}) still drain, "
            "or its socket file was deleted; wait until they exit, or stop that supervisor; "
            f"`fuser {self.path}.lock` lists them",
        )
        os.kill(worker, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.take()
                break
            except OrphansError:
                self.assertLess(time.monotonic(), deadline)

    def test_file_deleted(self) -> None:
        """A supervisor whose socket file was deleted keeps the place, and is not called killed."""
        holder = self.holder()
        holder.write("0")
        self.assertEqual(holder.read(), "won")
        self.path.unlink()
        named = f"the workers of the previous supervisor (pid {holder.process.pid}) still drain, or its socket file was"
        self.assertIn(named, self.refusal())

    def test_released(self) -> None:
        """A supervisor that ends well gives the place back, whoever else still has the lock open."""
        lock = self.take()
        kept = os.dup(lock.descriptor)
        self.addCleanup(os.close, kept)
        lock.release()
        self.take()

    def test_same_moment(self) -> None:
        """Of several that start at the same moment exactly one wins, with a stale socket or none."""
        claimants = [self.holder() for _ in range(4)]
        for number in range(30):
            if number % 2:
                self.bind(backlog=1).close()
            moment = time.monotonic() + 0.005
            for holder in claimants:
                holder.write(repr(moment))
            outcomes = [holder.read() for holder in claimants]
            lost = sorted(outcome for outcome in outcomes if outcome != "won")
            self.assertEqual(len(lost), 3, outcomes)
            self.assertTrue(all(re.search("(another|previous) supervisor", outcome) for outcome in lost), lost)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.path))
            for holder in claimants:
                holder.write("")
            self.assertEqual([holder.read() for holder in claimants], ["done"] * 4)
            self.assertFalse(self.path.exists())

    def test_killed(self) -> None:
        """After kill -9 the socket and the lock file are there, and hinder nobody."""
        holder = self.holder()
        holder.write("0")
        self.assertEqual(holder.read(), "won")
        self.assertIn(f"another supervisor, pid {holder.process.pid}, already uses it", self.refusal())
        holder.process.send_signal(signal.SIGKILL)
        holder.process.wait()
        self.assertTrue(self.path.is_socket())
        self.take()
