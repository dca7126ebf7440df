"""One page of the fleet: hosts by binaries."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
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


def make_view(watch: Watch, query: Query) -> View:
    """Look at the fleet in one way. It takes some milliseconds for thousands of services."""
    hosts, binaries = _by_host(watch.sights)
    columns = tuple(name for name in binaries if not query.binary or name == query.binary)[:COLUMNS]
    matching = [host for host, services in hosts.items() if _matches(query, host, services)]
    _sort(matching, hosts, query)
    pages = max(1, ceil(len(matching) / HOSTS))
    query = attrs.evolve(query, page=min(query.page, pages))
    begin = (query.page - 1) * HOSTS
    rows = tuple(Row(host, tuple(map(hosts[host].get, columns))) for host in matching[begin : begin + HOSTS])
    return View(query, binaries, columns, rows, len(matching))


_Services = Mapping[str, Sight]
"""A host's, by binary."""


def _by_host(sights: Mapping[int, Sight]) -> tuple[dict[str, dict[str, Sight]], tuple[str, ...]]:
    hosts: dict[str, dict[str, Sight]] = {}
    binaries = set()
    for sight in sights.values():
        hosts.setdefault(sight.record.host, {})[sight.record.binary] = sight
        binaries.add(sight.record.binary)
    return hosts, tuple(sorted(binaries))


def _matches(query: Query, host: str, services: _Services) -> bool:
    if not query.filters:
        return True
    looked_at: Iterable[Sight] = services.values()
    if query.binary:
        looked_at = [services[query.binary]] if query.binary in services else []
    text = query.text.casefold()
    here = text in host.casefold()
    return any((here or _mentions(sight, text)) and is_in(sight, query.state) for sight in looked_at)


def _mentions(sight: Sight, text: str) -> bool:
    record = sight.record
    return text in record.binary.casefold() or text in (record.disabled_reason or "").casefold() or text == record.uuid


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


def _sort(names: list[str], hosts: Mapping[str, _Services], query: Query) -> None:
    names.sort(key=lambda host: (_natural(host), host), reverse=query.sort == "-host")
    if query.sort == "trouble":
        names.sort(key=lambda host: min(map(_badness, hosts[host].values())))
    elif query.sort == "silent":
        names.sort(key=lambda host: min(map(_heard, hosts[host].values())))


def _badness(sight: Sight) -> int:
    return _DISABLED if sight.state == UP and sight.record.disabled else _WORST[sight.state]


def _heard(sight: Sight) -> float:
    """Return when a service that is down was heard last; those that are up are alike, and so stay in place."""
    return -sight.record.age if sight.state == DOWN else 0.0
