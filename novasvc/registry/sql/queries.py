"""SQL statements for :class:`~novasvc.registry.query.ServiceQuery`: pages of rows, and totals."""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, bindparam, case, distinct, false, func, not_, or_, select, tuple_
from sqlalchemy import Integer as SQLInteger

from novasvc.registry.query import ServiceQuery, is_id
from novasvc.registry.sql import incarnations
from novasvc.registry.sql.schema import database_ago, database_now, services

# Note [Cached statements]
#
# SQLAlchemy takes longer to build a statement than a database to answer it. A statement's text depends on which
# fields of a query are given, not on their values. So each text is built once, and the values are bound to it.

_NEVER = datetime(1970, 1, 1)  # noqa: DTZ001 - the table's form
ROWS_ALONE = select(services, database_now().label("now"))
"""Reads rows of ``services``, and the time."""
ROWS = ROWS_ALONE.add_columns(*incarnations.COLUMNS).select_from(incarnations.JOIN)
"""Reads the incarnations, too."""
_LIVE = services.c.deleted == 0
# Other writers may leave NULL, which compares with nothing.
_FORCED = func.coalesce(services.c.forced_down, false())
_DISABLED = func.coalesce(services.c.disabled, false())
_SEEN = func.coalesce(services.c.last_seen_up, services.c.created_at, _NEVER)
_ALIVE = database_ago(bindparam("service_down_time")) <= _SEEN
_UP_ALONE = not_(_FORCED) & _ALIVE
_RUNS = incarnations.is_running()
_HOST, _BINARY = func.coalesce(services.c.host, ""), func.coalesce(services.c.binary, "")
_SORTS: dict[str, tuple[Any, ...]] = {
    "name": (_BINARY, _HOST, services.c.id),
    "host": (_HOST, _BINARY, services.c.id),
    "seen": (_SEEN, services.c.id),
    "version": (func.coalesce(services.c.version, 0), services.c.id),
    "id": (services.c.id,),
}
_SEARCHED = (services.c.host, services.c.binary, services.c.topic, services.c.disabled_reason)
_JOINED = "incarnations"
"""In the shape of a statement that reads the table ``novasvc_incarnations``, too."""
_OF_INCARNATIONS = frozenset({"zone", "tag", "up True", "up False"})
"""Filters that read the table ``novasvc_incarnations``."""
_ESCAPE = "/"
"""Not the backslash, which MySQL interprets in string literals itself."""


def rows_statement(
    query: ServiceQuery, marker: Sequence[Any] | None, *, with_incarnations: bool = True
) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement that reads a query's rows and, with a limit, one row more; and its parameters.

    :param marker: the result of :func:`marker_statement`, or what it would be; None starts at the first row.
    :param with_incarnations: whether there is a table ``novasvc_incarnations``.
    """
    values = _values(query)
    if marker is not None:
        values |= {f"marker{place}": value for place, value in enumerate(marker)}
    if query.limit is not None:
        values["limit"] = query.limit + 1
    shape = _shape(query, with_incarnations=with_incarnations)
    return _rows(shape, query.sort, query.descending, marker is not None), values


def totals_statement(query: ServiceQuery, *, with_incarnations: bool = True) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement that reads :class:`~novasvc.registry.query.ServiceTotals`, and its parameters."""
    return _totals(_shape(query, with_incarnations=with_incarnations)), {
        **_values(query),
        "service_down_time": query.service_down_time,
    }


def marker_statement(query: ServiceQuery) -> Select[Any]:
    """Return the statement that reads the sort key of the marker row, which may be deleted."""
    after = query.after or ""
    wanted = services.c.id == int(after) if is_id(after) else services.c.uuid == after
    return select(*_SORTS[query.sort]).where(wanted)


def _shape(query: ServiceQuery, *, with_incarnations: bool) -> frozenset[str]:
    """Return what a statement's text depends on: the names of the fields that are given, and the flags' values."""
    optional = ("host", "binary", "topic", "zone", "tag", "text", "limit")
    shape = {name for name in optional if getattr(query, name) is not None}
    if query.with_topic:
        shape.add("with_topic")
    if with_incarnations:
        shape.add(_JOINED)
    shape |= {f"{name} {value}" for name in ("disabled", "up") if (value := getattr(query, name)) is not None}
    return frozenset(shape)


