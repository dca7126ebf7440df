"""Locks on files, by which the processes of one machine exclude each other."""

import errno
import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import attrs

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@attrs.define(eq=False)
class FileLock:
    """An exclusive lock on a file. The kernel releases it when the process exits, however it exits.

    The file holds the number of the process, for people. It is never unlinked: a second process would lock the old file
    while a third creates a new one.

    :param directories: where the file may be: the first that is writable. All processes find the same one.
    :param name: the file's name.
    """

    _directories: Sequence[Path]
    name: str
    _descriptor: int | None = attrs.field(default=None, init=False)

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock.

        :raises BlockingIOError: another process has it.
        :raises OSError: the file cannot be created or locked.
        """
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_in_place(descriptor):
                raise BlockingIOError  # noqa: TRY301 - deleted since; the next attempt creates another
            with suppress(OSError):  # on a full disk only the number of the process is missing
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock, if this process has it."""
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile shares the lock
            os.close(self._descriptor)
        self._descriptor = None

    def is_in_place(self) -> bool:
        """Return whether the locked file is still the one that other processes find."""
        return self._descriptor is not None and self._is_in_place(self._descriptor)

    def holder(self) -> int | None:
        """Return the number of the process that has the lock, or had it last; None if nobody did."""
        for directory in self._directories:
            with suppress(OSError):
                pid = (directory / self.name).read_text(encoding="ascii", errors="replace").strip()
                return int(pid) if pid.isdecimal() else None
        return None

    def identity(self) -> str | None:
        """Return which lock this process holds, and since when; see :func:`lock_identity`. None without the lock."""
        return None if self._descriptor is None else lock_identity(self._descriptor)

    def _open(self) -> int:
        refused: OSError | None = None
        for directory in self._directories:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if directory.stat().st_uid != os.geteuid():
                    # Somebody else could delete the file, or keep it locked.
                    raise PermissionError(errno.EPERM, "it belongs to another user", str(directory))
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                return os.open(directory / self.name, flags, 0o600)
            except OSError as error:
                if error.errno not in _NOT_WRITABLE:
                    raise  # such as a full disk, which the next attempt may not meet
                refused = refused or error
        raise refused or FileNotFoundError(errno.ENOENT, "no directory is given", self.name)

    def _is_in_place(self, descriptor: int) -> bool:
        ours = os.fstat(descriptor)
        for directory in self._directories:
            with suppress(OSError):
                found = (directory / self.name).stat()
                return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
        return False


# Note [Which lock]
#
# Two starts that have held the same lock one after the other prove that the first is dead. The lock is the same if it
# is on the same inode of the same kernel: the boot id differs between machines, clones of one virtual machine
# included, and after each restart of a machine. Host names and machine ids do not: containers and clones share them.
# Locks in a directory that several machines share may not exclude each other, but then the boot ids differ.
#
# The time since the boot, read while the lock is held, tells which of two processes held it later.


def lock_identity(descriptor: int) -> str | None:
    """Return which lock this process holds, and since when; see Note [Which lock].

    :param descriptor: of the locked file.
    :return: "BOOT_ID:DEVICE:INODE@NANOSECONDS", now, since the boot; None on a system without boot ids.
    """
    boot = _boot_id()
    if boot is None:
        return None
    status = os.fstat(descriptor)
    return f"{boot}:{status.st_dev}:{status.st_ino}@{time.clock_gettime_ns(time.CLOCK_BOOTTIME)}"


@cache
def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or None
    except OSError:
        return None
