"""The page of the fleet."""

from itertools import islice
from typing import Any

from novasvc.api.access import Access
from novasvc.api.openapi import STRING, array_of, content, object_schema, operation
from novasvc.api.page.pages import Pages, make_page_app
from novasvc.api.page.query import SORTS, STATES, Query
from novasvc.api.page.view import Views
from novasvc.api.versions import VERSION
from novasvc.api.watch import Watch

_SHOWN = 30
"""Timeline entries on the page."""


class FleetPage:
    """Serves ``/``.

    :param access: authorization.
    :param watch: the state of the fleet.
    :param views: the hosts of each query.
    :param pages: the renderer of pages.
    """

    app = make_page_app()

    def __init__(self, access: Access, watch: Watch, views: Views, pages: Pages) -> None:
        self._access = access
        self._watch = watch
        self._views = views
        self.pages = pages

    @app.route("/", methods=["GET"])
    @operation(  # including the response of novasvc.api.versions.Index
        "The versions of the compute API; for a browser, the page of the fleet",
        {
            200: content(
                "Depends on the Accept header.", json=object_schema({"versions": array_of(VERSION)}), html=STRING
            ),
            303: {"description": "Redirects to the login."},
        },
        *(400, 403, 503),
        public=True,
    )
    async def show(self, request: Any) -> bytes:
        """Show a table of hosts by binaries."""
        caller = self._access.require(request)
        await self._watch.wait_fresh()
        view = self._views.view(Query.read(request.args))
        return self.pages.page(
            request,
            "fleet.html",
            caller,
            view=view,
            watch=self._watch,
            entries=[*islice(self._watch.timeline, _SHOWN)],
            read_at=self._watch.read_at,
            began=self._watch.began,
            states=STATES,
            sorts=SORTS,
        )
