"""Whole pages: the frame around each template, error pages, and the redirect to the login."""

import re
from typing import Any, Protocol
from urllib.parse import quote

import attrs
from klein import Klein
from twisted.python.failure import Failure

from novasvc.api.access import Access, Caller
from novasvc.api.page.rendering import Renderer
from novasvc.api.responses import api_error, make_app
from novasvc.api.tokens import ADMIN

_OWN_PATH = re.compile(r"/(?:leases|s/[0-9]{1,18}|node/[0-9a-f-]{1,36})?(?:\?[\x21-\x7e]*)?")
_MAX_PATH = 1000


@attrs.frozen
class Pages:
    """Renders whole pages.

    :param renderer: the templates.
    :param access: authentication.
    """

    renderer: Renderer
    access: Access

    def page(self, request: Any, template: str, caller: Caller | None, status: int = 200, **names: Any) -> bytes:
        """Return a page for a caller, and set status and type of the response.

        :param caller: None if nobody is logged in.
        :param names: variables of the template.
        """
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        common = {
            "caller": caller,
            "may_change": caller is not None and caller.scope == ADMIN,
            "csrf_token": "" if caller is None else self.access.csrf_token(caller),
            "can_log_out": caller is not None and caller.auth == "session",
        }
        return self.renderer.text(template, **common, **names).encode("utf-8", "replace")

    def error(self, request: Any, failure: Failure) -> bytes:
        """Return an error page, or a redirect to the login for a caller that has to log in."""
        error = api_error(request, failure)
        if error.status == 401 and request.method in {b"GET", b"HEAD"}:  # noqa: PLR2004
            request.redirect(f"/login?next={quote(local_path(request.uri.decode('latin-1')), safe='')}".encode())
            return b""
        for name, value in error.headers.items():
            if name != "WWW-Authenticate":
                request.setHeader(name.encode(), value.encode("latin-1", "replace"))
        try:
            caller = self.access.caller(request)
        except ValueError:
            caller = None
        return self.page(request, "error.html", caller, error.status, error=error)


class _HasPages(Protocol):
    pages: Pages


def make_page_app() -> Klein:
    """Make the Klein app of a class with an attribute ``pages``. All errors of its routes become pages."""

    def error_page(resource: _HasPages, request: Any, failure: Failure) -> bytes:
        return resource.pages.error(request, failure)

    return make_app(error_page)


def local_path(path: str) -> str:
    """Return the path if it is one of our pages, otherwise "/", to prevent open redirects."""
    return path if len(path) <= _MAX_PATH and _OWN_PATH.fullmatch(path) else "/"
