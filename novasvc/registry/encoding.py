"""Rows and queries as JSON, as they travel between nodes and a conductor."""

from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import attrs

from novasvc.registry.incarnation import Incarnation
from novasvc.registry.lease import Lease, Leases
from novasvc.registry.observation import Observation, Observations
from novasvc.registry.outages import MassSilence, Outages, Stall
from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
from novasvc.registry.record import Records, ServiceRecord
from novasvc.rpc.errors import InvalidArgumentsError


def types_of(annotation: Any) -> tuple[type, ...]:
    """Return the types that an annotation allows: two for ``str | None``."""
    origin = get_origin(annotation)
    if origin is Literal:
        return (str,)
    return (origin,) if origin is dict else get_args(annotation) or (annotation,)


def _fields(kind: Any) -> dict[str, tuple[type, ...]]:
    return {field.name: types_of(field.type) for field in attrs.fields(kind)}


_FIELDS, _QUERY, _TOTALS = _fields(ServiceRecord), _fields(ServiceQuery), _fields(ServiceTotals)
_LEASE = _fields(Lease)
_STALL, _MASS = _fields(Stall), _fields(MassSilence)
_OBSERVATION = {**_fields(Observation), "status": (str, NoneType)}
_INCARNATION = {**_fields(Incarnation), "tags": (list,)}
del _FIELDS["incarnation"]  # an older conductor does not send it
_VALUES_OF_RECORD, _VALUES_OF_INCARNATION = attrgetter(*_FIELDS), attrgetter(*_INCARNATION)


def check_type(name: str, value: Any, types: tuple[type, ...]) -> Any:
    """Check the type of a received value, and convert it: int to float, ISO text to datetime.

    :raises ValueError: the value has none of the types.
    """
    if type(value) in types:  # isinstance() would accept True as an int
        return value
    if float in types and type(value) is int:
        return float(value)
    if datetime in types and type(value) is str:
        stamp = datetime.fromisoformat(value)
        if stamp.tzinfo is None:
            return stamp
    wanted = " or ".join(kind.__name__ for kind in types)
    raise ValueError(f"{name} is {type(value).__name__}, not {wanted}")


def encode_record(record: ServiceRecord) -> dict[str, Any]:
    """Return a row as an object with the fields of ServiceRecord."""
    # Not attrs.asdict, which looks into each value: it takes four times as long. The JSON encoder writes datetimes as
    # ISO 8601.
    row = dict(zip(_FIELDS, _VALUES_OF_RECORD(record), strict=True))
    latest = record.incarnation
    row["incarnation"] = (
        None if latest is None else dict(zip(_INCARNATION, _VALUES_OF_INCARNATION(latest), strict=True))
    )
    return row


def _read_fields(name: str, value: Any, fields: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Decode an object's fields. Unknown fields come from a newer conductor, and are ignored."""
    found = check_type(name, value, (dict,))
    if not fields.keys() <= found.keys():
        raise ValueError(f"{name} has no {', '.join(sorted(fields.keys() - found.keys()))}")
    # Most values need no conversion, and the call of a function for each would take as long again as all the rest.
    return {
        name: value if type(value := found[name]) in types else check_type(name, value, types)
        for name, types in fields.items()
    }


# Decoding of results. Each raises ValueError for a result that is not of this form.


def read_record(value: Any) -> ServiceRecord:
    """Decode a row."""
    row = _read_fields("row", value, _FIELDS)
    incarnation = value.get("incarnation")
    return ServiceRecord(**row, incarnation=None if incarnation is None else read_incarnation(incarnation))


def read_incarnation(value: Any) -> Incarnation:
    """Decode the incarnation of a row."""
    fields = _read_fields("incarnation", value, _INCARNATION)
    tags = tuple(check_type("tag", tag, (str,)) for tag in fields.pop("tags"))
    return Incarnation(**fields, tags=tags)


def read_records(value: Any) -> Records:
    """Decode a list of rows."""
    return [read_record(row) for row in check_type("answer", value, (list,))]


def read_page(value: Any) -> ServicePage:
    """Decode a page."""
    page = _read_fields("page", value, {"rows": (list,), "more": (bool,)})
    return ServicePage(read_records(page["rows"]), page["more"])


def read_totals(value: Any) -> ServiceTotals:
    """Decode totals."""
    return ServiceTotals(**_read_fields("totals", value, _TOTALS))


def read_leases(value: Any) -> Leases:
    """Decode a list of leases."""
    return [Lease(**_read_fields("lease", lease, _LEASE)) for lease in check_type("answer", value, (list,))]


def read_outages(value: Any) -> Outages:
    """Decode outages."""
    found = _read_fields("outages", value, {"stalls": (list,), "masses": (list,)})
    return Outages(
        stalls=tuple(Stall(**_read_fields("stall", each, _STALL)) for each in found["stalls"]),
        masses=tuple(MassSilence(**_read_fields("mass", each, _MASS)) for each in found["masses"]),
    )


def read_observations(value: Any) -> Observations:
    """Decode a list of observations."""
    return [
        Observation(**_read_fields("observation", each, _OBSERVATION)) for each in check_type("answer", value, (list,))
    ]


def read_query(method: str, query: Mapping[str, Any]) -> ServiceQuery:
    """Decode a query.

    :param method: name of the called method, for the error.
    :raises InvalidArgumentsError: a field is unknown, or has the wrong type.
    """
    unknown = query.keys() - _QUERY.keys()
    if unknown:
        raise InvalidArgumentsError(method, f"query has unknown fields: {', '.join(sorted(unknown))}")
    try:
        return ServiceQuery(**{name: check_type(name, value, _QUERY[name]) for name, value in query.items()})
    except ValueError as error:
        raise InvalidArgumentsError(method, str(error)) from None


def read_nothing(value: Any) -> None:
    """Check that there is no result."""
    check_type("answer", value, (NoneType,))
