"""Liveness and readiness: ``/healthz`` and ``/readyz``, for load balancers, orchestrators and people."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.openapi import BOOLEAN, STRING, Component, array_of, content, object_schema, operation
from novasvc.api.responses import json_response, make_app
from novasvc.node.health import Check, CheckHistory, CheckResult, check_migration, check_reactor, check_registry
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.workers.control import client as control
from novasvc.workers.errors import SupervisionError
from novasvc.workers.reports import health_of, parts

_TIMEOUT = 4.0
"""Seconds for the supervisor, which gives its workers three."""

_CACHE_TIME_READY = 1.0
"""Seconds for which a ready response is cached."""

_CACHE_TIME_NOT_READY = 0.1
"""Seconds for which any other response is cached: shorter, as a restart takes less than a second."""

_READY = frozenset({"ready"})

_LEG = Component(
    "Leg",
    object_schema(
        {
            "name": STRING,
            "service": STRING,
            "ready": BOOLEAN,
            "detail": {**STRING, "description": "Only with the scope read."},
            "since": {**STRING, "description": "When a request first found it so; only with the scope read; ISO 8601."},
        },
        "detail",
        "since",
    ),
)
_READINESS = Component(
    "Readiness",
    object_schema({"ready": BOOLEAN, "legs": array_of(_LEG), "workers": array_of({"type": "object"})}),
)


@attrs.define(eq=False)
class APIHealth:
    """The health of the API itself: of its connections and its reactor."""

    _backend: Backend
    _history: CheckHistory = attrs.field(factory=CheckHistory, init=False)

    async def report(self) -> dict[str, Any]:
        """Return the result of each check; see :class:`novasvc.interfaces.IHealthy`."""
        backend = self._backend
        name, registry = backend.registry_name, backend.registry_or_none
        if registry is None:
            registry_result: CheckResult = False, backend.problem(name)
        else:
            # A node's heartbeats prove that it can write. The API sends none.
            registry_result = await check_registry(registry.prove_writable(), backend.reactor)
        problem = backend.broker_problem()
        results: dict[str, CheckResult] = {
            "broker": (problem is None, problem or "connected"),
            name: registry_result,
            "migration": check_migration(backend.errors.get(name), reached=registry is not None),
            "reactor": check_reactor(),
        }
        return {"service": "api", "legs": [self._history.check(name, result) for name, result in results.items()]}


@attrs.define(eq=False)
class HealthResource:
    """Serves ``/healthz`` and ``/readyz``."""

    _backend: Backend
    _access: Access
    _document: CoalescingCache[dict[str, Any]] = attrs.field(init=False)

    app = make_app()

    def __attrs_post_init__(self) -> None:
        self._document = CoalescingCache(
            lambda: Deferred.fromCoroutine(self._collect()), self._backend.reactor, _cache_time
        )

    @app.route("/healthz", methods=["GET", "HEAD"])
    @operation(
        "Liveness: whether this process responds",
        {200: content("It responds.", json=object_schema({"status": {"const": "ok"}}))},
        public=True,
    )
    def live(self, request: Any) -> bytes:
        """Respond if the reactor runs; nothing else is checked."""
        return json_response(request, {"status": "ok"})

    @app.route("/readyz", methods=["GET", "HEAD"])
    @operation(
        "Readiness, with each check",
        {200: content("Ready.", json=_READINESS), 503: content("Not ready.", json=_READINESS)},
        public=True,
    )
    async def ready(self, request: Any) -> bytes:
        """Return each check; 503 if one is not ready. Unauthenticated callers get no details."""
        document = await self._document.get()
        if self._access.caller(request) is None:
            document = _without_details(document)
        status = HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
        return json_response(request, document, status)

    async def _collect(self) -> dict[str, Any]:
        if self._backend.runtime.worker is None:
            services = (part for each in self._backend.local_services() for part in parts(each))
            legs = _with_service(await health_of(services))
            workers: list[dict[str, Any]] = []
        else:
            legs, workers = await self._ask_supervisor()
            if workers and not all(leg["ready"] for leg in legs) and all(row["services"] for row in workers):
                # A worker may have been replaced just now, and have reported while it stopped.
                legs, workers = await self._ask_supervisor()
        return {"ready": all(leg["ready"] for leg in legs), "legs": legs, "workers": workers}

    async def _ask_supervisor(self) -> tuple[list[Check], list[dict[str, Any]]]:
        backend = self._backend
        path = backend.settings.control_socket
        try:
            rows = await control.ask(backend.reactor, path, "health", timeout=_TIMEOUT)
        except SupervisionError as error:
            return [{"name": "supervisor", "service": "api", "ready": False, "detail": str(error)}], []
        return merge_checks(rows), [{**row, "ready": _is_ready(row), "services": row["services"] or []} for row in rows]


def _cache_time(document: dict[str, Any]) -> float:
    return _CACHE_TIME_READY if document["ready"] else _CACHE_TIME_NOT_READY


def _with_service(rows: Iterable[dict[str, Any]]) -> list[Check]:
    return [{**leg, "service": row["service"]} for row in rows for leg in row["legs"]]


def merge_checks(rows: Iterable[dict[str, Any]]) -> list[Check]:
    """Merge the checks of a supervisor's workers into one list.

    A check is ready if it is ready in one worker of a server, because that worker does the work of the others. The
    check "workers" of a server counts the workers that are ready.

    :param rows: see ISupervisor.health.
    """
    found: dict[tuple[str, str, str], list[Check]] = {}
    for row in rows:
        ready = _is_ready(row)
        worker = {"name": "workers", "ready": ready, "detail": f"worker {row['number']} is {_state(row)}"}
        found.setdefault((row["server"], row["server"], "workers"), []).append(worker)
        for service in row["services"] or ():
            for leg in service["legs"]:
                merged = leg
                if leg["ready"] and row["state"] not in _READY:
                    # A draining worker takes no new work, whatever its checks say.
                    merged = {**leg, "ready": False, "detail": f"worker {row['number']} is {row['state']}"}
                found.setdefault((row["server"], service["service"], leg["name"]), []).append(merged)
    return [_best(service, legs) for (_, service, _), legs in found.items()]


def _best(service: str, legs: list[Check]) -> Check:
    """Return the merged check, with the number of workers in which it is ready."""
    ready = sum(leg["ready"] for leg in legs)
    # The detail of a failure is worth more than that of a success.
    shown = next((leg for leg in legs if not leg["ready"]), legs[0])
    detail = shown["detail"] if len(legs) == 1 or ready == len(legs) else f"{ready} of {len(legs)}: {shown['detail']}"
    if shown["name"] == "workers" and ready == len(legs):
        detail = f"{ready} of {len(legs)} are ready"
    return {**shown, "service": service, "ready": ready > 0, "detail": detail}


def _is_ready(row: dict[str, Any]) -> bool:
    services = row["services"]
    return (
        row["state"] in _READY
        and services is not None
        and all(leg["ready"] for service in services for leg in service["legs"])
    )


def _state(row: dict[str, Any]) -> str:
    state: str = row["state"]
    if state not in _READY:
        return state
    if row["services"] is None:
        return f"{state}, but does not respond"
    missing = (leg for service in row["services"] for leg in service["legs"] if not leg["ready"])
    return next((f"not ready ({leg['name']}: {leg['detail']})" for leg in missing), state)


def _without_details(document: dict[str, Any]) -> dict[str, Any]:
    legs = [{name: leg[name] for name in ("name", "service", "ready")} for leg in document["legs"]]
    return {"ready": document["ready"], "legs": legs, "workers": []}
