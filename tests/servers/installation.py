"""Where a server's programs are: on this machine, or in a directory that holds another release of Debian."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import attrs

VARIABLE = "TESTS_SERVERS_ROOT"
"""Environment variable that names the directory; see ``tests/brokers``. Unset or empty: this machine."""

# The mounts belong to this process and its children, and are gone with them. The tests' own files have the same path
# inside as outside. Every step execs the next one, so the process that was started becomes the server.
_ENTER = """
set -e
root=$1 shared=$2 directory=$3
shift 3
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
exec chroot "$root" env --chdir="$directory" "$@"
"""


@attrs.frozen
class Installation:
    """A tree of directories that servers are installed in.

    :param root: "/", or the directory of a chroot; only root can start programs in one.
    """

    root: Path = Path("/")

    @classmethod
    def chosen(cls) -> Self:
        """Return the one that :data:`VARIABLE` names."""
        return cls(Path(os.environ.get(VARIABLE) or "/"))

    def find(self, pattern: str) -> list[Path]:
        """Find files by a pattern of absolute paths inside; return their paths inside, sorted."""
        return sorted(Path("/") / found.relative_to(self.root) for found in self.root.glob(pattern.lstrip("/")))

    def command(self, words: Sequence[str], directory: Path = Path("/")) -> list[str]:
        """Return the command that runs a program inside.

        :param words: the program's path inside, and its arguments.
        :param directory: working directory; only used in a chroot.
        """
        if self.root == Path("/"):
            return list(words)
        unshare = ["unshare", "--mount", "--propagation", "private", "--"]
        enter = ["sh", "-c", _ENTER, "sh", str(self.root), tempfile.gettempdir(), str(directory)]
        return [*unshare, *enter, *words]
