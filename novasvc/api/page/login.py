"""Where a browser logs in and out."""

from collections import Counter
from typing import Any

from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.api.access import Access, client_address
from novasvc.api.answers import scheme_of
from novasvc.api.errors import APIError
from novasvc.api.page.frame import Frame, inner_path
from novasvc.api.page.stream import Streams
from novasvc.api.sessions import COOKIE

_log = Logger()

WAIT = 1.0
"""Seconds that somebody waits for a refusal: nobody guesses fast."""
_WAITING = 100
"""Refusals that wait at a time; those beyond are not delayed."""
_OF_ONE = 10
"""Refusals of one address that wait at a time; what it tries meanwhile is not looked at."""
_LONGEST = 512


class Login:
    """Serves ``/login`` and ``/logout``.

    :param access: knows who may.
    :param streams: end with their session.
    """

    app = Klein()

    def __init__(self, access: Access, streams: Streams, frame: Frame, clock: IReactorTime) -> None:
        self._access = access
        self._streams = streams
        self._frame = frame
        self._clock = clock
        self._waiting: Counter[str] = Counter()

    @app.route("/login", methods=["GET"])
    def ask(self, request: Any) -> bytes:
        """Ask for a token; for a link, show a button: whoever only looks at a link does not use it up."""
        if not self._access.guarded:
            return _lead(request, "/")
        return self._form(request, 200, code=_field(request, "code"))

    @app.route("/login", methods=["POST"])
    async def log_in(self, request: Any) -> bytes:
        """Begin a session."""
        self._access.check_origin(request)
        if not self._access.guarded:
            return _lead(request, "/")
        client = client_address(request)
        if self._waiting[client] >= _OF_ONE:
            raise APIError(429, "too many tries to log in; try again in a moment", {"Retry-After": "5"})
        code = _field(request, "code")
        cookie = self._access.log_in(code=code, token=_field(request, "token"))
        if cookie is None:
            _log.warn("somebody at {client} did not get in", client=client)
            await self._delay(client)
            link = "This link was used already, or is too old. `novasvc login` prints another; a token works, too."
            return self._form(request, 401, wrong=link if code else "This is not one of the tokens.")
        _log.info("somebody at {client} logged in", client=client)
        request.responseHeaders.addRawHeader(b"set-cookie", _cookie(request, cookie))
        return _lead(request, inner_path(_field(request, "next") or "/"))

    async def _delay(self, client: str) -> None:
        """Have somebody wait for a refusal; others get in meanwhile."""
        if self._waiting.total() >= _WAITING:
            return
        self._waiting[client] += 1
        try:
            await deferLater(self._clock, WAIT)
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]

    @app.route("/logout", methods=["POST"])
    def log_out(self, request: Any) -> bytes:
        """End the session in this browser, and what it watches."""
        caller = self._access.require(request)
        self._access.check_form(caller, _field(request, "mark"))
        if caller.way == "session":
            self._streams.end(caller.session)
        gone = f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"
        request.responseHeaders.addRawHeader(b"set-cookie", _cookie(request, gone))
        return _lead(request, "/login")

    def _form(self, request: Any, status: int, *, code: str = "", wrong: str = "") -> bytes:
        after = inner_path(_field(request, "next") or "/")
        return self._frame.page(request, "login.html", None, status, code=code, wrong=wrong, after=after)

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return self._frame.refuse(request, failure)


def _lead(request: Any, path: str) -> bytes:
    request.setResponseCode(303)
    request.setHeader(b"location", path.encode())
    return b""


def _cookie(request: Any, cookie: str) -> bytes:
    return (f"{cookie}; Secure" if scheme_of(request) == "https" else cookie).encode()


def _field(request: Any, name: str) -> str:
    text: str = request.args.get(name.encode(), [b""])[0].decode("utf-8", "replace")[:_LONGEST]
    return text.strip()
