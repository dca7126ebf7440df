"""Who asks, and what they may do."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.logger import Logger

from novasvc.api.answers import scheme_of
from novasvc.api.errors import APIError
from novasvc.api.logins import Logins
from novasvc.api.sessions import COOKIE, LIFETIME, Sessions
from novasvc.api.tokens import ADMIN, READ, Token, find, mark
from novasvc.telemetry import flight

_log = Logger()

_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing."""
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_LONGEST = 300
"""Characters of what callers wrote, in the log."""


@attrs.frozen
class Caller:
    """Who asks.

    :param name: of the token or the session, or "local".
    :param scope: "read" or "admin".
    :param way: "loopback", "token" or "session".
    :param session: its id, for forms; "" for who has a token.
    """

    name: str
    scope: str
    way: str
    session: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.way})"


class Access:
    """Lets requests in.

    Without tokens everybody is let in, as an administrator, which is for loopback alone. With tokens a
    request brings one, in ``X-Auth-Token`` or ``Authorization: Bearer``, or the cookie of a session.

    :param tokens: empty lets everybody in.
    :param sessions: knows the cookies.
    :param logins: knows the login links.
    :param names: by which a browser may call us, lower case; empty is any name.
    """

    # Note [Other people's pages]
    #
    # A browser sends what any page on the web tells it to, to loopback as well, and brings our cookie along.
    # Three things keep such a page from acting through its reader: a request by cookie, or by nothing at all, that
    # changes something has to come from our own origin (Origin, or Sec-Fetch-Site, says so, and no page can forge
    # them); the cookie is SameSite=Strict; and a form carries a mark that only our own pages have. A page whose name
    # was made to point at 127.0.0.1 (DNS rebinding) has an origin that fits its Host, so without tokens the Host
    # itself has to be one of ours.

    def __init__(
        self, tokens: Sequence[Token], sessions: Sessions, logins: Logins, names: frozenset[str] = _LOCAL_NAMES
    ) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._names = names
        self.logins = logins

    @property
    def guarded(self) -> bool:
        """Whether callers have to say who they are."""
        return bool(self._tokens)

    def caller(self, request: Any) -> Caller | None:
        """Return who asks; None if they do not say, or not truly.

        :param request: of twisted.web.
        """
        if not self._tokens:
            return Caller("local", ADMIN, "loopback", "loopback") if self._is_called_by_name(request) else None
        given = given_token(request)
        if given is not None:
            token = find(self._tokens, given)
            return None if token is None else Caller(token.name, token.scope, "token")
        cookie = request.getCookie(COOKIE.encode())
        session = None if cookie is None else self._sessions.read(cookie.decode("latin-1"))
        if session is None:
            return None
        scope = session.scope
        if session.token:
            # A session is worth what its token is worth now: nothing, if that was taken out of the file.
            token = next((known for known in self._tokens if mark(known) == session.token), None)
            if token is None:
                return None
            scope = token.scope
        return Caller(session.name, scope, "session", session.id)

    def _is_called_by_name(self, request: Any) -> bool:
        """Tell whether a request's Host is one of ours. See Note [Other people's pages]."""
        host = _header(request, "host")
        return not self._names or not host or _hostname(host) in self._names

    def require(self, request: Any, scope: str = READ) -> Caller:
        """Return who asks, if they may.

        :param scope: "read" or "admin".
        :raises APIError: 401 if nobody says who they are, 403 if it is not for them.
        """
        if not self._tokens and not self._is_called_by_name(request):
            raise APIError(403, "without tokens this API answers only to names of loopback; see api_token_file")
        caller = self.caller(request)
        if caller is None:
            if request.method not in _SAFE:
                method, path = request.method.decode("latin-1"), request.path.decode("latin-1")
                audit(request, None, method, path, "no token that is known, and no session")
            raise APIError(
                401,
                "The request you have made requires authentication.",
                {"WWW-Authenticate": f'Keystone uri="{scheme_of(request)}://{_header(request, "host")}/"'},
            )
        if scope == ADMIN and caller.scope != ADMIN:
            raise APIError(403, f"{caller.name} may read, and this takes the scope admin")
        if request.method not in _SAFE and caller.way != "token":
            self.check_origin(request)
        return caller

    def check_origin(self, request: Any) -> None:
        """See that no other site's page sent this. See Note [Other people's pages].

        :raises APIError: 403, one did.
        """
        if not _from_us(request):
            raise APIError(403, "this came from another site's page; only our own pages may change anything")

    def log_in(self, *, code: str = "", token: str = "") -> str | None:
        """Return the cookie (a value of Set-Cookie, without Secure) for a code of a link, or a token; None refuses."""
        if code:
            if not self.logins.use(code):
                return None
            value = self._sessions.begin("login link", ADMIN)
        else:
            found = find(self._tokens, token)
            if found is None:
                return None
            value = self._sessions.begin(found.name, found.scope, mark(found))
        return f"{COOKIE}={value}; Path=/; Max-Age={LIFETIME:.0f}; HttpOnly; SameSite=Strict"

    def form_mark(self, caller: Caller) -> str:
        """Return what a form for this caller carries."""
        return self._sessions.form_mark(caller.session)

    def check_form(self, caller: Caller, mark: str) -> None:
        """See that a form came from a page of ours.

        :raises APIError: 403, it did not.
        """
        if caller.way != "token" and not self._sessions.knows_form(caller.session, mark):
            raise APIError(403, "this form is not from a page of your session; load the page again")


def given_token(request: Any) -> str | None:
    """Return the token that a request brings, or None."""
    token = _header(request, "x-auth-token")
    scheme, _, bearer = _header(request, "authorization").partition(" ")
    return token or (bearer.strip() if scheme.lower() == "bearer" else None)


def audit(request: Any, caller: Caller | None, action: str, target: str, outcome: str = "done") -> None:
    """Log a change: who, what, from where.

    :param caller: None is somebody who did not say who they are, or not rightly.
    :param action: a verb: "disable", "call".
    :param target: what it is done to.
    :param outcome: "done", or why not.
    """
    fields = {
        "who": "nobody known" if caller is None else str(caller),
        "action": action,
        "target": target[:_LONGEST],
        "outcome": outcome[:_LONGEST],
        "client": client_address(request),
    }
    flight.note("audit", "{who} from {client}: {action} {target}: {outcome}".format(**fields))
    _log.info("audit: {who} from {client}: {action} {target}: {outcome}", audit=True, **fields)


def client_address(request: Any) -> str:
    """Return where a request came from."""
    peer = request.getClientAddress()
    return str(getattr(peer, "host", None) or "a unix socket")


def _from_us(request: Any) -> bool:
    """Tell whether no other site's page sent this; programs send neither header. See Note [Other people's pages]."""
    site = _header(request, "sec-fetch-site")
    if site:
        return site in {"same-origin", "none"}
    origin = _header(request, "origin")
    # Not the scheme: a proxy that speaks TLS for us has another one.
    return not origin or origin.partition("://")[2] == _header(request, "host")


def _hostname(host: str) -> str:
    """Return the name in a Host header, lower case; "" if there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _header(request: Any, name: str) -> str:
    value: str = (request.getHeader(name.encode()) or b"").decode("latin-1")
    return value
