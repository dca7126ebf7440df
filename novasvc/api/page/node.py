"""The page of one service."""

from collections.abc import Callable
from itertools import islice
from typing import Any

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.openapi import PAGE_RESPONSES, operation
from novasvc.api.page.actions import ACTIONS, done_message
from novasvc.api.page.description import NodeDescriptions
from novasvc.api.page.history import History
from novasvc.api.page.node_search import NodeSearch
from novasvc.api.page.pages import Pages, make_page_app
from novasvc.api.service_status import Assessment
from novasvc.api.watch import Watch
from novasvc.registry.record import ServiceRecord

_SHOWN = 20
"""Timeline entries on the page."""


class NodePage:
    """Serves ``/node/UUID``.

    :param backend: the connection to the registry.
    :param access: authorization.
    :param watch: the timeline.
    :param assess: returns what a row says about its service.
    :param descriptions: the nodes' descriptions.
    """

    app = make_page_app()

    def __init__(
        self,
        backend: Backend,
        access: Access,
        watch: Watch,
        assess: Callable[[ServiceRecord], Assessment],
        descriptions: NodeDescriptions,
        pages: Pages,
    ) -> None:
        self._assess = assess
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
        history = History()
        silence = ""
        try:
            description, history = await self._descriptions.get(record)
        except APIError as error:
            silence = error.message
        search = NodeSearch.read(request.args)
        return self.pages.page(
            request,
            "node.html",
            caller,
            record=record,
            assessment=self._assess(record),
            description=description,
            silence=silence,
            history=history,
            search=search,
            methods=[] if description is None else _methods(description, history),
            errors=[] if description is None else search.errors(description),
            events=[] if description is None else search.events(description),
            entries=[*islice((entry for entry in self._watch.timeline if entry.uuid == record.uuid), _SHOWN)],
            actions=ACTIONS,
            done=done_message(request.args),
            now=self._backend.reactor.seconds(),
        )


def _methods(description: dict[str, Any], history: History) -> list[dict[str, Any]]:
    """Return the node's methods with their series; called ones first, built-in ones last."""
    rows = []
    for row in description["methods"]:
        own = row["namespace"] in {"node", "baseapi"}  # built in: every node has them
        if own and not row["calls"]:
            continue
        rows.append({**row, "series": history.of(row), "own": own})
    return sorted(rows, key=lambda row: (row["own"], not row["calls"], row["method"] or ""))
