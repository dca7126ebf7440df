"""What happened to the services of a fleet, the last of it."""

from collections import deque
from collections.abc import Iterable, Iterator

import attrs

from novasvc.api.sight import DOWN, FORCED, UP, Sight

_HISTORY = 500
"""Entries of the timeline that are kept."""
_STORM = 12
"""Changes of one kind in one read, beyond which they are one entry."""
_NAMED = 3
"""Services that such an entry names."""

Event = tuple[str, Sight, str]
"""What happened, to whom, and why: see Entry.kind and Entry.detail."""


@attrs.frozen
class Entry:
    """One line of the timeline.

    :param number: from 1, without gaps.
    :param time: seconds since 1970, of this host.
    :param kind: "up", "down", "forced down", "let up", "disabled", "enabled", "appeared" or "deleted".
    :param text: which service, or some of them if they are many.
    :param uuid: of the service; "" if they are many.
    :param detail: why, or "".
    :param count: how many services.
    """

    number: int
    time: float
    kind: str
    text: str
    uuid: str = ""
    detail: str = ""
    count: int = 1


class Timeline:
    """The last 500 entries; many of a kind at once are one."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=_HISTORY)
        self.newest = 0
        """The number of the newest entry, 0 if nothing has happened."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Return the entries, the newest first."""
        return reversed(self._entries)

    def after(self, number: int) -> Iterator[Entry]:
        """Return the entries that are newer than one, the newest first."""
        return (entry for entry in self if entry.number > number)

    def add(self, time: float, events: Iterable[Event]) -> None:
        """Remember what happened at once.

        :param time: seconds since 1970.
        """
        kinds: dict[str, list[tuple[Sight, str]]] = {}
        for kind, sight, why in events:
            kinds.setdefault(kind, []).append((sight, why))
        for kind, found in kinds.items():
            if len(found) > _STORM:
                named = ", ".join(sight.name for sight, _ in found[:_NAMED])
                self._enter(time, kind, f"{named}, ...", count=len(found))
                continue
            for sight, why in found:
                self._enter(time, kind, sight.name, sight.record.uuid, why)

    def _enter(self, time: float, kind: str, text: str, uuid: str = "", detail: str = "", count: int = 1) -> None:
        self.newest += 1
        self._entries.append(Entry(self.newest, time, kind, text, uuid, detail, count))


def events_of(before: Sight | None, after: Sight) -> Iterator[tuple[str, str]]:
    """Return kinds of entries, each with the reason that goes with it."""
    record = after.record
    if before is None:
        yield "appeared", "" if after.state == UP else after.state
        return
    if before.state != after.state:
        if before.state == FORCED:
            yield "let up", "" if after.state == UP else after.state
        else:
            yield after.state, f"no heartbeat for {record.age:.0f} s" if after.state == DOWN else ""
    if record.disabled and not before.record.disabled:
        yield "disabled", record.disabled_reason or ""
    elif before.record.disabled and not record.disabled:
        yield "enabled", ""
