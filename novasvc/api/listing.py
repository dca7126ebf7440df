"""The list of services as a request asks for it: parameters in, one page of JSON out."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

import attrs
from twisted.internet.task import deferLater

from novasvc.api.backend import Backend
from novasvc.api.changes import see_keys
from novasvc.api.errors import APIError
from novasvc.api.microversion import Microversion
from novasvc.api.reads import SharedReads
from novasvc.errors import ServiceNotFoundError
from novasvc.registry.liveness import is_up
from novasvc.registry.query import ServiceQuery
from novasvc.registry.record import ServiceRecord

FORCED_DOWN, UUIDS, STRICT_QUERY = Microversion(2, 11), Microversion(2, 53), Microversion(2, 75)
"""Versions since which items have forced_down, their id is the uuid, and unknown parameters are refused."""
LONGEST_PAGE = 1000
"""Services in an answer to who gives a limit; Nova's osapi_max_limit."""
_SLICE = 500
"""Services that are made JSON at a time: others are answered in between."""
_NUMBER = re.compile("[0-9]*")
_SHOWN = 100
_MOST = 100
"""Parameters of a request that are read."""


@attrs.frozen
class Wanted:
    """What a request wants to see. Equal ones get the same answer.

    :param uuids: the id is the uuid.
    :param forced_down: items have it.
    :param url: of the list, without a query.
    :param limit: of services; None is all.
    :param marker: the id of the service before the first one.
    """

    uuids: bool
    forced_down: bool
    url: str
    host: str | None = None
    binary: str | None = None
    limit: int | None = None
    marker: str | None = None


@lru_cache(maxsize=256)
def read_wanted(query: bytes, version: Microversion, url: str) -> Wanted:
    """Read what a request's parameters ask for; one that is empty asks for nothing, and the last of several counts.

    :param query: of the request, as it was sent.
    :param url: of the list, without a query.
    :raises APIError: 400, they cannot be taken.
    """
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST)
    except UnicodeDecodeError:
        raise APIError(400, "Query string is not UTF-8 encoded") from None
    except ValueError:
        raise APIError(400, f"The query string has more than {_MOST} parameters") from None
    names = [name for name, _ in pairs]
    given = {name: value for name, value in dict(pairs).items() if value}
    if version >= STRICT_QUERY:
        see_keys(names, _KNOWN)
    limit = given.get("limit")
    if limit is not None and _NUMBER.fullmatch(limit) is None:
        value = limit[:_SHOWN]
        problem = f"{value!r} does not match '^[0-9]*$'"
        raise APIError(400, f"Invalid input for field/attribute limit. Value: {value}. {problem}")
    return Wanted(
        uuids=version >= UUIDS,
        forced_down=version >= FORCED_DOWN,
        url=url,
        host=given.get("host"),
        binary=given.get("binary"),
        limit=None if limit is None else _page_size(limit),
        marker=given.get("marker"),
    )


_KNOWN = ("host", "binary", "limit", "marker")


def _page_size(limit: str) -> int:
    """Return how long a page is; 0 is as long as it can be."""
    digits = limit.lstrip("0")
    return LONGEST_PAGE if not digits or len(digits) > len(str(LONGEST_PAGE)) else min(int(digits), LONGEST_PAGE)


def make_item(record: ServiceRecord, wanted: Wanted, service_down_time: float) -> dict[str, Any]:
    """Return a service as the API shows it.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    Source: Nova's API reference, "Compute services".
    """
    updated = record.updated_at
    item = {
        "id": record.uuid if wanted.uuids else record.id,
        "binary": record.binary,
        "host": record.host,
        "zone": "nova" if record.topic == "compute" else "internal",
        "status": "disabled" if record.disabled else "enabled",
        "state": "up" if is_up(record, service_down_time) else "down",
        "updated_at": None if updated is None else updated.isoformat(timespec="microseconds"),
        "disabled_reason": record.disabled_reason,
    }
    if wanted.forced_down:
        item["forced_down"] = record.forced_down
    return item


class Listing:
    """Reads pages, and makes JSON of them: once for all who want the same at the same time.

    :param backend: has the registry.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._reads: SharedReads[Wanted, bytes] = SharedReads(self._read, backend.reactor)

    async def answer(self, wanted: Wanted) -> bytes:
        """Return the answer's body: {"services": [item], "services_links": [link]}, the links if there is more.

        :raises APIError: 400, there never was a service with the marker's id; 503, no registry.
        """
        return await self._reads.get(wanted)

    async def _read(self, wanted: Wanted) -> bytes:
        if "\0" in f"{wanted.host}{wanted.binary}{wanted.marker}":
            return await self._render(wanted, [], more=False)  # no service has it, and not every database takes it
        query = ServiceQuery(
            host=wanted.host,
            binary=wanted.binary,
            with_topic=True,  # as in Nova, which leaves its API servers out
            sort="id",
            after=wanted.marker,
            limit=wanted.limit,
        )
        try:
            page = await self._backend.registry.page(query)
        except ServiceNotFoundError:
            raise APIError(400, f"marker [{(wanted.marker or '')[:_SHOWN]}] not found") from None
        return await self._render(wanted, page.rows, more=page.more)

    async def _render(self, wanted: Wanted, rows: Sequence[ServiceRecord], *, more: bool) -> bytes:
        down_time = self._backend.settings.service_down_time
        parts = []
        for start in range(0, len(rows), _SLICE):
            if start:
                await deferLater(self._backend.reactor, 0, lambda: None)
            items = [make_item(row, wanted, down_time) for row in rows[start : start + _SLICE]]
            parts.append(json.dumps(items)[1:-1])
        body = f'{{"services": [{", ".join(parts)}]'
        if more and rows:
            links = [{"rel": "next", "href": _next_page(wanted, rows[-1])}]
            body += f', "services_links": {json.dumps(links)}'
        return f"{body}}}".encode()


def _next_page(wanted: Wanted, last: ServiceRecord) -> str:
    given = {
        "host": wanted.host,
        "binary": wanted.binary,
        "limit": wanted.limit,
        "marker": last.uuid if wanted.uuids else last.id,
    }
    return f"{wanted.url}?{urlencode({name: value for name, value in given.items() if value is not None})}"
