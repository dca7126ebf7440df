"""Authentication and authorization of callers, and the audit log."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.logger import Logger

from novasvc.api.errors import APIError
from novasvc.api.login_links import LoginLinks
from novasvc.api.responses import scheme_of
from novasvc.api.sessions import COOKIE, LIFETIME, Sessions
from novasvc.api.tokens import ADMIN, READ, Token, find_token, token_fingerprint
from novasvc.telemetry import flight

_log = Logger()

_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_LOGGED = 300
"""Characters of callers' text in a log line."""
CANCELLED_CHANGE = "cancelled by the client; the change may have been made"
"""The outcome in the audit log if a client disconnects during a change."""


@attrs.frozen
class Caller:
    """An authenticated caller.

    :param name: name of the token or of the session, or "local".
    :param scope: "read" or "admin".
    :param auth: how it was authenticated: "loopback", "token" or "session".
    :param session: session id, for CSRF tokens; "" for a token.
    """

    name: str
    scope: str
    auth: str
    session: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.auth})"


_LOCAL_CALLER = Caller("local", ADMIN, "loopback", "loopback")


class Access:
    """Authenticates and authorizes requests.

    Without tokens every request is an administrator's: for an API on loopback only. With tokens a request needs one, in
    ``X-Auth-Token`` or ``Authorization: Bearer``, or the cookie of a session.

    :param tokens: empty disables authentication.
    :param sessions: the signer of session cookies.
    :param login_links: the codes of login links.
    :param allowed_hosts: host names, in lower case, that a Host header may have without tokens; empty allows any.
    """

    # Note [Cross-site requests]
    #
    # A browser sends whatever any page on the web tells it to, to loopback as well, with our cookie. Three things
    # prevent cross-site request forgery: an unsafe request without a token must come from our own origin (Origin or
    # Sec-Fetch-Site says so, and no page can forge these); the cookie is SameSite=Strict; and a form has a CSRF token
    # that only our own pages know. A page whose name resolves to 127.0.0.1 (DNS rebinding) has an origin that matches
    # its Host, so without tokens the Host itself must be one of ours.

    def __init__(
        self,
        tokens: Sequence[Token],
        sessions: Sessions,
        login_links: LoginLinks,
        allowed_hosts: frozenset[str] = _LOOPBACK_NAMES,
    ) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._allowed_hosts = allowed_hosts
        self.login_links = login_links

    @property
    def requires_login(self) -> bool:
        """Whether callers have to authenticate."""
        return bool(self._tokens)

    def caller(self, request: Any) -> Caller | None:
        """Return the authenticated caller, or None.

        :param request: a :class:`novasvc.http.request.Request`, or a FastRequest.
        """
        if not self._tokens:
            return _LOCAL_CALLER if self._is_allowed_host(request) else None
        presented = presented_token(request)
        if presented is not None:
            token = find_token(self._tokens, presented)
            return None if token is None else Caller(token.name, token.scope, "token")
        cookie = request.getCookie(COOKIE.encode())
        session = None if cookie is None else self._sessions.read(cookie.decode("latin-1"))
        if session is None:
            return None
        scope = session.scope
        if session.token:
            # The token may have another scope by now, or have been removed from the file, which ends the session.
            token = next((known for known in self._tokens if token_fingerprint(known) == session.token), None)
            if token is None:
                return None
            scope = token.scope
        return Caller(session.name, scope, "session", session.id)

    def _is_allowed_host(self, request: Any) -> bool:
        """Return whether the Host header names this server. See Note [Cross-site requests]."""
        host = request.getHeader(b"host")
        return not self._allowed_hosts or not host or _hostname(host) in self._allowed_hosts

    def require(self, request: Any, scope: str = READ) -> Caller:
        """Return the caller if it is authenticated and has a scope.

        :param scope: "read" or "admin".
        :raises APIError: 401, it is not authenticated; 403, its scope, its Host or its origin does not allow this.
        """
        caller = self.caller(request)
        if caller is None and not self._tokens:
            raise APIError(403, "without api_token_file this API accepts only the Host names of loopback")
        if caller is None:
            if request.method not in _SAFE:
                method, path = request.method.decode("latin-1"), request.path.decode("latin-1")
                audit(request, None, method, path, "no valid token or session")
            raise APIError(
                401,
                "The request you have made requires authentication.",
                {"WWW-Authenticate": f'Keystone uri="{scheme_of(request)}://{_header(request, "host")}/"'},
            )
        if scope == ADMIN and caller.scope != ADMIN:
            raise APIError(403, f"this requires the scope admin; {caller.name} has {caller.scope}")
        if request.method not in _SAFE and caller.auth != "token":
            self.check_origin(request)
        return caller

    def check_origin(self, request: Any) -> None:
        """Reject a cross-site request. See Note [Cross-site requests].

        :raises APIError: 403, a page of another site sent it.
        """
        if not _is_same_origin(request):
            raise APIError(403, "cross-site requests may not change anything")

    def log_in(self, *, code: str = "", token: str = "") -> str | None:
        """Begin a session by the code of a login link, or by a token.

        :return: a value of Set-Cookie, without Secure; None if code or token is not valid.
        """
        if code:
            if not self.login_links.use(code):
                return None
            value = self._sessions.begin("login link", ADMIN)
        else:
            found = find_token(self._tokens, token)
            if found is None:
                return None
            value = self._sessions.begin(found.name, found.scope, token_fingerprint(found))
        # RFC 6265, 4.1.2: without Domain a browser returns it to this host only, and HttpOnly hides it from scripts.
        # SameSite: see Note [Cross-site requests]. The page adds Secure, because only a request tells if TLS is used.
        return f"{COOKIE}={value}; Path=/; Max-Age={LIFETIME:.0f}; HttpOnly; SameSite=Strict"

    def csrf_token(self, caller: Caller) -> str:
        """Return the CSRF token of a caller's forms."""
        return self._sessions.csrf_token(caller.session)

    def check_csrf_token(self, caller: Caller, csrf_token: str) -> None:
        """Reject a form that is not from one of our pages.

        :raises APIError: 403, its CSRF token is not that of the caller's session.
        """
        if caller.auth != "token" and not self._sessions.verify_csrf_token(caller.session, csrf_token):
            raise APIError(403, "this form does not belong to your session; reload the page")


