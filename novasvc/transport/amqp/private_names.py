"""Names of reply and fanout queues that a restarted process uses again."""

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from twisted.logger import Logger

_log = Logger()

_SLOTS = 1000
"""Slots that are tried; a host does not run more processes of one binary."""
_LONGEST = 255
"""Octets of a queue's name (AMQP 0-9-1, shortstr)."""

# Note [Stable names of private queues]
#
# A process that is killed leaves its reply and fanout queues on the broker until they expire, by default
# for 30 minutes: a process that crashes and restarts leaves thousands. With names that its successor
# uses again there are never more queues than there were processes at one time.
#
# Two processes must not share such a queue: each would get a part of the other's replies. A name has the
# host, the binary, a digest of what else tells two processes apart, and a slot: the lowest number whose
# file in the state directory is not locked. The lock ends with the process. Where locks do not help, such
# as containers that have equal host names and directories, the broker does: a process that finds a
# consumer at its queue when it starts uses a random name. So does one that finds the dead connection of
# its predecessor, which the broker has not missed yet.
#
# What is still in the queue is meant for the predecessor, and is purged. The digest has the queue's
# arguments, too: with other settings the queue has another name, since its arguments cannot be changed.


def random_name(prefix: str) -> str:
    """Return a name that no other process has."""
    return f"{prefix}{os.urandom(16).hex()}"


@attrs.define(eq=False)
class PrivateNames:
    """The stable names of one transport; see Note [Stable names of private queues].

    :param directory: for the lock files; None: all names are random.
    :param host: the setting.
    :param binary: of the process.
    """

    _directory: Path | None = None
    _host: str = ""
    _binary: str = ""
    _slot: int | None = attrs.field(default=None, init=False)
    _descriptor: int | None = attrs.field(default=None, init=False)
    _taken: set[str] = attrs.field(factory=set, init=False)

    def take(self, prefix: str, arguments: Sequence[Any]) -> str:
        """Return a name; a random one if there is no slot, or this process has the stable one already.

        :param prefix: what the name begins with.
        :param arguments: what the queue is declared with.
        """
        slot = self._find_slot()
        if slot is None:
            return random_name(prefix)
        told_apart = [socket.gethostname(), str(self._directory), os.geteuid(), list(arguments)]
        digest = hashlib.sha256(json.dumps(told_apart).encode()).hexdigest()[:8]
        name = f"{prefix}{self._host}:{self._binary}:{digest}:{slot}"
        if name in self._taken or len(name.encode()) > _LONGEST:
            return random_name(prefix)
        self._taken.add(name)
        return name

    def is_stable(self, name: str) -> bool:
        """Return whether a name is one that a predecessor may have had."""
        return name in self._taken

    def give_back(self, name: str) -> None:
        """Allow a name to be taken again by this process."""
        self._taken.discard(name)

    def release(self) -> None:
        """Leave the slot to another process."""
        descriptor, self._descriptor, self._slot = self._descriptor, None, None
        self._taken.clear()
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile shares the lock
            os.close(descriptor)

    def _find_slot(self) -> int | None:
        """Lock the lowest free slot, once; return its number, or None if there is none."""
        if self._slot is None and self._directory is not None:
            try:
                self._slot = self._lock(self._directory)
            except OSError as error:
                _log.debug("random names for reply and fanout queues: no lock file: {error}", error=error)
                self._directory = None
        return self._slot

    def _lock(self, directory: Path) -> int | None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.geteuid():
            # Somebody else could delete the files, and have two processes share a slot.
            raise PermissionError(errno.EPERM, "it belongs to another user", str(directory))
        name = hashlib.sha256(f"{self._host} {self._binary}".encode()).hexdigest()[:16]
        for slot in range(1, _SLOTS):
            path = directory / f"{name}.{slot}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in {errno.EAGAIN, errno.EACCES}:
                    raise
            else:
                self._descriptor = descriptor
                return slot
        return None
