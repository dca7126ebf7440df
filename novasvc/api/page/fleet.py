"""The first page: the fleet."""

from itertools import islice
from typing import Any

from klein import Klein
from twisted.python.failure import Failure

from novasvc.api.access import Access
from novasvc.api.page.frame import Frame
from novasvc.api.page.query import SORTS, STATES, Query
from novasvc.api.page.view import Views
from novasvc.api.watch import Watch

_SHOWN = 30
"""Entries of the timeline on the page."""


class Fleet:
    """Serves ``/``.

    :param access: who may look.
    :param watch: what there is to see.
    :param views: the ways to look at it.
    :param frame: what all pages have.
    """

    app = Klein()

    def __init__(self, access: Access, watch: Watch, views: Views, frame: Frame) -> None:
        self._access = access
        self._watch = watch
        self._views = views
        self._frame = frame

    @app.route("/", methods=["GET"])
    async def show(self, request: Any) -> bytes:
        """Show hosts by binaries."""
        caller = self._access.require(request)
        await self._watch.fresh()
        view = self._views.look(Query.read(request.args))
        return self._frame.page(
            request,
            "fleet.html",
            caller,
            view=view,
            watch=self._watch,
            entries=[*islice(self._watch.timeline, _SHOWN)],
            seen_at=self._watch.seen_at,
            began=self._watch.began,
            states=STATES,
            sorts=SORTS,
        )

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return self._frame.refuse(request, failure)
