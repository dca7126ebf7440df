"""One page of the fleet: hosts by binaries."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from math import ceil
from zlib import crc32

import attrs

from novasvc.api.page.query import Query
from novasvc.api.sight import DOWN, FORCED, UP, Sight
from novasvc.api.watch import Watch

HOSTS = 100
"""Hosts on a page."""
COLUMNS = 10
"""Binaries on a page; more do not fit a screen, and the filter has the others."""
_KEPT = 100
"""Views that are kept until the fleet is read again; many look at the same."""

_WORST = {DOWN: 0, FORCED: 1, UP: 3}
_DISABLED = 2
_NUMBER = re.compile("([0-9]+)")


@attrs.frozen
class Row:
    """A host, with its services in the order of the columns; None where it has none."""

    host: str
    cells: tuple[Sight | None, ...]


@attrs.frozen
class View:
    """What a query finds.

    :param binaries: all that there are.
    :param columns: those that are shown.
    :param rows: of this page.
    :param found: hosts on all pages.
    :param query: with the page that it is, where the one asked for does not exist.
    """

    query: Query
    binaries: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    found: int

    @property
    def pages(self) -> int:
        """How many pages there are, at least 1."""
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
    def sights(self) -> Iterable[Sight]:
        """The services that are shown."""
        return (sight for row in self.rows for sight in row.cells if sight is not None)

    @property
    def layout(self) -> str:
        """What is the same as long as only cells change."""
        shape = [
            self.columns,
            self.found,
            *((row.host, *(cell and cell.record.id for cell in row.cells)) for row in self.rows),
        ]
        return f"{crc32(repr(shape).encode('utf-8', 'surrogateescape')):08x}"


class Views:
    """Ways to look at the fleet as it is now. What they have in common is made once for each read of it.

    :param watch: reads it.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._index = _Index({})
        self._views: dict[Query, View] = {}
        self._version = 0

    def look(self, query: Query) -> View:
        """Look in one way. Of 5,000 services the first look after a read takes 7 ms, another less than half of it."""
        if self._version != self._watch.version:
            self._version = self._watch.version
            self._index = _Index(self._watch.sights)
            self._views.clear()
        view = self._views.get(query)
        if view is None:
            view = _make_view(self._index, query)
            if len(self._views) < _KEPT:
                self._views[query] = view
        return view


_Services = Mapping[str, Sight]
"""A host's, by binary."""


class _Index:
    """Services by host and binary.

    :ivar hosts: in the order in which people count.
    :ivar binaries: all that there are, sorted.
    """

    def __init__(self, sights: Mapping[int, Sight]) -> None:
        hosts: dict[str, dict[str, Sight]] = {}
        for sight in sights.values():
            hosts.setdefault(sight.record.host, {})[sight.record.binary] = sight
        self.hosts: Mapping[str, _Services] = {
            host: hosts[host] for host in sorted(hosts, key=lambda host: (_natural(host), host))
        }
        self.binaries = tuple(sorted({binary for services in hosts.values() for binary in services}))
        self._orders: dict[str, list[str]] = {}

    @cached_property
    def _texts(self) -> dict[str, str]:
        """By host: all that is looked for in it, and maybe more."""
        return {
            host: "\n".join([host, *(word for sight in services.values() for word in _words(sight))]).casefold()
            for host, services in self.hosts.items()
        }

    def find(self, query: Query) -> list[str]:
        """Return the hosts that match, in the order that is asked for."""
        hosts: Iterable[str] = self._sorted(query.sort)
        text = query.text.casefold()
        if text:
            texts = self._texts
            hosts = [host for host in hosts if text in texts[host]]
        if not query.filters:
            return [*hosts]
        return [host for host in hosts if _matches(query, text, host, self.hosts[host])]

    def _sorted(self, sort: str) -> list[str]:
        """Return all hosts in an order; those that are alike in it stay as people count."""
        names = self._orders.get(sort)
        if names is None:
            names = [*self.hosts]
            if sort == "-host":
                names.reverse()
            elif sort == "trouble":
                names.sort(key=lambda host: min(map(_badness, self.hosts[host].values())))
            elif sort == "silent":
                names.sort(key=lambda host: min(map(_heard, self.hosts[host].values())))
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
    looked_at: Iterable[Sight] = services.values()
    if query.binary:
        looked_at = [services[query.binary]] if query.binary in services else []
    return any((here or _mentions(sight, text)) and is_in(sight, query.state) for sight in looked_at)


def _words(sight: Sight) -> tuple[str, str, str]:
    record = sight.record
    return record.binary, record.disabled_reason or "", record.uuid


def _mentions(sight: Sight, text: str) -> bool:
    binary, reason, uuid = _words(sight)
    return text in binary.casefold() or text in reason.casefold() or text == uuid


def is_in(sight: Sight, state: str) -> bool:
    """Tell whether a service is in a state that can be looked for."""
    match state:
        case "disabled":
            return sight.record.disabled
        case "trouble":
            return sight.state != UP
        case "forced":
            return sight.state == FORCED
    return not state or sight.state == state


@lru_cache(maxsize=20_000)
def _natural(host: str) -> tuple[tuple[int, str], ...]:
    """Return what sorts "node9" before "node10"."""
    parts = _NUMBER.split(host.casefold())
    return tuple((int(part[:18]), "") if place % 2 else (-1, part) for place, part in enumerate(parts))


def _badness(sight: Sight) -> int:
    return _DISABLED if sight.state == UP and sight.record.disabled else _WORST[sight.state]


def _heard(sight: Sight) -> float:
    """Return when a service that is down was heard last; those that are up are alike, and so stay in place."""
    return -sight.record.age if sight.state == DOWN else 0.0
