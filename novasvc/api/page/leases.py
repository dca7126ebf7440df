"""The page of the leases."""

from typing import Any

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.openapi import PAGE_RESPONSES, operation
from novasvc.api.page.pages import Pages, make_page_app
from novasvc.errors import NovasvcError
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.registry.lease import Leases


class LeasesPage:
    """Serves ``/leases``.

    :param backend: the connection to the registry.
    :param access: authorization.
    :param pages: the renderer of pages.
    """

    app = make_page_app()

    def __init__(self, backend: Backend, access: Access, pages: Pages) -> None:
        self._backend = backend
        self._access = access
        self.pages = pages
        # One read for all viewers, for a second; an error, too, goes to all of them.
        self._leases: CoalescingCache[Leases | NovasvcError] = CoalescingCache(self._read, backend.reactor)

    @app.route("/leases", methods=["GET"])
    @operation("The page of the leases", PAGE_RESPONSES)
    async def show(self, request: Any) -> bytes:
        """Show who has which lease, and since when."""
        caller = self._access.require(request)
        leases = await self._leases.get()
        if isinstance(leases, NovasvcError):
            raise leases
        now = self._backend.reactor.seconds()
        return self.pages.page(request, "leases.html", caller, leases=leases, now=now)

    def _read(self) -> Any:
        reading = self._backend.registry.list_leases()
        return reading.addErrback(lambda failure: failure.trap(NovasvcError) and failure.value)
