"""The timeline: recent changes of the services of a fleet."""

from collections import deque
from collections.abc import Iterable, Iterator

import attrs

from novasvc.api.service_status import DOWN, FORCED, STARTING, UP, ServiceStatus
from novasvc.listing import list_some

_MAX_ENTRIES = 500
_MAX_SINGLE = 3
"""Events of one kind in one read that get an entry each; more are summarized in one entry."""
_NAMED = 12
"""Services that a summary names."""

Event = tuple[str, ServiceStatus, str]
"""A kind, the service, and the reason; see Entry.kind and Entry.detail."""


@attrs.frozen
class Entry:
    """One line of the timeline.

    :param number: consecutive, from 1.
    :param time: seconds since 1970, by this host's clock.
    :param kind: a state of :class:`ServiceStatus`, "let up", "restarted", "disabled", "enabled",
        "appeared" or "deleted".
    :param text: name of the service; in a summary, some of the names.
    :param uuid: uuid of the service; "" for a summary.
    :param detail: the reason, or ""; in a summary, the one that all have.
    :param count: number of services.
    """

    number: int
    time: float
    kind: str
    text: str
    uuid: str = ""
    detail: str = ""
    count: int = 1


class Timeline:
    """The last 500 entries. Many events of one kind in one read are summarized in one entry."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=_MAX_ENTRIES)
        self.newest = 0
        """The number of the newest entry; 0 if there is none."""

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the entries, newest first."""
        return reversed(self._entries)

    def after(self, number: int) -> Iterator[Entry]:
        """Return the entries newer than this number, newest first."""
        return (entry for entry in self if entry.number > number)

    def add(self, time: float, events: Iterable[Event]) -> None:
        """Add the events of one read.

        :param time: seconds since 1970.
        """
        kinds: dict[str, list[tuple[ServiceStatus, str]]] = {}
        for kind, service, why in events:
            kinds.setdefault(kind, []).append((service, why))
        for kind, found in kinds.items():
            if len(found) > _MAX_SINGLE:
                reasons = {why for _, why in found}
                detail = reasons.pop() if len(reasons) == 1 else ""
                named = list_some([service.name for service, _ in found], _NAMED)
                self._enter(time, kind, named, detail=detail, count=len(found))
                continue
            for service, why in found:
                self._enter(time, kind, service.name, service.record.uuid, why)

    def _enter(self, time: float, kind: str, text: str, uuid: str = "", detail: str = "", count: int = 1) -> None:
        self.newest += 1
        self._entries.append(Entry(self.newest, time, kind, text, uuid, detail, count))


def events_of(before: ServiceStatus | None, after: ServiceStatus) -> Iterator[tuple[str, str]]:
    """Return the events between two states of a service: pairs of kind and reason."""
    record = after.record
    if before is None:
        yield "appeared", "" if after.state in {UP, STARTING} else after.state
        return
    if before.state != after.state:
        if before.state == FORCED:
            yield "let up", "" if after.state == UP else f"now {after.state}"
        else:
            yield after.state, f"no heartbeat for {record.age:.0f} s" if after.state == DOWN else _reason(after)
    elif after.state == UP and _number(before) < _number(after):
        # It was stopped and started between two reads.
        yield "restarted", f"incarnation {_number(after)}"
    if record.disabled and not before.record.disabled:
        yield "disabled", record.disabled_reason or ""
    elif before.record.disabled and not record.disabled:
        yield "enabled", ""


def _number(service: ServiceStatus) -> int:
    """Return the number of the service's start; 0 if it has none."""
    return service.record.incarnation_number or 0


def _reason(service: ServiceStatus) -> str:
    return "" if service.state == FORCED else service.reason
