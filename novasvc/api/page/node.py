"""The page of one service."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.openapi import PAGE_RESPONSES, operation
from novasvc.api.page.actions import ACTIONS, done_message
from novasvc.api.page.description import NodeDescriptions
from novasvc.api.page.history import Sample, latencies, method_key, rates
from novasvc.api.page.pages import Pages, make_page_app
from novasvc.api.service_status import assess
from novasvc.api.watch import Watch

_SHOWN = 20
"""Timeline entries on the page."""


class NodePage:
    """Serves ``/node/UUID``.

    :param backend: the connection to the registry.
    :param access: authorization.
    :param watch: the timeline.
    :param descriptions: the nodes' descriptions.
    """

    app = make_page_app()

    def __init__(
        self, backend: Backend, access: Access, watch: Watch, descriptions: NodeDescriptions, pages: Pages
    ) -> None:
        self._backend = backend
        self._access = access
        self._watch = watch
        self._descriptions = descriptions
        self.pages = pages

    @app.route("/node/<uuid>", methods=["GET"])
    @operation("The page of a service", PAGE_RESPONSES, path_parameters={"uuid": "Of the service."})
    async def show(self, request: Any, uuid: str) -> bytes:
        """Show a service and its node's description; only the row if the node does not respond."""
        caller = self._access.require(request)
        record = await self._backend.registry.get(uuid)
        description: dict[str, Any] | None = None
        samples: Sequence[Sample] = ()
        silence = ""
        try:
            description, samples = await self._descriptions.get(record)
        except APIError as error:
            silence = error.message
        return self.pages.page(
            request,
            "node.html",
            caller,
            record=record,
            assessment=assess(record, self._backend.settings.service_down_time),
            description=description,
            silence=silence,
            methods=[] if description is None else _methods(description, samples),
            entries=[*islice((entry for entry in self._watch.timeline if entry.uuid == record.uuid), _SHOWN)],
            actions=ACTIONS,
            done=done_message(request.args),
            now=self._backend.reactor.seconds(),
        )


def _methods(description: dict[str, Any], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the node's methods with rates and latencies; called ones first, built-in ones last."""
    rows = []
    for row in description["methods"]:
        own = row["namespace"] in {"node", "baseapi"}  # built in: every node has them
        if own and not row["calls"]:
            continue
        key = method_key(row)
        rate = rates(samples, key)
        known = [value for value in rate[-5:] if value is not None]
        shown = {**row, "rates": rate, "rate": sum(known) / len(known) if known else None}
        rows.append(shown | {"latencies": latencies(samples, key), "own": own})
    return sorted(rows, key=lambda row: (row["own"], not row["calls"], row["method"] or ""))
