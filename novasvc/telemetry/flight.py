"""The flight recorder: a ring buffer of a process's last events, in memory that outlives the process.

It is bounded, and cheap enough for every call. A worker's ring buffer lies in memory that its
supervisor maps too, so it can be read when the worker hangs, or was killed in the middle of a
write. It must never contain a secret: names, ids, masked addresses and types of errors are
recorded, arguments and results are not.
"""

import mmap
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from zlib import crc32

import attrs

from novasvc.telemetry.timestamps import iso_time

# Note [A ring that can be read at any moment]
#
# Readers and the writer share no lock: a writer that was killed would hold it for ever. So each
# record carries a checksum. A record whose checksum does not match (never written, being written,
# or half written) is skipped. A record's number determines its position, so the ring needs no head
# pointer that could be wrong. Each write is one copy of octets that were packed elsewhere:
# struct.pack_into clears its target first, and a reader would sometimes see a heartbeat of zero.
#
#     octet 0  magic: the format's version         octet 128  records of 128 octets
#           8  heartbeat, a double, native order                0  CRC-32 of the other octets
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
    """A recorded event.

    :param time: seconds since the epoch.
    :param kind: one word: "call", "task", "broker", "node", "stall", ...
    :param text: what happened; long texts are truncated.
    """

    time: float
    kind: str
    text: str


class FlightRecorder:
    """A ring buffer of the last 511 events, and the time stamp of the last heartbeat.

    Any thread of one process may write, and any process may read at any moment. Existing events in
    the memory are kept, and new ones follow them.

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
        self._next_number = count(last + 1).__next__  # next() of count() is atomic under the GIL

    @classmethod
    def anonymous(cls) -> "FlightRecorder":
        """Make a recorder in private memory; forked children get copies."""
        return cls(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    @classmethod
    def from_descriptor(cls, descriptor: int) -> "FlightRecorder":
        """Make a recorder in the first SIZE octets of a file, which other processes can map too.

        :param descriptor: of a file of at least SIZE octets; it may be closed afterwards.
        :raises ValueError: the file is shorter.
        """
        return cls(mmap.mmap(descriptor, SIZE))

    def note(self, kind: str, text: str) -> None:
        """Record an event. Takes about a microsecond, and never fails because of the text.

        :param kind: one word.
        :param text: truncated so that kind and text have at most 108 octets in UTF-8.
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
        """The time stamp of the last heartbeat, seconds of CLOCK_MONOTONIC; 0 before the first."""
        return self._beat[0]

    def events(self, most: int = _EVENTS) -> list[Event]:
        """Return the last events, oldest first; half-written records are skipped.

        :param most: number of events to read; reading all takes two milliseconds.
        """
        return [event for _, event in islice(self._newest(), most)][::-1]

    def close(self) -> None:
        """Unmap the memory; nothing can be recorded or read afterwards."""
        self._beat.release()
        self._memory.close()

    def _newest(self) -> Iterator[tuple[int, Event]]:
        """Yield the valid records with their numbers, the newest first."""
        memory = self._memory[:]  # a copy, so that concurrent writes do not change it
        # Sorted by number, which is unique. The number of a half-written record may be wrong; its checksum then fails.
        places = range(_RECORD, SIZE, _RECORD)
        for at in sorted(places, key=lambda at: _NUMBER.unpack_from(memory, at + _NUMBER_AT), reverse=True):
            (checksum,) = _CHECKSUM.unpack_from(memory, at)
            octets = memory[at + _CHECKSUM.size : at + _RECORD]
            if checksum == crc32(octets):
                seconds, number, said = _EVENT.unpack(octets)
                # "ignore": truncation may have cut the last character in two.
                kind, _, text = said.rstrip(b"\0").decode(errors="ignore").partition(" ")
                yield number, Event(seconds, kind, text)


# Note [One recorder a process]
#
# This recorder, and the metrics beside it, are the one state of the package that belongs to a module: see
# Note [What belongs to the process] in novasvc.reactor.local for what belongs to a reactor instead.
# A process has one recorder, as it has one log: the recorder shows what the process did last, in
# any of its parts. If it had to be passed as an argument, the one part that did not pass it on
# would be missing in the dump that matters. Nothing depends on its content, and it needs no
# configuration: to record an event, a caller needs only this module. Until a supervisor's recorder
# is installed, events go to a private one.

_installed = FlightRecorder.anonymous()
_note = _installed.note


def note(kind: str, text: str) -> None:
    """Record an event in this process's recorder; see :meth:`FlightRecorder.note`."""
    _note(kind, text)  # bound in install(), which saves a lookup in every call


def install(recorder: FlightRecorder) -> None:
    """Use this recorder from now on, in this process."""
    global _installed, _note
    _installed, _note = recorder, recorder.note


def installed() -> FlightRecorder:
    """Return the recorder of this process."""
    return _installed


def format_events(events: Iterable[Event]) -> str:
    """Format events as log lines: "2026-11-23T02:03:04.567Z call greet began req-..."."""
    return "\n".join(f"{_time(event.time)} {event.kind} {event.text}".translate(_CONTROLS) for event in events)


def dump_text(recorder: FlightRecorder) -> str:
    """Format all events of a recorder as log lines; "" if there are none."""
    return format_events(recorder.events())


def _time(seconds: float) -> str:
    return iso_time(seconds).replace("+00:00", "Z")