def _values(query: ServiceQuery) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: value for name in ("host", "binary", "topic", "zone") if (value := getattr(query, name)) is not None
    }
    if query.up is not None:
        values["service_down_time"] = query.service_down_time
    if query.tag is not None:
        values["tag"] = json.dumps(query.tag, ensure_ascii=False)
    if query.text is not None:
        values["text"] = f"%{_escaped(query.text)}%"
    return values


def _escaped(text: str) -> str:
    for letter in (_ESCAPE, "%", "_"):
        text = text.replace(letter, _ESCAPE + letter)
    return text


def _up(shape: frozenset[str]) -> ColumnElement[bool]:
    return _UP_ALONE & _RUNS if _JOINED in shape else _UP_ALONE


def _wanted(shape: frozenset[str]) -> list[ColumnElement[bool]]:
    found = func.lower(bindparam("text"))  # by the database, like the columns: it knows fewer letters than Python
    filters: dict[str, ColumnElement[bool]] = {
        **{name: services.c[name] == bindparam(name) for name in ("host", "binary", "topic")},
        "with_topic": services.c.topic.is_not(None),
        "zone": bindparam("zone") == incarnations.ZONE if _JOINED in shape else false(),
        # A substring of the stored JSON, with its quotes. Unlike LIKE, replace() heeds case in every database.
        "tag": func.replace(incarnations.TAGS, bindparam("tag"), "") != incarnations.TAGS
        if _JOINED in shape
        else false(),
        "disabled True": _DISABLED,
        "disabled False": not_(_DISABLED),
        "up True": _up(shape),
        "up False": not_(_up(shape)),
        "text": or_(*(func.lower(column).like(found, escape=_ESCAPE) for column in _SEARCHED)),
    }
    return [_LIVE, *(wanted for name, wanted in filters.items() if name in shape)]


@lru_cache(maxsize=256)
def _rows(shape: frozenset[str], sort: str, descending: bool, after: bool) -> Select[Any]:  # noqa: FBT001
    keys = _SORTS[sort]
    order = [key.desc() if descending else key for key in keys]
    # The ids of a page come first, and only its rows are joined. In one step, PostgreSQL joins all rows and sorts them:
    # 20 ms for 10,000. It does so if no index has the order, or as long as it has no statistics of a new table.
    ids_first = {_JOINED, "limit"} <= shape and not shape & _OF_INCARNATIONS
    statement: Select[Any] = select(services.c.id) if ids_first else ROWS if _JOINED in shape else ROWS_ALONE
    statement = statement.where(*_wanted(shape)).order_by(*order)
    if after:
        # Keyset pagination: rows that are added or deleted meanwhile move no other row to another page, as they do with
        # OFFSET. Row values compare lexicographically (SQL-92, 8.2), so the keys are unique by id, and none is NULL.
        place = tuple_(*keys)
        marker = tuple_(*(bindparam(f"marker{number}", type_=key.type) for number, key in enumerate(keys)))
        statement = statement.where(place < marker if descending else place > marker)
    if "limit" in shape:
        statement = statement.limit(bindparam("limit", type_=SQLInteger()))
    if not ids_first:
        return statement
    page = statement.subquery("page")
    joined = incarnations.join_to(page.join(services, services.c.id == page.c.id))
    return ROWS_ALONE.add_columns(*incarnations.COLUMNS).select_from(joined).order_by(*order)


@lru_cache(maxsize=256)
def _totals(shape: frozenset[str]) -> Select[Any]:
    def counted(wanted: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((wanted, 1), else_=0)), 0)

    columns: dict[str, ColumnElement[int]] = {
        "services": func.count(),
        "hosts": func.count(distinct(services.c.host)),
        "up": counted(_up(shape)),
        "down": counted(not_(_FORCED) & not_(_up(shape))),
        "forced_down": counted(_FORCED),
        "disabled": counted(_DISABLED),
    }
    totals: Any = select(*(column.label(name) for name, column in columns.items()))
    if _JOINED in shape:
        totals = totals.select_from(incarnations.JOIN)
    return cast("Select[Any]", totals.where(*_wanted(shape)))
