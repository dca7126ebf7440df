"""A lock on the path of a unix socket, so that one process at a time listens there."""

import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path

import attrs

from novasvc.workers.errors import ControlError, OrphansError

MAX_PATH_LENGTH = 107
"""Bytes in a unix socket's path, without the terminating NUL."""

_ELSEWHERE = "set control_socket, or state_dir, to another place"

# Note [One listener]
#
# A socket file outlives its process after kill -9, so its existence proves nothing: only connecting tells whether
# somebody listens. But two processes that find a stale file at the same time would both unlink it, and the second
# would unlink the socket that the first has just bound. So a process first takes flock() on a file beside the
# socket, and holds it while it listens. The kernel releases the lock when the process exits, however it exits. The
# lock file is never unlinked: a third process would lock a new file while a second one waits on the old inode.
#
# flock() belongs to the open file description, which forkserver and workers inherit: if their supervisor is killed,
# they hold the lock until the last of them has drained. So a held lock without a listener means orphans, or a
# supervisor that is about to listen or to exit: the caller retries. Or somebody has deleted the socket file of a
# supervisor that runs; then the retries fail.
#
# The lock does not replace the connection test: the listener may not be a supervisor, or its lock file may have
# been deleted. A socket that accepts connections is never unlinked, and neither is a file that is not a socket.


@attrs.define
class PathLock:
    """A locked path with a listening unix socket; see Note [One listener].

    :param path: absolute.
    :param socket: non-blocking; its file has mode 0600 from the moment it is bound.
    :param descriptor: of the lock file; every process that has it open holds the lock.
    """

    path: Path
    socket: socket.socket
    descriptor: int
    _identity: tuple[int, int]

    @classmethod
    def acquire(cls, path: Path) -> "PathLock":
        """Lock a path and listen there; a missing directory is created with mode 0700.

        :raises OrphansError: another process has locked the path, but nobody listens.
        :raises ControlError: the path cannot be used, or another process uses it.
        """
        path = path.absolute()
        check_path(path)
        lock = _lock(path)
        try:
            _remove_stale(path)
            return cls(path, _listen(path), lock, _identity(path))
        except BaseException as error:
            os.close(lock)
            if not isinstance(error, OSError):
                raise
            raise ControlError(str(path), f"cannot create a socket there: {error.strerror}", _ELSEWHERE) from error

    def release(self) -> None:
        """Stop listening, unlink the socket file if it is still ours, and release the lock."""
        with suppress(OSError):  # gone, or not removable; the next process finds that nobody listens
            if _identity(self.path) == self._identity:
                self.path.unlink()
        self.socket.close()
        with suppress(OSError):
            os.ftruncate(self.descriptor, 0)  # the next holder may not have written its pid yet
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # also for workers that have inherited it
        os.close(self.descriptor)


def check_path(path: Path) -> None:
    """Check that a path is short enough for a unix socket.

    :param path: absolute.
    :raises ControlError: the path is too long.
    """
    size = len(os.fsencode(path))
    if size > MAX_PATH_LENGTH:
        problem = f"a path of {size} bytes exceeds the maximum for a unix socket, {MAX_PATH_LENGTH}"
        raise ControlError(str(path), problem, _ELSEWHERE)


def peer_credentials(connected: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the peer by SO_PEERCRED; pid 0 is a process outside this PID namespace."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def _lock(path: Path) -> int:
    """Open and lock the lock file; return its descriptor."""
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
            previous = f"the previous supervisor{f' (pid {holder})' if holder.isdecimal() else ''}"
            problem = f"the workers of {previous} still drain, or its socket file was deleted"
            # Do not suggest fuser -k: a supervisor that waits for the lock has the file open, too.
            remedy = f"wait until they exit, or stop that supervisor; `fuser {file}` lists them"
            raise OrphansError(str(path), problem, remedy, previous, file) from None
        problem = f"another supervisor{f', pid {holder},' if holder.isdecimal() else ''} already uses it"
        raise ControlError(str(path), problem, f"stop it, or {_ELSEWHERE}") from None
    except OSError as error:
        os.close(lock)
        raise ControlError(str(path), f"{file} cannot be locked: {error.strerror}", _ELSEWHERE) from error
    with suppress(OSError):  # on a full disk only the pid in the next error message is missing
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _is_listened_at(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its backlog is full
        except OSError:
            return False
    return True


def _remove_stale(path: Path) -> None:
    """Unlink a stale socket.

    :raises ControlError: somebody listens there, or the file is not a socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(str(path), "the file there is not a socket", f"remove it, or {_ELSEWHERE}")
    with socket.socket(socket.AF_UNIX) as probe:
        # connect() on a unix socket succeeds or fails immediately: no wait.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
            pid, _ = peer_credentials(probe)
            problem = f"process {pid} listens there" if pid else "a process in another container listens there"
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:  # its owner has just unlinked it
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
        # umask is process-wide, so only around bind(); a later chmod would leave a moment with another mode.
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
