"""Queries for rows of the ``services`` table, and their results."""

from typing import Literal, get_args

import attrs

from novasvc.registry.record import ServiceRecord

Sort = Literal["name", "host", "seen", "version", "id"]

GREATEST_ID = 2**31 - 1
"""The largest id that the column holds in every database."""
_DIGITS = len(str(GREATEST_ID))


def is_id(service: str) -> bool:
    """Return whether a service's name is an id in decimal; otherwise it can only be a uuid."""
    return service.isascii() and service.isdecimal() and len(service) <= _DIGITS and int(service) <= GREATEST_ID


@attrs.frozen(kw_only=True)
class ServiceQuery:
    """Filters, sort order and page of a query for live rows. A filter of None matches every row.

    :param host: exactly this host.
    :param binary: exactly this binary.
    :param topic: exactly this topic.
    :param with_topic: only services that have a topic.
    :param disabled: only disabled services, or only enabled ones.
    :param up: only services that are up, or only those that are down; see :func:`novasvc.registry.liveness.is_up`.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    :param zone: only services that were started in this zone.
    :param tag: only services that were started with this tag.
    :param text: a substring of host, binary, topic or disabled_reason, ignoring the case of ASCII letters.
    :param sort: "name": by binary, then host; "host": by host, then binary; "seen": by last heartbeat, oldest
        first; "version": by service version, the lowest first; "id": in the order of registration. Ties are broken
        by id.
    :param descending: reverse the order.
    :param after: the marker: only rows after the row with this id in decimal, or this uuid, which may have been
        deleted since. In the order of ids, an id needs no row: it may have been purged since.
    :param limit: the maximum number of rows, >= 0.
    :raises ValueError: unknown sort, or a negative limit.
    """

    host: str | None = None
    binary: str | None = None
    topic: str | None = None
    with_topic: bool = False
    disabled: bool | None = None
    up: bool | None = None
    service_down_time: float = 60.0
    zone: str | None = None
    tag: str | None = None
    text: str | None = None
    sort: Sort = attrs.field(default="name", validator=attrs.validators.in_(get_args(Sort)))
    descending: bool = False
    after: str | None = None
    limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))


@attrs.frozen
class ServicePage:
    """One page of a query's rows.

    :param rows: the rows in the query's order, at most its limit.
    :param more: whether rows follow this page.
    """

    rows: list[ServiceRecord]
    more: bool


@attrs.frozen
class ServiceTotals:
    """The numbers of rows that match a query, ignoring its limit. A disabled service also counts as up or down.

    :param services: all rows: up, down and forced down.
    :param hosts: distinct hosts.
    :param down: down, but not forced down.
    """

    services: int = 0
    hosts: int = 0
    up: int = 0
    down: int = 0
    forced_down: int = 0
    disabled: int = 0
