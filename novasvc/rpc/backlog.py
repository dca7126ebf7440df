"""Requests that were received and not begun, in memory that outlives the process that received them.

A request of a method that is not idempotent must not run twice. A broker that delivers one again says
only that somebody had it before, so it is refused: it may have run. The workers of one supervisor know
more: each records, in memory that all of them share, the requests that it has received and not begun.
After a worker's death its siblings look a redelivered request up there, and run it if it never began.
"""

# Note [Only what is known]
#
# The record is evidence in one direction: "received first, and not begun by the time of its death". A
# request without an entry is refused as before, so an entry may be lost at any time: overwritten by a
# later one, or never written because the process was killed in between. It must never be wrong, though:
#
# - An entry is written before its request can begin, and is marked as removed before the method runs.
# - Each process writes its own page only; the state of an entry is one byte, written last.
# - Only the first receiver of a message writes an entry on its own authority. A sibling that takes the
#   request over by fate() writes one too, so a third process finds both, and both have to be dead.
# - A process that is alive may still begin what it has recorded. Its pid and the start time of that pid
#   tell whether it is alive, as a pid alone may belong to another process by now.

import mmap
import struct
from collections.abc import Collection, Iterator
from enum import Enum
from hashlib import blake2b
from itertools import count
from pathlib import Path

import attrs

PAGES = 256
"""Processes whose records are kept: the living ones, and as many dead ones as there is room for."""
SLOTS = 1024
"""Requests in one process's record; the oldest are overwritten."""

_OWNER = struct.Struct("<QQ")
"""The pid of a page's process, 0 for none, and the start time of that pid in clock ticks since boot."""
_ID = 16
_PAGE = SLOTS * (_ID + 1)
"""Octets of a page: the ids, then one octet for the state of each."""
_EMPTY, _WAITING, _REMOVED = 0, 1, 2


class Fate(Enum):
    """What is known of a request that is delivered again."""

    NEVER_BEGAN = "every process that had it is dead, and none had begun it"
    HELD = "a process that is alive has it, and may begin it"
    UNKNOWN = "it may have begun"


class SharedBacklog:
    """The memory of all processes; made before they are forked, and inherited by each.

    :param pages: processes that it has room for, > 0.
    :param descriptor: of a file that has :meth:`size` octets; without one the memory has no file.
    """

    def __init__(self, pages: int = PAGES, descriptor: int = -1) -> None:
        self.pages = pages
        flags = mmap.MAP_SHARED | (mmap.MAP_ANONYMOUS if descriptor < 0 else 0)
        self.memory = mmap.mmap(descriptor, self.size(pages), flags=flags)
        self._next = 0

    @staticmethod
    def size(pages: int) -> int:
        """Return the octets of memory that so many processes need."""
        return pages * (_OWNER.size + _PAGE)

    def free_page(self, alive: Collection[int]) -> int | None:
        """Return the page that was given away longest ago, of those whose process is not alive.

        Called where processes are forked, before each fork.

        :param alive: pids of the processes that may still write.
        :return: its number; None if all of them are alive.
        """
        for _ in range(self.pages):
            page, self._next = self._next, (self._next + 1) % self.pages
            pid, _ = self.owner(page)
            if pid not in alive:
                return page
        return None

    def owner(self, page: int) -> tuple[int, int]:
        """Return pid and start time of a page's process; the pid is 0 if it never had one."""
        pid, started = _OWNER.unpack_from(self.memory, page * _OWNER.size)
        return pid, started

    def join(self, page: int, pid: int) -> "Backlog":
        """Take a page for a process; called in that process. What was recorded there before is forgotten.

        :param page: from :meth:`free_page`.
        """
        at = self.ids_at(page)
        _OWNER.pack_into(self.memory, page * _OWNER.size, 0, 0)
        self.memory[at : at + _PAGE] = bytes(_PAGE)
        _OWNER.pack_into(self.memory, page * _OWNER.size, pid, _start_time(pid) or 0)
        return Backlog(self, page)

    def ids_at(self, page: int) -> int:
        """Return where a page begins."""
        return self.pages * _OWNER.size + page * _PAGE

    def find(self, key: bytes) -> Iterator[tuple[int, int]]:
        """Yield page and state of each entry of a request, removed ones among them.

        :param key: from :func:`key_of`.
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
class Backlog:
    """One process's record, and its view of the others'.

    :param page: this process's own.
    """

    _shared: SharedBacklog
    _page: int
    _numbers: "count[int]" = attrs.field(factory=count, init=False)

    def add(self, unique_id: str) -> int:
        """Record a request that was received and is not begun. It takes about two microseconds.

        Called for requests of methods that are not idempotent: for one that nobody received before, and for one
        whose fate was NEVER_BEGAN.

        :return: the slot, for :meth:`remove`.
        """
        slot = next(self._numbers) % SLOTS
        memory, ids = self._shared.memory, self._shared.ids_at(self._page)
        state = ids + SLOTS * _ID + slot
        memory[state] = _EMPTY
        memory[ids + slot * _ID : ids + (slot + 1) * _ID] = key_of(unique_id)
        memory[state] = _WAITING
        return slot

    def remove(self, slot: int) -> None:
        """Record that a request is about to begin, or that it was given back. Called before either happens."""
        self._shared.memory[self._shared.ids_at(self._page) + SLOTS * _ID + slot] = _REMOVED

    def fate(self, unique_id: str) -> Fate:
        """Tell what is known of a request that is delivered again."""
        fate = Fate.UNKNOWN
        for page, state in self._shared.find(key_of(unique_id)):
            if state == _REMOVED:
                return Fate.UNKNOWN
            if _is_alive(*self._shared.owner(page)):
                fate = Fate.HELD
            elif fate is Fate.UNKNOWN:
                fate = Fate.NEVER_BEGAN
        return fate


def key_of(unique_id: str) -> bytes:
    """Return the form in which an id is recorded: peers' ids have any length."""
    return blake2b(unique_id.encode("utf-8", "surrogatepass"), digest_size=_ID).digest()


def _is_alive(pid: int, started: int) -> bool:
    return _start_time(pid) == started


def _start_time(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot; None if it has ended, reaped or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # proc(5): the name, in parentheses, may hold anything; state is the first field behind it, starttime the 20th.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])
