"""Unstarted records: requests received and not begun, in shared memory that outlives their receivers.

A request for a method that is not idempotent must not run twice. When a broker redelivers one, it says only
that some process received it before; the request may have run, so it is refused. The workers of one
supervisor know more: each records, in memory shared by all, the requests that it has received and not begun.
After a worker's death its siblings look a redelivered request up there, and run it if it never began.
"""

# Note [Only what is known]
#
# The record proves one thing only: "this process received the request, and had not begun it when the
# process died". A request without an entry is refused. So an entry may be missing at any time:
# overwritten by a later one, or never written because the process was killed first. An entry must never
# be wrong:
#
# - An entry is written before its request can begin, and marked as removed before the method runs.
# - Each process writes only its own page. The state of an entry is one byte, written last.
# - Only the first receiver of a message writes an entry without looking the request up. A sibling that
#   takes the request over after progress() writes an entry too. A third process then finds both entries, and
#   runs the request only if both processes are dead.
# - A living process may still begin a request that it has recorded. A process is identified by its pid
#   and the start time of that pid, because a pid is reused.

import mmap
import struct
from collections.abc import Collection, Iterator
from enum import Enum
from hashlib import blake2b
from itertools import count
from pathlib import Path

import attrs

PAGES = 256
"""The most processes with a record: the living ones, and the latest dead ones."""
SLOTS = 1024
"""The most requests in one process's record; the oldest are overwritten."""

_OWNER = struct.Struct("<QQ")
"""Header of a page: pid of its process (0 for none), and that pid's start time in clock ticks since boot."""
_ID = 16
_PAGE = SLOTS * (_ID + 1)
"""Size of a page in octets: the hashed ids, then one octet for the state of each."""
_EMPTY, _WAITING, _REMOVED = 0, 1, 2


class Progress(Enum):
    """What the record tells about the progress of a redelivered request."""

    NEVER_BEGAN = "every process that had it is dead, and none had begun it"
    PENDING = "a process that is alive has it, and may begin it"
    UNKNOWN = "it may have begun"


class SharedRecords:
    """The records of all processes, in shared memory; created before the workers are forked, which inherit it.

    :param pages: processes to make room for, > 0.
    :param descriptor: file descriptor of a file of :meth:`size` octets; -1 maps anonymous memory.
    """

    def __init__(self, pages: int = PAGES, descriptor: int = -1) -> None:
        self.pages = pages
        flags = mmap.MAP_SHARED | (mmap.MAP_ANONYMOUS if descriptor < 0 else 0)
        self.memory = mmap.mmap(descriptor, self.size(pages), flags=flags)
        self._next = 0

    @staticmethod
    def size(pages: int) -> int:
        """Return the size of the memory for this many pages, in octets."""
        return pages * (_OWNER.size + _PAGE)

    def free_page(self, alive: Collection[int]) -> int | None:
        """Return the least recently assigned page whose process is dead.

        Called by the supervisor before each fork.

        :param alive: pids of the processes that may still write.
        :return: the page's number, or None if the processes of all pages are alive.
        """
        for _ in range(self.pages):
            page, self._next = self._next, (self._next + 1) % self.pages
            pid, _ = self.owner(page)
            if pid not in alive:
                return page
        return None

    def owner(self, page: int) -> tuple[int, int]:
        """Return the pid and start time of a page's process; pid 0 means that the page has none."""
        pid, started = _OWNER.unpack_from(self.memory, page * _OWNER.size)
        return pid, started

    def join(self, page: int, pid: int) -> "UnstartedRecord":
        """Clear a page and assign it to a process; called in that process.

        :param page: a page number from :meth:`free_page`.
        :param pid: the pid of the calling process.
        :return: the process's record.
        """
        at = self.ids_at(page)
        _OWNER.pack_into(self.memory, page * _OWNER.size, 0, 0)
        self.memory[at : at + _PAGE] = bytes(_PAGE)
        _OWNER.pack_into(self.memory, page * _OWNER.size, pid, _start_time(pid) or 0)
        return UnstartedRecord(self, page)

    def ids_at(self, page: int) -> int:
        """Return the offset of a page's ids in the memory."""
        return self.pages * _OWNER.size + page * _PAGE

    def find(self, key: bytes) -> Iterator[tuple[int, int]]:
        """Yield the page and the state of each entry of a request, including removed entries.

        :param key: a hashed id from :func:`key_of`.
        """
        for page in range(self.pages):
            if not self.owner(page)[0]:
                continue
            ids = self.ids_at(page)
            states = ids + SLOTS * _ID
            at = self.memory.find(key, ids, states)
            while at >= 0:
                slot, remainder = divmod(at - ids, _ID)
                if not remainder and (state := self.memory[states + slot]) != _EMPTY:
                    yield page, state
                at = self.memory.find(key, at + 1, states)


@attrs.define(eq=False)
class UnstartedRecord:
    """Write one process's record, and read the records of all.

    :param shared: the memory of all processes.
    :param page: the page of this process.
    """

    _shared: SharedRecords
    _page: int
    _numbers: "count[int]" = attrs.field(factory=count, init=False)

    def add(self, unique_id: str) -> int:
        """Record a request as received and not begun. This takes about two microseconds.

        Call it only for methods that are not idempotent, and only for a request that no process received before,
        or whose progress is NEVER_BEGAN.

        :return: the entry's slot, for :meth:`remove`.
        """
        slot = next(self._numbers) % SLOTS
        memory, ids = self._shared.memory, self._shared.ids_at(self._page)
        state = ids + SLOTS * _ID + slot
        memory[state] = _EMPTY
        memory[ids + slot * _ID : ids + (slot + 1) * _ID] = key_of(unique_id)
        memory[state] = _WAITING
        return slot

    def remove(self, slot: int) -> None:
        """Mark an entry as removed. Called before its request begins or is requeued."""
        self._shared.memory[self._shared.ids_at(self._page) + SLOTS * _ID + slot] = _REMOVED

    def progress(self, unique_id: str) -> Progress:
        """Look up the progress of a redelivered request in the records of all processes."""
        progress = Progress.UNKNOWN
        for page, state in self._shared.find(key_of(unique_id)):
            if state == _REMOVED:
                return Progress.UNKNOWN
            if _is_alive(*self._shared.owner(page)):
                progress = Progress.PENDING
            elif progress is Progress.UNKNOWN:
                progress = Progress.NEVER_BEGAN
        return progress


def key_of(unique_id: str) -> bytes:
    """Return an id's hash, of fixed length: ids from peers have any length."""
    return blake2b(unique_id.encode("utf-8", "surrogatepass"), digest_size=_ID).digest()


def _is_alive(pid: int, started: int) -> bool:
    return _start_time(pid) == started


def _start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None if it has ended, even as a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # proc_pid_stat(5): comm, in parentheses, may contain any character; after it, state is field 1, starttime field 20.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])
