"""The services that match a query of the fleet's page, sorted and paged."""

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import ceil
from typing import Any
from zlib import crc32

import attrs

from novasvc.api.page.query import Query
from novasvc.api.service_status import DOWN, LATE, SEVERITY, ServiceStatus
from novasvc.api.watch import Watch

SERVICES = 100
"""Services on a page."""
_MAX_CACHED = 100
"""Views that are cached until the next read, for viewers with the same query."""

_NUMBER = re.compile("([0-9]+)")


@attrs.frozen
class View:
    """The result of a query.

    :param query: the query, with a page number that exists.
    :param binaries: all binaries of the fleet.
    :param zones: all zones of the fleet.
    :param matching: the services that match, by host and binary.
    :param services: the services of this page, in the order of the query.
    :param shape: a digest of which services match; it stays the same while only their states change.

    The digests are the same in all API processes: the script compares those of its parts, which one process has made,
    with those of updates from another.
    """

    query: Query
    binaries: tuple[str, ...]
    zones: tuple[str, ...]
    matching: Sequence[ServiceStatus]
    services: tuple[ServiceStatus, ...]
    shape: str

    @property
    def found(self) -> int:
        """The number of services on all pages."""
        return len(self.matching)

    @property
    def pages(self) -> int:
        """The number of pages, at least 1."""
        return max(1, ceil(self.found / SERVICES))

    @property
    def first(self) -> int:
        """The number of the first service on this page, from 1; 0 if there is none."""
        return (self.query.page - 1) * SERVICES + 1 if self.found else 0

    @property
    def last(self) -> int:
        """The number of the last service on this page."""
        return self.first + len(self.services) - 1 if self.found else 0

    @property
    def layout(self) -> str:
        """A digest of all that this page shows of its services, without their heartbeats."""
        shown = [self.found, bool(self.zones), *map(_shown, self.services)]
        return f"{crc32(repr(shown).encode()):08x}"


class Views:
    """Views of the current state. All views of one read share an index.

    :param watch: the state of the fleet.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._services: list[ServiceStatus] = []
        self._order: list[int] = []
        self._members = 0
        self._members_digest = 0
        self._names: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        self._views: dict[Query, View] = {}
        self._version = 0

    def view(self, query: Query) -> View:
        """Return the view of a query."""
        if self._version != self._watch.version:
            self._read()
        view = self._views.get(query)
        if view is None:
            view = self._make(query)
            if len(self._views) < _MAX_CACHED:
                self._views[query] = view
        return view

    def _read(self) -> None:
        services = self._watch.services
        self._version = self._watch.version
        self._views.clear()
        if self._members != self._watch.members:
            self._members = self._watch.members
            self._order = [service.record.id for service in sorted(services.values(), key=_by_host)]
            zones = [(number, services[number].zone) for number in self._order]
            self._members_digest = crc32(repr(zones).encode())
            self._names = (
                tuple(sorted({service.record.binary for service in services.values()})),
                tuple(sorted({service.zone for service in services.values()} - {""})),
            )
        self._services = [services[number] for number in self._order]

    def _make(self, query: Query) -> View:
        matching = [*filter(_matcher(query), self._services)] if query.filters else self._services
        pages = max(1, ceil(len(matching) / SERVICES))
        query = attrs.evolve(query, page=min(query.page, pages))
        begin = (query.page - 1) * SERVICES
        page = tuple(_sorted(matching, query.sort)[begin : begin + SERVICES])
        numbers = array("q", [self._members_digest, *(service.record.id for service in matching)])
        shape = f"{crc32(numbers.tobytes()):08x}"
        return View(query, *self._names, matching, page, shape)


def _shown(service: ServiceStatus) -> tuple[Any, ...]:
    """Return what the list shows of a service, without its heartbeat."""
    record = service.record
    return (
        record.id,
        service.zone,
        service.tags,
        service.look,
        service.reason,
        record.disabled,
        record.disabled_reason,
        record.last_seen_up is None,
    )


def _sorted(services: list[ServiceStatus], sort: str) -> Sequence[ServiceStatus]:
    """Return services in the order of a query; ties stay in the order of hosts."""
    if sort == "-host":
        return services[::-1]
    if sort == "trouble":
        return sorted(services, key=_severity)
    return sorted(services, key=_last_heartbeat) if sort == "silent" else services


def _matcher(query: Query) -> Callable[[ServiceStatus], bool]:
    text = query.text.casefold()

    def matches(service: ServiceStatus) -> bool:
        record = service.record
        return (
            (not query.binary or record.binary == query.binary)
            and (not query.zone or service.zone == query.zone)
            and is_in(service, query.state)
            and (not text or text in _searched(service) or text == record.uuid)
        )

    return matches


def _searched(service: ServiceStatus) -> str:
    """Return the text of a service that can be searched."""
    record = service.record
    words: Iterable[str] = (
        record.name, record.host, record.disabled_reason or "", service.reason, service.zone, *service.tags
    )  # fmt: skip
    return "\n".join(words).casefold()


def is_in(service: ServiceStatus, state: str) -> bool:
    """Return whether a service matches a state of STATES; any for ""."""
    match state:
        case "disabled":
            return service.record.disabled
        case "trouble":
            return service.is_trouble
        case "forced":
            return service.record.forced_down
        case "late":
            return service.state == LATE
        case "up":
            return not service.is_trouble
    return not state or service.state == state


@lru_cache(maxsize=20_000)
def _natural(host: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key for natural order: "node9" before "node10"."""
    parts = _NUMBER.split(host.casefold())
    return tuple((int(part[:18]), "") if place % 2 else (-1, part) for place, part in enumerate(parts))


def _by_host(service: ServiceStatus) -> tuple[tuple[tuple[int, str], ...], str, str]:
    return _natural(service.record.host), service.record.host, service.record.binary


def _severity(service: ServiceStatus) -> int:
    return SEVERITY[service.look]


def _last_heartbeat(service: ServiceStatus) -> float:
    """Return a sort key: the longest without a heartbeat first; all services that are not down are equal."""
    return -service.record.age if service.state == DOWN else 0.0
