"""The page of one service."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from klein import Klein
from twisted.python.failure import Failure

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.page.actions import VERBS, done_message
from novasvc.api.page.frame import Frame
from novasvc.api.page.history import Sample, latencies, method_key, rates
from novasvc.api.page.portrait import Portraits
from novasvc.api.sight import state_of
from novasvc.api.watch import Watch

_SHOWN = 20
"""Entries of the timeline on the page."""


class NodePage:
    """Serves ``/node/UUID``.

    :param backend: has the registry.
    :param access: who may look.
    :param watch: knows what happened to the service.
    :param portraits: asks the node.
    """

    app = Klein()

    def __init__(self, backend: Backend, access: Access, watch: Watch, portraits: Portraits, frame: Frame) -> None:
        self._backend = backend
        self._access = access
        self._watch = watch
        self._portraits = portraits
        self._frame = frame

    @app.route("/node/<uuid>", methods=["GET"])
    async def show(self, request: Any, uuid: str) -> bytes:
        """Show a service, and what its node tells; if that is silent, what is registered of it."""
        caller = self._access.require(request)
        record = await self._backend.registry.get(uuid)
        portrait: dict[str, Any] | None = None
        samples: Sequence[Sample] = ()
        silence = ""
        try:
            portrait, samples = await self._portraits.get(record)
        except APIError as error:
            silence = error.message
        return self._frame.page(
            request,
            "node.html",
            caller,
            record=record,
            state=state_of(record, self._backend.settings.service_down_time),
            portrait=portrait,
            silence=silence,
            methods=[] if portrait is None else _methods(portrait, samples),
            entries=[*islice((entry for entry in self._watch.timeline if entry.uuid == record.uuid), _SHOWN)],
            verbs=VERBS,
            done=done_message(request.args),
            now=self._backend.reactor.seconds(),
        )

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return self._frame.refuse(request, failure)


def _methods(portrait: dict[str, Any], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the node's methods, each with its rates and latencies; those that were called come first."""
    rows = []
    for row in portrait["methods"]:
        own = row["namespace"] in {"node", "baseapi"}  # every node has them
        if own and not row["calls"]:
            continue
        key = method_key(row)
        rate = rates(samples, key)
        known = [value for value in rate[-5:] if value is not None]
        shown = {**row, "rates": rate, "rate": sum(known) / len(known) if known else None}
        rows.append(shown | {"latencies": latencies(samples, key), "own": own})
    return sorted(rows, key=lambda row: (row["own"], not row["calls"], row["method"] or ""))
