"""``/v1/verdicts``: which services are alive, suspect or down, why, and the outages that concern many."""

from datetime import datetime
from typing import Any, get_args

from twisted.internet.defer import Deferred

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.openapi import (
    NULLABLE_STRING,
    STRING,
    Component,
    array_of,
    content,
    object_schema,
    operation,
    parameter,
)
from novasvc.api.responses import json_response, make_app
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.registry.outages import VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Status, Verdict, describe_outages
from novasvc.registry.verdicts import FleetVerdicts, judge_all

_STATUSES = get_args(Status)
_TIME = {"type": ["string", "null"], "format": "date-time"}
_FILTERS = ("status", "host", "binary", "zone")

VERDICT = Component(
    "Verdict",
    object_schema(
        {
            "id": {**STRING, "description": "The uuid of the service."},
            "host": STRING,
            "binary": STRING,
            "verdict": {"enum": list(_STATUSES)},
            "verdict_reason": {**STRING, "description": "Why; empty if it is alive."},
            "verdict_since": {**_TIME, "description": "When the reason began."},
            "state": {**NULLABLE_STRING, "description": "What the service says of itself."},
            "state_since": _TIME,
            "incarnation": {"type": ["integer", "null"], "description": "The number of its latest start."},
            "zone": NULLABLE_STRING,
            "tags": array_of(STRING),
        }
    ),
)


class Verdicts:
    """Serves ``/v1/verdicts``, for callers with the scope read. The fleet is read at most once a second.

    :param backend: the connection to the registry.
    :param access: authorization.
    """

    app = make_app()

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._fleet = CoalescingCache(lambda: Deferred.fromCoroutine(self._read()), backend.reactor)

    @app.route("/v1/verdicts", methods=["GET"])
    @operation(
        "Judge all services: which are alive, suspect or down, and why",
        {
            200: content(
                "The numbers of all services, the outages that concern many, and the services asked for.",
                json=object_schema(
                    {
                        "totals": object_schema({status: {"type": "integer"} for status in _STATUSES}),
                        "outages": array_of({**STRING, "description": "A sentence: their services are suspect."}),
                        "services": array_of(VERDICT),
                    }
                ),
            )
        },
        *(400, 401, 403, 500, 503),
        parameters=(
            parameter("status", "query", "Only services with this verdict; several separated by commas."),
            parameter("host", "query", "Only services of this host."),
            parameter("binary", "query", "Only services with this binary."),
            parameter("zone", "query", "Only services in this zone."),
        ),
    )
    async def list(self, request: Any) -> bytes:
        """List verdicts."""
        request.route = "/v1/verdicts"
        self._access.require(request)
        wanted = _read_filters(request)
        fleet = await self._fleet.get()
        totals = dict.fromkeys(_STATUSES, 0)
        for _, verdict in fleet.services:
            totals[verdict.status] += 1
        found = [item for item in (verdict_document(*service) for service in fleet.services) if _matches(item, wanted)]
        outages = list(describe_outages(fleet.outages).values())
        return json_response(request, {"totals": totals, "outages": outages, "services": found})

    async def _read(self) -> FleetVerdicts:
        return await judge_all(self._backend.registry, VerdictRule.of(self._backend.settings))


def _read_filters(request: Any) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for name, values in request.args.items():
        key = name.decode(errors="replace")
        if key not in _FILTERS:
            raise APIError(400, f"there is no parameter {key[:100]!r}; there are {', '.join(_FILTERS)}")
        text = values[-1].decode(errors="replace")
        wanted[key] = text.split(",") if key == "status" else [text]
    unknown = [status for status in wanted.get("status", ()) if status not in _STATUSES]
    if unknown:
        raise APIError(400, f"there is no status {unknown[0][:100]!r}; there are {', '.join(_STATUSES)}")
    return wanted


def _matches(item: dict[str, Any], wanted: dict[str, list[str]]) -> bool:
    return all(item["verdict" if name == "status" else name] in values for name, values in wanted.items())


def verdict_document(record: ServiceRecord, verdict: Verdict) -> dict[str, Any]:
    """Return a service and the verdict on it as JSON."""
    incarnation = record.incarnation
    return {
        "id": record.uuid,
        "host": record.host,
        "binary": record.binary,
        "verdict": verdict.status,
        "verdict_reason": verdict.reason,
        "verdict_since": _iso(verdict.since),
        "state": record.state,
        "state_since": None if incarnation is None else _iso(incarnation.since),
        "incarnation": record.incarnation_number,
        "zone": record.zone,
        "tags": list(record.tags),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.isoformat(timespec='milliseconds')}+00:00"
