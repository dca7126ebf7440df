"""The flight recorder: what happened last in a process, in a ring of memory that outlives it.

Every process has one, as it has one log: who records has nothing to configure. It is cheap enough
for every call, and bounded. A worker's lies in memory that its supervisor shares, so it can be read
when the worker hangs, or was killed in the midst of a word.
"""

import mmap
import struct
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import attrs

_MAGIC = b"novasvc1"
_HEADER = struct.Struct("<8sdQ")  # magic, heartbeat, events so far
_EVENT = struct.Struct("<dQ12s100s")  # seconds since the epoch, its number, kind, text
_COUNT = struct.Struct("<Q")
_BEAT = struct.Struct("<d")
_FIRST = 128
_EVENTS = 511
SIZE = _FIRST + _EVENTS * _EVENT.size
"""Octets of memory that a recorder needs."""


@attrs.frozen
class Event:
    """Something that happened.

    :param time: seconds since the epoch.
    :param kind: one word: "call", "task", "broker", "node", "stall", ...
    :param text: what happened; never an argument or a result, which may be secret.
    """

    time: float
    kind: str
    text: str


class FlightRecorder:
    """A ring of the last events, and the stamp of the last heartbeat.

    :param memory: SIZE octets that can be written.
    :param now: returns seconds since the epoch.
    """

    def __init__(self, memory: mmap.mmap, *, now: Callable[[], float] = time.time) -> None:
        self._memory = memory
        self._now = now
        magic, _, self._count = _HEADER.unpack_from(memory)
        if magic != _MAGIC:
            self._count = 0
            _HEADER.pack_into(memory, 0, _MAGIC, 0.0, 0)

    @classmethod
    def anonymous(cls) -> "FlightRecorder":
        """Make one for this process alone."""
        return cls(mmap.mmap(-1, SIZE))

    @classmethod
    def from_descriptor(cls, descriptor: int) -> "FlightRecorder":
        """Make one on the first SIZE octets of a file, which others can map, too."""
        return cls(mmap.mmap(descriptor, SIZE))

    def note(self, kind: str, text: str) -> None:
        """Record an event; what is too long is cut."""
        number = self._count
        self._count = number + 1
        _EVENT.pack_into(
            self._memory,
            _FIRST + number % _EVENTS * 128,
            self._now(),
            number + 1,
            kind.encode("utf-8", "replace"),
            text.encode("utf-8", "replace"),
        )
        _COUNT.pack_into(self._memory, 16, number + 1)

    def beat(self, stamp: float) -> None:
        """Stamp a heartbeat.

        :param stamp: seconds of CLOCK_MONOTONIC, which all processes of a host share.
        """
        _BEAT.pack_into(self._memory, 8, stamp)

    @property
    def beaten(self) -> float:
        """The stamp of the last heartbeat; 0 before the first."""
        stamp: float = _BEAT.unpack_from(self._memory, 8)[0]
        return stamp

    def events(self) -> list[Event]:
        """Return the last events, the last one last; one that was being written is left out."""
        count: int = _COUNT.unpack_from(self._memory, 16)[0]
        events = []
        for number in range(max(0, count - _EVENTS), count):
            seconds, written, kind, text = _EVENT.unpack_from(self._memory, _FIRST + number % _EVENTS * 128)
            if written == number + 1:
                events.append(Event(seconds, _text(kind), _text(text)))
        return events

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()


def _text(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode("utf-8", "ignore")


_installed = FlightRecorder.anonymous()
note = _installed.note


def install(recorder: FlightRecorder) -> None:
    """Record in this one from now on, in this process."""
    global _installed, note  # noqa: PLW0603 - a process has one
    _installed, note = recorder, recorder.note


def installed() -> FlightRecorder:
    """Return the recorder of this process."""
    return _installed


def format_events(events: Iterable[Event]) -> str:
    """Write events as lines for a log."""
    return "\n".join(
        f"{datetime.fromtimestamp(event.time, UTC).isoformat(timespec='milliseconds')} {event.kind} {event.text}"
        for event in events
    )


def dump_text(recorder: FlightRecorder) -> str:
    """Write all events of a recorder as lines for a log."""
    return format_events(recorder.events())
