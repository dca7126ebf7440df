"""Whether this process lives, and whether what it serves can be had: for load balancers, systems of pods and people."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from novasvc.api.access import Access
from novasvc.api.answers import answer_error, answer_json
from novasvc.api.backend import Backend
from novasvc.node.health import Check, CheckHistory, CheckResult, check_migration, check_reactor, check_registry
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.workers.control import client as inquiry
from novasvc.workers.errors import SupervisionError
from novasvc.workers.worker import health_of, parts

_PATIENCE = 4.0
"""Seconds for the supervisor, who gives its workers three."""

_FRESH = 1.0
"""Seconds for which it does for all who ask that all is ready."""

_TROUBLE = 0.1
"""Seconds for which another answer does: a restart takes less than one that lasts."""

_READY = frozenset({"ready"})


@attrs.define(eq=False)
class OwnHealth:
    """The legs of the API itself: what an API alone in its process has, and one beside others too."""

    _backend: Backend
    _history: CheckHistory = attrs.field(factory=CheckHistory, init=False)

    async def tell(self) -> dict[str, Any]:
        """Return them; see :class:`novasvc.interfaces.IHealthy`."""
        backend = self._backend
        name, registry = backend.registry_name, backend.registry_if_there
        if registry is None:
            seen: CheckResult = False, backend.missing.get(name, "it is being reached")
        else:
            # An API sends no heartbeats that would prove it.
            seen = await check_registry(registry.prove_writable(), backend.reactor)
        problem = backend.broker_problem()
        verdicts: dict[str, CheckResult] = {
            "broker": (problem is None, problem or "messages can move"),
            name: seen,
            "migration": check_migration(backend.obstacles.get(name), reached=registry is not None),
            "reactor": check_reactor(),
        }
        return {"service": "api", "legs": [self._history.check(name, verdict) for name, verdict in verdicts.items()]}


@attrs.define(eq=False)
class Health:
    """Serves ``/healthz`` and ``/readyz``."""

    _backend: Backend
    _access: Access
    _document: CoalescingCache[dict[str, Any]] = attrs.field(init=False)

    app = Klein()

    def __attrs_post_init__(self) -> None:
        self._document = CoalescingCache(
            lambda: Deferred.fromCoroutine(self._look()), self._backend.reactor, _freshness
        )

    @app.route("/healthz", methods=["GET", "HEAD"])
    def live(self, request: Any) -> bytes:
        """Answer: the reactor turns, and nothing else is asked."""
        return answer_json(request, {"status": "ok"})

    @app.route("/readyz", methods=["GET", "HEAD"])
    async def ready(self, request: Any) -> bytes:
        """Tell each leg; with 503 if one is not ready. Who may not read is told no details."""
        document = await self._document.get()
        if self._access.caller(request) is None:
            document = _without_details(document)
        status = HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
        return answer_json(request, document, status)

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return answer_error(request, failure)

    async def _look(self) -> dict[str, Any]:
        if self._backend.runtime.worker is None:
            services = (part for each in self._backend.beside() for part in parts(each))
            legs = _told_here(await health_of(services))
            workers: list[dict[str, Any]] = []
        else:
            legs, workers = await self._ask_supervisor()
            if workers and not all(leg["ready"] for leg in legs) and all(row["services"] for row in workers):
                # One that was ready when it was asked may have been replaced by now, and have told of its way down.
                legs, workers = await self._ask_supervisor()
        return {"ready": all(leg["ready"] for leg in legs), "legs": legs, "workers": workers}

    async def _ask_supervisor(self) -> tuple[list[Check], list[dict[str, Any]]]:
        backend = self._backend
        path = backend.settings.control_socket
        try:
            rows = await inquiry.ask(backend.reactor, path, "health", timeout=_PATIENCE)
        except SupervisionError as error:
            return [{"name": "supervisor", "service": "api", "ready": False, "detail": str(error)}], []
        return sum_up(rows), [{**row, "ready": _is_ready(row), "services": row["services"] or []} for row in rows]


def _freshness(document: dict[str, Any]) -> float:
    return _FRESH if document["ready"] else _TROUBLE


def _told_here(rows: Iterable[dict[str, Any]]) -> list[Check]:
    return [{**leg, "service": row["service"]} for row in rows for leg in row["legs"]]


def sum_up(rows: Iterable[dict[str, Any]]) -> list[Check]:
    """Make the legs of a supervisor's workers into one list.

    A leg is ready if one worker of its server has it ready: the others' work goes to that one. The leg "workers" of a
    server says how many are.

    :param rows: as ISupervisor.health has them.
    """
    found: dict[tuple[str, str, str], list[Check]] = {}
    for row in rows:
        ready = _is_ready(row)
        told = {"name": "workers", "ready": ready, "detail": f"worker {row['number']} is {_state(row)}"}
        found.setdefault((row["server"], row["server"], "workers"), []).append(told)
        for service in row["services"] or ():
            for leg in service["legs"]:
                held = leg
                if leg["ready"] and row["state"] not in _READY:
                    # A worker that drains is no help, whatever it stands on.
                    held = {**leg, "ready": False, "detail": f"worker {row['number']} is {row['state']}"}
                found.setdefault((row["server"], service["service"], leg["name"]), []).append(held)
    return [_best(service, legs) for (_, service, _), legs in found.items()]


def _best(service: str, legs: list[Check]) -> Check:
    """Return the leg of the worker that does best, with how many do as well."""
    ready = sum(leg["ready"] for leg in legs)
    # What is wrong is worth more words than what is not.
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
        return f"{state}, and does not answer"
    missing = (leg for service in row["services"] for leg in service["legs"] if not leg["ready"])
    return next((f"not ready, for its {leg['name']}: {leg['detail']}" for leg in missing), state)


def _without_details(document: dict[str, Any]) -> dict[str, Any]:
    legs = [{name: leg[name] for name in ("name", "service", "ready")} for leg in document["legs"]]
    return {"ready": document["ready"], "legs": legs, "workers": []}
