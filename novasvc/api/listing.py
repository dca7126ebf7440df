"""The list of services: query parameters in, one page of JSON out."""

import json
import re
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

import attrs

from novasvc.api.backend import Backend
from novasvc.api.changes import check_keys
from novasvc.api.errors import APIError
from novasvc.api.microversion import Microversion
from novasvc.api.openapi import BOOLEAN, NULLABLE_STRING, STRING, Component, array_of, content, object_schema, parameter
from novasvc.reactor.turns import pause
from novasvc.registry.errors import ServiceNotFoundError
from novasvc.registry.liveness import is_up
from novasvc.registry.query import ServiceQuery
from novasvc.registry.record import ServiceRecord

FORCED_DOWN, UUIDS, STRICT_QUERY = Microversion(2, 11), Microversion(2, 53), Microversion(2, 75)
"""Microversions since which items have forced_down, their id is the uuid, and unknown parameters are rejected."""
MAX_PAGE = 1000
"""Services in a response to a request with a limit; Nova's osapi_max_limit."""
_SLICE = 500
"""Services that are serialized in one turn of the reactor; other requests are answered in between."""
_NUMBER = re.compile("[0-9]*")
_MAX_SHOWN = 100
_MAX_PARAMETERS = 100
"""Query parameters of a request."""


SERVICE = Component(
    "Service",
    object_schema(
        {
            "id": {"type": ["integer", "string"], "description": "The uuid since 2.53; before, a number."},
            "binary": STRING,
            "host": STRING,
            "zone": STRING,
            "status": {"enum": ["enabled", "disabled"]},
            "state": {"enum": ["up", "down"]},
            "updated_at": {**NULLABLE_STRING, "description": "UTC, with six decimals and no offset."},
            "disabled_reason": NULLABLE_STRING,
            "forced_down": {**BOOLEAN, "description": "Since 2.11."},
        },
        "forced_down",
    ),
)
LIST_PARAMETERS = (
    parameter("host", "query", "Only services of this host."),
    parameter("binary", "query", "Only services with this binary."),
    parameter("limit", "query", f"Maximum number of services, at most {MAX_PAGE}.", {**STRING, "pattern": "^[0-9]*$"}),
    parameter("marker", "query", "The id of the last service of the page before."),
)
LIST_RESPONSE = content(
    "The services, and a link to the next page if there is one.",
    json=object_schema(
        {"services": array_of(SERVICE), "services_links": array_of({"type": "object"})}, "services_links"
    ),
)


@attrs.frozen
class ListQuery:
    """A parsed request for the list. Equal queries share a response, see :mod:`novasvc.reactor.coalesce`.

    :param uuids: whether the id of an item is the uuid.
    :param forced_down: whether items have this field.
    :param limit: maximum number of services; None is all.
    :param marker: the id of the last service of the previous page.
    :param url: URL of the list without its query, for the link to the next page; "" if there is no limit.
    """

    uuids: bool
    forced_down: bool
    host: str | None = None
    binary: str | None = None
    limit: int | None = None
    marker: str | None = None
    url: str = ""


@lru_cache(maxsize=256)
def read_list_query(query: bytes, version: Microversion) -> ListQuery:
    """Parse query parameters. Empty ones are ignored, and the last of several with the same name counts.

    :param query: the raw query string.
    :return: a ListQuery without a url.
    :raises APIError: 400, they are invalid.
    """
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise APIError(400, "Query string is not UTF-8 encoded") from None
    except ValueError:
        raise APIError(400, f"The query string has more than {_MAX_PARAMETERS} parameters") from None
    names = [name for name, _ in pairs]
    given = {name: value for name, value in dict(pairs).items() if value}
    if version >= STRICT_QUERY:
        check_keys(names, _KNOWN)
    limit = given.get("limit")
    if limit is not None and _NUMBER.fullmatch(limit) is None:
        value = limit[:_MAX_SHOWN]
        problem = f"{value!r} does not match '^[0-9]*$'"
        raise APIError(400, f"Invalid input for field/attribute limit. Value: {value}. {problem}")
    return ListQuery(
        uuids=version >= UUIDS,
        forced_down=version >= FORCED_DOWN,
        host=given.get("host"),
        binary=given.get("binary"),
        limit=None if limit is None else _page_size(limit),
        marker=given.get("marker"),
    )


_KNOWN = ("host", "binary", "limit", "marker")


def _page_size(limit: str) -> int:
    """Return the size of a page; 0 asks for the maximum, as in Nova."""
    # The length first: int() takes quadratic time, and raises ValueError for more than 4,300 digits.
    digits = limit.lstrip("0")
    return MAX_PAGE if not digits or len(digits) > len(str(MAX_PAGE)) else min(int(digits), MAX_PAGE)


def make_item(record: ServiceRecord, query: ListQuery, service_down_time: float) -> dict[str, Any]:
    """Return the representation of a service.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    Source: Nova's API reference, "Compute services (os-services)".
    """
    updated = record.updated_at
    item = {
        "id": record.uuid if query.uuids else record.id,
        "binary": record.binary,
        "host": record.host,
        "zone": "nova" if record.topic == "compute" else "internal",
        "status": "disabled" if record.disabled else "enabled",
        "state": "up" if is_up(record, service_down_time) else "down",
        "updated_at": None if updated is None else updated.isoformat(timespec="microseconds"),
        "disabled_reason": record.disabled_reason,
    }
    if query.forced_down:
        item["forced_down"] = record.forced_down
    return item


@attrs.frozen
class Listing:
    """Reads pages of the list and serializes them.

    :param backend: the connection to the registry.
    """

    _backend: Backend

    async def read(self, query: ListQuery) -> bytes:
        """Return the response body: {"services": [item], "services_links": [link]}, the links only if there is more.

        :raises APIError: 400, there never was a service with the marker's uuid; 503, the registry cannot be reached.
        """
        if "\0" in f"{query.host}{query.binary}{query.marker}":
            return b'{"services": []}'  # no service has it, and PostgreSQL does not accept it in a parameter
        backend = self._backend
        wanted = ServiceQuery(
            host=query.host,
            binary=query.binary,
            with_topic=True,  # as in Nova, which leaves its API servers out
            sort="id",
            after=query.marker,
            limit=query.limit,
        )
        try:
            page = await backend.registry.page(wanted)
        except ServiceNotFoundError:
            raise APIError(400, f"marker [{(query.marker or '')[:_MAX_SHOWN]}] not found") from None
        rows = page.rows
        down_time = backend.runtime.settings.service_down_time
        parts = []
        for start in range(0, len(rows), _SLICE):
            if start:
                await pause(backend.runtime.reactor)
            items = [make_item(row, query, down_time) for row in rows[start : start + _SLICE]]
            parts.append(json.dumps(items)[1:-1])
        body = f'{{"services": [{", ".join(parts)}]'
        if page.more and rows:
            links = [{"rel": "next", "href": _next_page(query, rows[-1])}]
            body += f', "services_links": {json.dumps(links)}'
        return f"{body}}}".encode()


def _next_page(query: ListQuery, last: ServiceRecord) -> str:
    given = {
        "host": query.host,
        "binary": query.binary,
        "limit": query.limit,
        "marker": last.uuid if query.uuids else last.id,
    }
    return f"{query.url}?{urlencode({name: value for name, value in given.items() if value is not None})}"
