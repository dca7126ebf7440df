"""Sessions of browsers: signed cookies, and the CSRF tokens of forms."""

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
from novasvc.node.errors import DirectoryError
from novasvc.node.runtime import make_directory

COOKIE = "novasvc_session"
LIFETIME = 12 * 3600.0
"""Seconds until a browser has to log in again."""

_KEY_SIZE = 32
_MAX_COOKIE = 1024
"""Characters of a cookie; a longer one is invalid."""


@attrs.frozen
class Session:
    """The contents of a cookie.

    :param name: name of the token that the session began with, or "login link".
    :param scope: "read" or "admin".
    :param expires: seconds since 1970.
    :param id: unique id.
    :param token: fingerprint of the token that the session began with; "" for a login link.
    """

    name: str
    scope: str
    expires: float
    id: str
    token: str = ""


class Sessions:
    """Signs and verifies cookies and CSRF tokens (HMAC-SHA256). No session is stored on the server.

    :param key: 32 octets, the same in all workers and after a restart.
    :param now: returns seconds since 1970.
    """

    def __init__(self, key: bytes, now: Callable[[], float]) -> None:
        self._key = key
        self._now = now

    def begin(self, name: str, scope: str, token: str = "") -> str:
        """Return the cookie of a new session.

        :param token: fingerprint of the token that the session begins with; "" for a login link.
        """
        session = Session(name, scope, self._now() + LIFETIME, secrets.token_urlsafe(12), token)
        payload = _encode(json.dumps(attrs.asdict(session)).encode())
        return f"{payload}.{self._sign('session', payload)}"

    def read(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if the signature is invalid, or it has expired."""
        payload, _, signature = cookie.partition(".")
        # Nothing of a cookie is decoded before its signature is verified; compare_digest takes constant time.
        if len(cookie) > _MAX_COOKIE or not hmac.compare_digest(
            self._sign("session", payload).encode(), signature.encode("utf-8", "surrogateescape")
        ):
            return None
        try:
            session = Session(**json.loads(base64.urlsafe_b64decode(payload + "==")))
        except TypeError:  # written by another version
            return None
        return session if session.expires > self._now() and session.scope in SCOPES else None

    def csrf_token(self, session_id: str) -> str:
        """Return the CSRF token of a session's forms."""
        return self._sign("form", session_id)

    def verify_csrf_token(self, session_id: str, csrf_token: str) -> bool:
        """Return whether a CSRF token is that of a session."""
        return hmac.compare_digest(self.csrf_token(session_id).encode(), csrf_token.encode("utf-8", "surrogateescape"))

    def _sign(self, purpose: str, text: str) -> str:
        # The purpose separates the two uses of the key: a cookie's signature must not be a valid CSRF token.
        message = f"{purpose}:{text}".encode("utf-8", "surrogateescape")
        return _encode(hmac.new(self._key, message, hashlib.sha256).digest())


def session_key(state_dir: Path) -> bytes:
    """Return the signing key that all API processes of this host share; the first one creates it.

    :raises DirectoryError: the file cannot be created or read.
    """
    make_directory(state_dir)
    path = state_dir / "api.key"
    try:
        # Written elsewhere and linked, which is atomic: another process must not read half of it.
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
        remedy = "make it readable for this user only, or remove it"
        raise DirectoryError(f"session key {str(path)!r}", error.strerror or str(error), remedy) from error
    if len(key) != _KEY_SIZE:
        raise DirectoryError(
            f"session key {str(path)!r}", f"it has {len(key)} bytes instead of {_KEY_SIZE}", "remove it"
        )
    return key


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
