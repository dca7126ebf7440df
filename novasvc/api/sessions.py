"""Sessions of browsers: a signed cookie, and the mark of a form that came from us."""

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import attrs

from novasvc.api.tokens import SCOPES
from novasvc.errors import DirectoryError
from novasvc.node.runtime import make_directory

COOKIE = "novasvc_session"
LIFETIME = 12 * 3600.0
"""Seconds until a browser has to log in again."""

_KEY_SIZE = 32
_LONGEST = 1024
"""Characters in a cookie that is looked at."""


@attrs.frozen
class Session:
    """What a cookie says.

    :param name: who logged in, or by what: "login link", or a token's name.
    :param scope: "read" or "admin".
    :param expires: seconds since 1970.
    :param id: tells sessions of one name apart.
    :param token: the mark of the token that it was begun with; "" for a login link.
    """

    name: str
    scope: str
    expires: float
    id: str
    token: str = ""


class Sessions:
    """Signs cookies and forms, and knows its own again. No session is kept: the cookie is all there is.

    :param key: 32 octets, the same in all workers and after a restart.
    :param now: returns seconds since 1970.
    """

    def __init__(self, key: bytes, now: Callable[[], float]) -> None:
        self._key = key
        self._now = now

    def begin(self, name: str, scope: str, token: str = "") -> str:
        """Return the cookie's value for who has logged in.

        :param token: its mark, if they had one.
        """
        session = Session(name, scope, self._now() + LIFETIME, secrets.token_urlsafe(12), token)
        payload = _encode(json.dumps(attrs.asdict(session)).encode())
        return f"{payload}.{self._sign('session', payload)}"

    def read(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if it is none of ours, or has expired."""
        payload, _, signature = cookie.partition(".")
        if len(cookie) > _LONGEST or not hmac.compare_digest(
            self._sign("session", payload).encode(), signature.encode("utf-8", "surrogateescape")
        ):
            return None
        try:
            session = Session(**json.loads(base64.urlsafe_b64decode(payload + "==")))
        except TypeError:  # of another version of ours
            return None
        return session if session.expires > self._now() and session.scope in SCOPES else None

    def form_mark(self, session_id: str) -> str:
        """Return what a form carries to prove that it came from a page of this session."""
        return self._sign("form", session_id)

    def knows_form(self, session_id: str, mark: str) -> bool:
        """Tell whether a form came from a page of this session."""
        return hmac.compare_digest(self.form_mark(session_id).encode(), mark.encode("utf-8", "surrogateescape"))

    def _sign(self, purpose: str, text: str) -> str:
        message = f"{purpose}:{text}".encode("utf-8", "surrogateescape")
        return _encode(hmac.new(self._key, message, hashlib.sha256).digest())


def session_key(state_dir: Path) -> bytes:
    """Return the key that all API processes of this host sign with; the first one makes it.

    :raises DirectoryError: the file cannot be made or read.
    """
    make_directory(state_dir)
    path = state_dir / "api.key"
    try:
        # Whole or not there: a process that comes meanwhile must not read half of it.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_SIZE))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        key = path.read_bytes()
    except OSError as error:
        remedy = "make it readable for this user alone, or remove it"
        raise DirectoryError("key of sessions", str(path), error.strerror or str(error), remedy) from error
    if len(key) != _KEY_SIZE:
        raise DirectoryError("key of sessions", str(path), f"it has {len(key)} octets, not {_KEY_SIZE}", "remove it")
    return key


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
