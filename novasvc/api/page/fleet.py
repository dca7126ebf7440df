"""The page of the fleet."""

from itertools import islice
from typing import Any

import attrs

from novasvc.api.access import Access
from novasvc.api.errors import APIError
from novasvc.api.openapi import PAGE_RESPONSES, STRING, array_of, content, object_schema, operation
from novasvc.api.page.fleet_map import CODES, FleetMap, looks_of
from novasvc.api.page.overview import Overview
from novasvc.api.page.pages import Pages, make_page_app
from novasvc.api.page.query import SORTS, STATES, Query
from novasvc.api.page.view import Views
from novasvc.api.versions import VERSION
from novasvc.api.watch import Watch

_SHOWN = 30
"""Timeline entries on the page."""
_PARTS = {"services": "services.html", "map": "map.html"}
"""Parts of the page that its scripts load by themselves -> their templates."""


class FleetPage:
    """Serves ``/``, and ``/s/ID``, the short links of its map.

    :param access: authorization.
    :param watch: the state of the fleet.
    :param views: the services of each query.
    :param overview: what is wrong.
    :param pages: the renderer of pages.
    """

    app = make_page_app()

    def __init__(self, access: Access, watch: Watch, views: Views, overview: Overview, pages: Pages) -> None:
        self._access = access
        self._watch = watch
        self._views = views
        self._overview = overview
        self.pages = pages
        self._map = FleetMap()
        self._drawn_members = 0

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
        """Show what is wrong, the map, and the services that match the query."""
        caller = self._access.require(request)
        await self._watch.wait_fresh()
        watch = self._watch
        view = self._views.view(Query.read(request.args))
        part = request.args.get(b"part", [b""])[0].decode("latin-1")
        if part in _PARTS:
            drawn = self._draw(view.matching) if part == "map" else None
            return self.pages.page(request, _PARTS[part], caller, view=view, watch=watch, drawn=drawn)
        return self.pages.page(
            request,
            "fleet.html",
            caller,
            view=view,
            watch=watch,
            overview=self._overview,
            counts=attrs.asdict(watch.totals),
            drawn=self._draw(view.matching),
            looks=looks_of(view.matching),
            codes=CODES,
            entries=[*islice(watch.timeline, _SHOWN)],
            states=STATES,
            sorts=SORTS,
        )

    def _draw(self, services: Any) -> Any:
        if self._drawn_members != self._watch.members:
            self._drawn_members = self._watch.members
            self._map.forget(self._watch.services)
        return self._map.draw(services)

    @app.route("/s/<int:number>", methods=["GET"])
    @operation(
        "The page of a service, by its number in the registry",
        {303: {"description": "Redirects to /node/UUID, or to the login."}, "default": PAGE_RESPONSES["default"]},
        path_parameters={"number": "Of the service."},
    )
    async def find(self, request: Any, number: int) -> bytes:
        """Redirect to the page of a service."""
        self._access.require(request)
        if number not in self._watch.services:
            await self._watch.wait_fresh()
        service = self._watch.services.get(number)
        if service is None:
            raise APIError(404, f"there is no service with the number {number}, or the registry has not been read yet")
        request.setResponseCode(303)
        request.setHeader(b"location", f"/node/{service.record.uuid}".encode())
        return b""