def presented_token(request: Any) -> str | None:
    """Return the token of a request, or None."""
    token = _header(request, "x-auth-token")
    scheme, _, bearer = _header(request, "authorization").partition(" ")
    return token or (bearer.strip() if scheme.lower() == "bearer" else None)


def audit(request: Any, caller: Caller | None, action: str, target: str, outcome: str = "done") -> None:
    """Write a line to the audit log.

    :param caller: None for an unauthenticated request.
    :param action: a verb: "disable", "call".
    :param target: the service or the method that it acts on.
    :param outcome: "done", or the reason for the failure.
    """
    fields = {
        "who": "unauthenticated" if caller is None else str(caller),
        "action": action,
        "target": target[:_MAX_LOGGED],
        "outcome": outcome[:_MAX_LOGGED],
        "client": client_address(request),
    }
    flight.note("audit", "{who} from {client}: {action} {target}: {outcome}".format(**fields))
    _log.info("audit: {who} from {client}: {action} {target}: {outcome}", audit=True, **fields)


def client_address(request: Any) -> str:
    """Return the client's IP address."""
    peer = request.getClientAddress()
    return str(getattr(peer, "host", None) or "a unix socket")


def _is_same_origin(request: Any) -> bool:
    """Return whether a request is not cross-site. See Note [Cross-site requests]."""
    # Programs other than browsers send neither header.
    site = _header(request, "sec-fetch-site")
    if site:
        return site in {"same-origin", "none"}
    origin = _header(request, "origin")
    # Without the scheme: behind a proxy that terminates TLS, the browser's differs from ours.
    return not origin or origin.partition("://")[2] == _header(request, "host")


@lru_cache(maxsize=256)
def _hostname(host: bytes) -> str:
    """Return the name in a Host header, in lower case, without the port; "" if it has none."""
    try:
        return (urlsplit(f"//{host.decode('latin-1')}").hostname or "").lower()
    except ValueError:
        return ""


def _header(request: Any, name: str) -> str:
    value: str = (request.getHeader(name.encode()) or b"").decode("latin-1")
    return value
