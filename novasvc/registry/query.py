"""Which rows of the ``services`` table somebody wants to see, and what they get."""

from typing import Literal, get_args

import attrs

from novasvc.registry.record import ServiceRecord

Sort = Literal["name", "host", "seen", "id"]


@attrs.frozen(kw_only=True)
class ServiceQuery:
    """A part of the live rows, in an order. None leaves nothing out.

    :param host: exactly this host.
    :param binary: exactly this binary.
    :param topic: exactly this topic.
    :param with_topic: leave out services that serve no topic.
    :param disabled: only those that are, or that are not, disabled.
    :param up: only those that are up, or that are down: see :func:`novasvc.registry.liveness.is_up`.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    :param text: what host, binary, topic or the reason of a disabling have in them; the case of ASCII letters is
        nothing.
    :param sort: "name": by binary, then host; "host": by host, then binary; "seen": those that are silent for longest
        first; "id": in the order in which they were registered. Where all else is equal, by id.
    :param descending: the other way round.
    :param after: only what comes after this row, by its id in decimal or its uuid; it may have been deleted since.
    :param limit: rows at the most, >= 0.
    :raises ValueError: no such sort, or a limit below 0.
    """

    host: str | None = None
    binary: str | None = None
    topic: str | None = None
    with_topic: bool = False
    disabled: bool | None = None
    up: bool | None = None
    service_down_time: float = 60.0
    text: str | None = None
    sort: Sort = attrs.field(default="name", validator=attrs.validators.in_(get_args(Sort)))
    descending: bool = False
    after: str | None = None
    limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))


@attrs.frozen
class ServicePage:
    """The rows that a query found.

    :param rows: in the query's order, no more than its limit.
    :param more: others come after them.
    """

    rows: list[ServiceRecord]
    more: bool


@attrs.frozen
class ServiceTotals:
    """How many rows a query found, whatever its limit. One that is disabled is up or down besides.

    :param services: all of them: those that are up, down, and forced down.
    :param hosts: different hosts.
    :param down: without those that are forced down.
    """

    services: int = 0
    hosts: int = 0
    up: int = 0
    down: int = 0
    forced_down: int = 0
    disabled: int = 0
