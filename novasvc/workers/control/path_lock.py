"""A place for a unix socket, which one process has at a time."""

import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path

import attrs

from novasvc.workers.errors import ControlError, OrphansError

_LONGEST = 107
"""Octets in a unix socket's path, without the zero at its end."""

_ELSEWHERE = "set control_socket, or state_dir, to another place"

# Note [One listener]
#
# That a socket's file is there says nothing of its process: after kill -9 it stays. Whether
# somebody listens is known by connecting. But two processes that find nobody, at the same time, would
# both remove the file, and the second one removes what the first one has just bound. So who wants the
# place first locks a file beside it, and keeps the lock while it listens. The system gives the lock
# back when the process ends, however it ends. The file stays: to remove it would give a third process
# a new file to lock while a second one waits at the old one.
#
# The lock belongs to the open file, and the forkserver and the workers have that open, too: if their supervisor is
# killed, they hold the lock until the last of them has finished what it has begun. So a lock that is held where nobody
# listens is one of orphans, or of a supervisor that is about to listen or to end: whoever wants the place tries again.
#
# The lock does not replace the connecting: what listens there may be no supervisor, or one whose lock file was
# swept away. A socket that accepts is never unlinked, nor is anything that is not a socket.


@attrs.define
class PathLock:
    """A unix socket that listens at a path, of this process alone: see Note [One listener].

    :param path: absolute.
    :param socket: does not block; mode 0600 from its first moment.
    :param descriptor: of the lock file; every process that has it open holds the lock.
    """

    path: Path
    socket: socket.socket
    descriptor: int
    _identity: tuple[int, int]

    @classmethod
    def acquire(cls, path: Path) -> "PathLock":
        """Bind a socket at a path, in a directory that is made for nobody else if it is missing.

        :raises OrphansError: workers of a supervisor that is gone are still there.
        :raises ControlError: it cannot be had.
        """
        path = path.absolute()
        check_path(path)
        lock = _lock(path)
        try:
            _clear(path)
            return cls(path, _listen(path), lock, _identity(path))
        except BaseException as error:
            os.close(lock)
            if not isinstance(error, OSError):
                raise
            raise ControlError(str(path), f"cannot create a socket there: {error.strerror}", _ELSEWHERE) from error

    def release(self) -> None:
        """Stop listening, and remove the socket's file if it is still ours."""
        with suppress(OSError):  # it is gone, or cannot go; who comes next sees that nobody listens
            if _identity(self.path) == self._identity:
                self.path.unlink()
        self.socket.close()
        with suppress(OSError):
            os.ftruncate(self.descriptor, 0)  # the next holder may not have written its pid yet
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # whoever else has it open
        os.close(self.descriptor)


def check_path(path: Path) -> None:
    """See that a socket can have this path.

    :param path: absolute.
    :raises ControlError: it is too long.
    """
    size = len(os.fsencode(path))
    if size > _LONGEST:
        problem = f"a path of {size} bytes exceeds the maximum for a unix socket, {_LONGEST}"
        raise ControlError(str(path), problem, _ELSEWHERE)


def peer_credentials(connected: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the other end, as the system knows it; pid 0 is one that this container does not see."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def _lock(path: Path) -> int:
    """Return a descriptor that holds the lock until it is closed."""
    file = f"{path}.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem = f"cannot create files there: {error.strerror}: {error.filename}"
        raise ControlError(str(path), problem, f"make its directory writable for this user, or {_ELSEWHERE}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        if holder == str(os.getpid()):
            problem, remedy = (
                "another launcher of this process already uses it",
                "give each launcher a control_socket of its own",
            )
            raise ControlError(str(path), problem, remedy) from None
        if not _is_listened_at(path):
            killed = f"the killed supervisor{f' (pid {holder})' if holder.isdecimal() else ''}"
            # No -k: whoever waits for the lock opens the file, too, and would be killed with them.
            remedy = f"wait for them; `fuser {file}` lists them"
            raise OrphansError(str(path), f"the workers of {killed} still drain", remedy, killed, file) from None
        problem = f"another supervisor{f', pid {holder},' if holder.isdecimal() else ''} already uses it"
        raise ControlError(str(path), problem, f"stop it, or {_ELSEWHERE}") from None
    except OSError as error:
        os.close(lock)
        raise ControlError(str(path), f"{file} cannot be locked: {error.strerror}", _ELSEWHERE) from error
    with suppress(OSError):  # on a full disk the next one is not told who has it, and that is all
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _is_listened_at(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # more want to be accepted than it allows
        except OSError:
            return False
    return True


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at; see that there is nothing else.

    :raises ControlError: there is something else.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(str(path), "the file there is not a socket", f"remove it, or {_ELSEWHERE}")
    with socket.socket(socket.AF_UNIX) as probe:
        # A connection to a unix socket is there at once, or not at all: nothing here waits.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
            pid, _ = peer_credentials(probe)
            problem = f"process {pid} listens there" if pid else "a process in another container listens there"
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:  # its owner has just left
            return
        except BlockingIOError:
            problem = "a process listens there, and its backlog is full"
        except OSError as error:
            problem = f"cannot find out who listens there: {error.strerror}"
    raise ControlError(str(path), problem, f"stop that process, or {_ELSEWHERE}")


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.setblocking(False)
        # It is the whole process's, so for this line only. A mode that is set later is set too late.
        before = os.umask(0o177)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(before)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
