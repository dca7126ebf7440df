"""Login and logout."""

from collections import Counter
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from novasvc.api.access import Access, client_address
from novasvc.api.errors import APIError
from novasvc.api.openapi import FORM_RESPONSES, STRING, content, operation, parameter
from novasvc.api.page.pages import Pages, local_path, make_page_app
from novasvc.api.page.stream import EventStreams
from novasvc.api.responses import scheme_of
from novasvc.api.sessions import COOKIE

_log = Logger()

DELAY = 1.0
"""Seconds by which the response to a failed login is delayed, to slow down guessing."""
_MAX_DELAYED = 100
"""Concurrently delayed responses; further ones are not delayed."""
_MAX_DELAYED_PER_CLIENT = 10
"""Delayed responses of one client; further attempts get 429 and are not checked."""
_MAX_FIELD = 512


class LoginPage:
    """Serves ``/login`` and ``/logout``.

    :param access: verification of tokens and codes.
    :param streams: the event streams, which end with their session.
    """

    app = make_page_app()

    def __init__(self, access: Access, streams: EventStreams, pages: Pages, clock: IReactorTime) -> None:
        self._access = access
        self._streams = streams
        self.pages = pages
        self._clock = clock
        self._waiting: Counter[str] = Counter()

    @app.route("/login", methods=["GET"])
    @operation(
        "The login form",
        {200: content("The form.", html=STRING), 303: {"description": "Authentication is disabled."}},
        parameters=[parameter("code", "query", "Of a login link.")],
        public=True,
    )
    def ask(self, request: Any) -> bytes:
        """Show the form; for a login link a button, because link previews send a GET and must not use up the link."""
        if not self._access.requires_login:
            return _redirect(request, "/")
        return self._form(request, 200, code=_field(request, "code"))

    @app.route("/login", methods=["POST"])
    @operation("Log in with a code or a token", FORM_RESPONSES, public=True)
    async def log_in(self, request: Any) -> bytes:
        """Begin a session."""
        self._access.check_origin(request)
        if not self._access.requires_login:
            return _redirect(request, "/")
        client = client_address(request)
        if self._waiting[client] >= _MAX_DELAYED_PER_CLIENT:
            raise APIError(429, "too many login attempts; try again in a moment", {"Retry-After": "5"})
        code = _field(request, "code")
        cookie = self._access.log_in(code=code, token=_field(request, "token"))
        if cookie is None:
            _log.warn("login failed from {client}", client=client)
            await self._delay(client)
            link = "This link was used already, or has expired. `novasvc login` prints a new one; a token works, too."
            return self._form(request, 401, wrong=link if code else "This token is not valid.")
        _log.info("login from {client}", client=client)
        request.responseHeaders.addRawHeader(b"set-cookie", _cookie(request, cookie))
        return _redirect(request, local_path(_field(request, "next") or "/"))

    async def _delay(self, client: str) -> None:
        """Delay the response to a failed login."""
        if self._waiting.total() >= _MAX_DELAYED:
            return
        self._waiting[client] += 1
        try:
            await deferLater(self._clock, DELAY)
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]

    @app.route("/logout", methods=["POST"])
    @operation("Log out", {**FORM_RESPONSES, 303: {"description": "Redirects to the login."}})
    def log_out(self, request: Any) -> bytes:
        """End the session in this browser, and its event streams."""
        caller = self._access.require(request)
        self._access.check_csrf_token(caller, _field(request, "mark"))
        if caller.auth == "session":
            self._streams.end(caller.session)
        expired = f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"
        request.responseHeaders.addRawHeader(b"set-cookie", _cookie(request, expired))
        return _redirect(request, "/login")

    def _form(self, request: Any, status: int, *, code: str = "", wrong: str = "") -> bytes:
        after = local_path(_field(request, "next") or "/")
        return self.pages.page(request, "login.html", None, status, code=code, wrong=wrong, after=after)


def _redirect(request: Any, path: str) -> bytes:
    request.setResponseCode(303)
    request.setHeader(b"location", path.encode())
    return b""


def _cookie(request: Any, cookie: str) -> bytes:
    return (f"{cookie}; Secure" if scheme_of(request) == "https" else cookie).encode()


def _field(request: Any, name: str) -> str:
    text: str = request.args.get(name.encode(), [b""])[0].decode("utf-8", "replace")[:_MAX_FIELD]
    return text.strip()
