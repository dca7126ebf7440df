"""What all pages have: who looks, where they log in, and how a refusal looks."""

import re
from typing import Any
from urllib.parse import quote

import attrs
from twisted.python.failure import Failure

from novasvc.api.access import Access, Caller
from novasvc.api.answers import api_error
from novasvc.api.page.rendering import Renderer
from novasvc.api.tokens import ADMIN

_OURS = re.compile(r"/(?:node/[0-9a-f-]{1,36})?(?:\?[\x21-\x7e]*)?")
_LONGEST = 1000


@attrs.frozen
class Frame:
    """Makes whole pages.

    :param renderer: fills templates.
    :param access: knows who looks.
    """

    renderer: Renderer
    access: Access

    def page(self, request: Any, template: str, caller: Caller | None, status: int = 200, **names: Any) -> bytes:
        """Return a page for somebody, and set the answer's status and type.

        :param caller: None is somebody who has not logged in.
        """
        frame = {
            "caller": caller,
            "may_change": caller is not None and caller.scope == ADMIN,
            "mark": "" if caller is None else self.access.form_mark(caller),
            "can_leave": caller is not None and caller.way == "session",
        }
        return self.renderer.page(request, template, status, **frame, **names)

    def refuse(self, request: Any, failure: Failure) -> bytes:
        """Return a page that says what went wrong; who has to log in is led there."""
        error = api_error(request, failure)
        if error.status == 401 and request.method in {b"GET", b"HEAD"}:  # noqa: PLR2004
            request.redirect(f"/login?next={quote(inner_path(request.uri.decode('latin-1')), safe='')}".encode())
            return b""
        for name, value in error.headers.items():
            if name != "WWW-Authenticate":
                request.setHeader(name.encode(), value.encode("latin-1", "replace"))
        try:
            caller = self.access.caller(request)
        except ValueError:
            caller = None
        return self.page(request, "refused.html", caller, error.status, error=error)


def inner_path(path: str) -> str:
    """Return a path that a browser may be led to: one of a page of ours, or "/"."""
    return path if len(path) <= _LONGEST and _OURS.fullmatch(path) else "/"
