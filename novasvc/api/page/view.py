"""The table of the fleet's page: a row for each host, a column for each binary."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from math import ceil
from zlib import crc32

import attrs

from novasvc.api.page.query import Query
from novasvc.api.service_status import DOWN, FORCED, UP, ServiceStatus
from novasvc.api.watch import Watch

HOSTS = 100
"""Hosts on a page."""
COLUMNS = 10
"""Binaries on a page. More do not fit on a screen; the filter offers all of them."""
_MAX_CACHED = 100
"""Views that are cached until the next read, for viewers with the same query."""

_WORST = {DOWN: 0, FORCED: 1, UP: 3}
_DISABLED = 2
_NUMBER = re.compile("([0-9]+)")


@attrs.frozen
class Row:
    """A host, with its services in the order of the columns; None where it lacks one."""

    host: str
    cells: tuple[ServiceStatus | None, ...]


@attrs.frozen
class View:
    """The result of a query.

    :param query: the query, with a page number that exists.
    :param binaries: all binaries of the fleet.
    :param columns: the binaries that are shown.
    :param rows: the rows of this page.
    :param found: number of hosts on all pages.
    """

    query: Query
    binaries: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    found: int

    @property
    def pages(self) -> int:
        """The number of pages, at least 1."""
        return max(1, ceil(self.found / HOSTS))

    @property
    def first(self) -> int:
        """The number of the first host on this page, from 1; 0 if there is none."""
        return (self.query.page - 1) * HOSTS + 1 if self.found else 0

    @property
    def last(self) -> int:
        """The number of the last host on this page."""
        return self.first + len(self.rows) - 1 if self.found else 0

    @property
    def services(self) -> Iterable[ServiceStatus]:
        """The services that are shown."""
        return (service for row in self.rows for service in row.cells if service is not None)

    @property
    def layout(self) -> str:
        """A digest of the layout: it stays the same while only the contents of cells change."""
        shape = [
            self.columns,
            self.found,
            *((row.host, *(cell and cell.record.id for cell in row.cells)) for row in self.rows),
        ]
        return f"{crc32(repr(shape).encode('utf-8', 'surrogateescape')):08x}"


class Views:
    """Views of the current state. All views of one read share an index.

    :param watch: the state of the fleet.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._index = _Index({})
        self._views: dict[Query, View] = {}
        self._version = 0

    def view(self, query: Query) -> View:
        """Return the view of a query.

        With 5,000 services the first one after a read takes 7 ms, and another one less than half of that.
        """
        if self._version != self._watch.version:
            self._version = self._watch.version
            self._index = _Index(self._watch.services)
            self._views.clear()
        view = self._views.get(query)
        if view is None:
            view = _make_view(self._index, query)
            if len(self._views) < _MAX_CACHED:
                self._views[query] = view
        return view


_Services = Mapping[str, ServiceStatus]
"""The services of a host, by binary."""


class _Index:
    """Services by host and binary.

    :ivar hosts: in natural order: "node9" before "node10".
    :ivar binaries: sorted.
    """

    def __init__(self, services: Mapping[int, ServiceStatus]) -> None:
        hosts: dict[str, dict[str, ServiceStatus]] = {}
        for service in services.values():
            hosts.setdefault(service.record.host, {})[service.record.binary] = service
        self.hosts: Mapping[str, _Services] = {
            host: hosts[host] for host in sorted(hosts, key=lambda host: (_natural(host), host))
        }
        self.binaries = tuple(sorted({binary for services in hosts.values() for binary in services}))
        self._orders: dict[str, list[str]] = {}

    @cached_property
    def _texts(self) -> dict[str, str]:
        """The searchable text of each host; a superset, as a first filter."""
        return {
            host: "\n".join([host, *(word for service in services.values() for word in _words(service))]).casefold()
            for host, services in self.hosts.items()
        }

    def find(self, query: Query) -> list[str]:
        """Return the matching hosts, sorted."""
        hosts: Iterable[str] = self._sorted(query.sort)
        text = query.text.casefold()
        # The joined text of a host rules out most hosts with one search. It may match where no single service does,
        # such as with a reason of one service and another state, so _matches decides.
        if text:
            texts = self._texts
            hosts = [host for host in hosts if text in texts[host]]
        if not query.filters:
            return [*hosts]
        return [host for host in hosts if _matches(query, text, host, self.hosts[host])]

    def _sorted(self, sort: str) -> list[str]:
        """Return all hosts, sorted; ties stay in natural order."""
        names = self._orders.get(sort)
        if names is None:
            names = [*self.hosts]
            if sort == "-host":
                names.reverse()
            elif sort == "trouble":
                names.sort(key=lambda host: min(map(_severity, self.hosts[host].values())))
            elif sort == "silent":
                names.sort(key=lambda host: min(map(_last_heartbeat, self.hosts[host].values())))
            self._orders[sort] = names
        return names


def _make_view(index: _Index, query: Query) -> View:
    columns = tuple(name for name in index.binaries if not query.binary or name == query.binary)[:COLUMNS]
    found = index.find(query)
    pages = max(1, ceil(len(found) / HOSTS))
    query = attrs.evolve(query, page=min(query.page, pages))
    begin = (query.page - 1) * HOSTS
    rows = tuple(Row(host, tuple(map(index.hosts[host].get, columns))) for host in found[begin : begin + HOSTS])
    return View(query, index.binaries, columns, rows, len(found))


def _matches(query: Query, text: str, host: str, services: _Services) -> bool:
    here = text in host.casefold()
    if here and not query.state:
        return not query.binary or query.binary in services
    candidates: Iterable[ServiceStatus] = services.values()
    if query.binary:
        candidates = [services[query.binary]] if query.binary in services else []
    return any((here or _mentions(service, text)) and is_in(service, query.state) for service in candidates)


def _words(service: ServiceStatus) -> tuple[str, str, str]:
    record = service.record
    return record.binary, record.disabled_reason or "", record.uuid


def _mentions(service: ServiceStatus, text: str) -> bool:
    binary, reason, uuid = _words(service)
    return text in binary.casefold() or text in reason.casefold() or text == uuid


def is_in(service: ServiceStatus, state: str) -> bool:
    """Return whether a service matches a state of STATES; any for ""."""
    match state:
        case "disabled":
            return service.record.disabled
        case "trouble":
            return service.state != UP
        case "forced":
            return service.state == FORCED
    return not state or service.state == state


@lru_cache(maxsize=20_000)
def _natural(host: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key for natural order."""
    parts = _NUMBER.split(host.casefold())
    return tuple((int(part[:18]), "") if place % 2 else (-1, part) for place, part in enumerate(parts))


def _severity(service: ServiceStatus) -> int:
    return _DISABLED if service.state == UP and service.record.disabled else _WORST[service.state]


def _last_heartbeat(service: ServiceStatus) -> float:
    """Return a sort key: the longest without a heartbeat first; all services that are up are equal."""
    return -service.record.age if service.state == DOWN else 0.0
