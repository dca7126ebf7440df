"""The flight recorder: what happened last in a process, in a ring of memory that outlives it.

It is cheap enough for every call, and bounded. A worker's lies in memory that its supervisor maps,
too, so it can be read when the worker hangs, or was killed in the midst of a word. Nobody who has
no business with a secret may find one in it: names, ids, masked addresses and types of errors go
in, arguments and results never.
"""

import mmap
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import count, islice
from zlib import crc32

import attrs

# Note [A ring that can be read at any moment]
#
# Readers and the writer share no lock: a writer that was killed would hold it for ever. So a record
# carries a checksum of itself, and one that does not match, because it was never written, or is
# being written, or was left half written, is not there. Its number tells its place; the ring
# has no head that could point at something else. Everything is written by one copy of octets
# that were put together elsewhere: struct.pack_into clears its target first, and a reader of the
# heartbeat would now and then find none at all.
#
#     octet 0  magic: the form of what follows     octet 128  records of 128 octets
#           8  heartbeat, a double of this host                 0  CRC-32 of the other octets
#          16  unused                                           4  seconds since the epoch, a double
#                                                              12  number, from 1
#                                                              20  kind, space, text; UTF-8, zeroes

_MAGIC = b"novasvc2"
_BEAT = slice(8, 16)
_RECORD = 128
_CHECKSUM = struct.Struct("<I")
_EVENT = struct.Struct("<dQ108s")
_NUMBER, _NUMBER_AT = struct.Struct("<Q"), 12
_EVENTS = 511
SIZE = _RECORD + _EVENTS * _RECORD
"""Octets of memory that a recorder needs: 64 KiB."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


@attrs.frozen
class Event:
    """Something that happened.

    :param time: seconds since the epoch.
    :param kind: one word: "call", "task", "broker", "node", "stall", ...
    :param text: what happened; the end of a long one is missing.
    """

    time: float
    kind: str
    text: str


class FlightRecorder:
    """A ring of the last 511 events, and the stamp of the last heartbeat.

    It may be written in any thread of one process, and read in any process, at any moment. What
    is in the memory already is kept, and gone on with.

    :param memory: of exactly SIZE octets, writable.
    :param now: returns seconds since the epoch.
    :raises ValueError: the memory has another size.
    """

    def __init__(self, memory: mmap.mmap, *, now: Callable[[], float] = time.time) -> None:
        if len(memory) != SIZE:
            raise ValueError(f"a flight recorder needs {SIZE} octets of memory, not {len(memory)}")
        self._memory = memory
        self._now = now
        self._beat = memoryview(memory)[_BEAT].cast("d")
        last = 0
        if memory[: len(_MAGIC)] == _MAGIC:
            last = next((number for number, _ in self._newest()), 0)
        else:
            self.beat(0.0)
            memory[: len(_MAGIC)] = _MAGIC
        self._next_number = count(last + 1).__next__  # takes a number and counts on, at once for all threads

    @classmethod
    def anonymous(cls) -> "FlightRecorder":
        """Make one for this process alone; forked children get copies."""
        return cls(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    @classmethod
    def from_descriptor(cls, descriptor: int) -> "FlightRecorder":
        """Make one on the first SIZE octets of a file, which others can map, too.

        :param descriptor: of a file of at least SIZE octets; it may be closed afterwards.
        :raises ValueError: the file is shorter.
        """
        return cls(mmap.mmap(descriptor, SIZE))

    def note(self, kind: str, text: str) -> None:
        """Record an event. It takes about a microsecond, and fails for no text.

        :param kind: one word.
        :param text: what exceeds 108 octets, together with the kind and in UTF-8, is cut off.
        """
        try:
            octets = f"{kind} {text}".encode()
        except UnicodeEncodeError:  # a lone surrogate
            octets = f"{kind} {text}".encode(errors="replace")
        number = self._next_number()
        event = _EVENT.pack(self._now(), number, octets)
        at = (number % _EVENTS + 1) * _RECORD
        self._memory[at : at + _RECORD] = _CHECKSUM.pack(crc32(event)) + event

    def beat(self, monotonic: float) -> None:
        """Stamp a heartbeat.

        :param monotonic: seconds of CLOCK_MONOTONIC, which all processes of a host share.
        """
        self._beat[0] = monotonic

    @property
    def last_beat(self) -> float:
        """The stamp of the last heartbeat; 0 before the first."""
        return self._beat[0]

    def events(self, most: int = _EVENTS) -> list[Event]:
        """Return the last events, oldest first; one that is only half written is left out.

        :param most: that are read: all take two milliseconds.
        """
        return [event for _, event in islice(self._newest(), most)][::-1]

    def close(self) -> None:
        """Let go of the memory; nothing can be noted or read any more."""
        self._beat.release()
        self._memory.close()

    def _newest(self) -> Iterator[tuple[int, Event]]:
        """Yield the records that are whole, with their numbers, the newest first."""
        memory = self._memory[:]  # what is being written elsewhere stays as it is, here
        # By its number, which no other one has. One that is half written leads to a checksum that does not match.
        places = range(_RECORD, SIZE, _RECORD)
        for at in sorted(places, key=lambda at: _NUMBER.unpack_from(memory, at + _NUMBER_AT), reverse=True):
            (checksum,) = _CHECKSUM.unpack_from(memory, at)
            octets = memory[at + _CHECKSUM.size : at + _RECORD]
            if checksum == crc32(octets):
                seconds, number, said = _EVENT.unpack(octets)
                # "ignore", for the last character may have been cut in two.
                kind, _, text = said.rstrip(b"\0").decode(errors="ignore").partition(" ")
                yield number, Event(seconds, kind, text)


# Note [One recorder a process]
#
# The recorder is the process's, as its log is: its memory belongs to the process, it tells what
# the process did last, in whatever part of it, and a part that would have to be handed a recorder
# would be missing in the one dump that matters. Nothing depends on what is in it, and nothing has
# to be configured: who notes something needs only this module. Until a supervisor's is installed,
# what is noted goes to one that is nobody else's.

_installed = FlightRecorder.anonymous()
_note = _installed.note


def note(kind: str, text: str) -> None:
    """Record an event in the recorder of this process; see FlightRecorder.note."""
    _note(kind, text)  # bound when it was installed


def install(recorder: FlightRecorder) -> None:
    """Record in this one from now on, in this process."""
    global _installed, _note
    _installed, _note = recorder, recorder.note


def installed() -> FlightRecorder:
    """Return the recorder of this process."""
    return _installed


def format_events(events: Iterable[Event]) -> str:
    """Write events as lines for a log: "2026-11-23T02:03:04.567Z call greet began req-..."."""
    return "\n".join(f"{_time(event.time)} {event.kind} {event.text}".translate(_CONTROLS) for event in events)


def dump_text(recorder: FlightRecorder) -> str:
    """Write all that a recorder holds as lines for a log; "" if that is nothing."""
    return format_events(recorder.events())


def _time(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # of a clock that is out of its mind
        return f"{seconds!r} s"
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
