"""Files by which `novasvc run --reload` says that its node is about to be back, for those who call it meanwhile."""

import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import attrs

from novasvc.rpc.target import Target
from novasvc.transport.local.outgoing import check_private

SUFFIX = ".restarts"

_SIZE = 65_536
"""Octets of a file that are read."""

# Note [Restarting nodes]
#
# A node on memory: is found by its socket, which is gone while the node restarts. The process that restarts it, which
# stays, therefore has a file beside the sockets. It holds an exclusive lock on the file, which ends with the process
# however that ends, so a file that can be locked is left over and is removed.


@attrs.frozen
class Restarting:
    """A node that another process restarts whenever its code changes.

    :param pid: the process that restarts it.
    :param nodes: topic and host of each node in the process.
    :param ended: how the node ended, such as "with status 1", if it starts only when a file changes; else "".
    """

    pid: int
    nodes: frozenset[tuple[str, str]]
    ended: str


class RestartFile:
    """The file of a process that restarts a node.

    :param directory: of the sockets; made with mode 0700 if it does not exist.
    :param nodes: topic and host of each node in the process.
    :raises OSError: the directory cannot be used.
    """

    def __init__(self, directory: Path, nodes: Iterable[tuple[str, str]]) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(directory)
        self._nodes = sorted(nodes)
        self._path = directory / f"{os.getpid()}{SUFFIX}"
        new = self._path.with_suffix(".new")
        # CLOEXEC, the default, keeps the lock from the node. Renamed when it is locked: see the note above.
        self._descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.write("")
        new.rename(self._path)

    def write(self, ended: str) -> None:
        """Say that the node runs or starts (""), or how it ended."""
        text = json.dumps({"nodes": self._nodes, "ended": ended}).encode()
        # The same number of octets or more: a reader never sees a part of it.
        os.pwrite(self._descriptor, text.ljust(os.fstat(self._descriptor).st_size), 0)

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


def restarting(directory: Path, target: Target | None = None) -> Restarting | None:
    """Return a node that is restarted when its code changes; None if there is none.

    :param directory: of the sockets.
    :param target: only a node that serves this target; None for any.
    """
    try:
        check_private(directory)
        paths = sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
    except OSError:
        return None
    for path in paths:
        found = _read(path)
        if found is not None and (target is None or _serves(found, target)):
            return found
    return None


def _serves(found: Restarting, target: Target) -> bool:
    return any(topic == target.topic and target.server in {None, host} for topic, host in found.nodes)


def _read(path: Path) -> Restarting | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None  # its process has just removed it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(ValueError, KeyError, TypeError):
            content = json.loads(os.pread(descriptor, _SIZE, 0))
            return Restarting(
                int(path.stem),
                frozenset((str(topic), str(host)) for topic, host in content["nodes"]),
                str(content["ended"]),
            )
    else:
        with suppress(OSError):
            path.unlink()
    finally:
        os.close(descriptor)
    return None
