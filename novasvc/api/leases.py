"""``/v1/leases``: who has the leases of the periodic tasks that run once in a fleet."""

from typing import Any

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.openapi import NULLABLE_STRING, STRING, Component, array_of, content, object_schema, operation
from novasvc.api.responses import json_response, make_app
from novasvc.registry.lease import Lease
from novasvc.telemetry.timestamps import iso_time

_NUMBER = {"type": "number"}
LEASE = Component(
    "Lease",
    object_schema(
        {
            "topic": {**STRING, "description": "Topic of the nodes that run the task."},
            "task": {**STRING, "description": "Name of the task."},
            "holder": {**NULLABLE_STRING, "description": "Who has the lease; null if it is free."},
            "fencing": {"type": "integer", "description": "Grows whenever the lease passes on."},
            "acquired_at": {**STRING, "format": "date-time"},
            "held_for": {**_NUMBER, "description": "Seconds since acquired_at."},
            "expires_in": {
                **_NUMBER,
                "description": "Seconds until it ends unless it is renewed; not above 0 if free.",
            },
            "last_run_at": {"type": ["string", "null"], "format": "date-time"},
            "last_due": {
                "type": ["string", "null"],
                "format": "date-time",
                "description": "The due time of the last run by the task's cron line.",
            },
        }
    ),
)


class Leases:
    """Serves ``/v1/leases``, for callers with the scope read.

    :param backend: the connection to the registry.
    :param access: authorization.
    """

    app = make_app()

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._access = access

    @app.route("/v1/leases", methods=["GET"])
    @operation(
        "List the leases of periodic tasks, by the database's clock",
        {200: content("The leases, by topic and task.", json=object_schema({"leases": array_of(LEASE)}))},
        *(401, 403, 500, 503),
    )
    async def list(self, request: Any) -> bytes:
        """List all leases."""
        request.route = "/v1/leases"
        self._access.require(request)
        found = await self._backend.registry.list_leases()
        return json_response(request, {"leases": [lease_document(lease) for lease in found]})


def lease_document(lease: Lease) -> dict[str, Any]:
    """Return a lease as JSON."""
    return {
        "topic": lease.topic,
        "task": lease.task,
        "holder": None if lease.is_free else lease.holder,
        "fencing": lease.fencing,
        "acquired_at": f"{lease.acquired_at.isoformat(timespec='milliseconds')}+00:00",
        "held_for": lease.held_for,
        "expires_in": lease.expires_in,
        "last_run_at": None
        if lease.last_run_at is None
        else f"{lease.last_run_at.isoformat(timespec='milliseconds')}+00:00",
        "last_due": None if lease.last_due is None else iso_time(lease.last_due),
    }
