"""Login links: single-use codes that expire."""

import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from novasvc.config import Settings
from novasvc.node.errors import DirectoryError
from novasvc.node.runtime import make_directory

LIFETIME = 3600.0
"""Seconds until an unused link expires."""

_MAX_LINKS = 100
"""Unused links; the oldest are removed first."""

# Note [Links are files]
#
# Any worker may get the request for a link, and the one that issued it may have been replaced. All processes of a host
# share the state directory: a link is a file there, named by the digest of its code. Using a link removes its file, and
# the system lets only one process succeed with that.


class LoginLinks:
    """The login links of this host.

    :param directory: a directory for login links only; created when needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the login links in the state directory of the settings."""
        return cls(settings.state_dir / "logins")

    def issue(self) -> str:
        """Return a new code, 43 URL-safe characters.

        :raises DirectoryError: its file cannot be created.
        """
        make_directory(self._directory)
        code = secrets.token_urlsafe(32)
        try:
            self._sweep()
            os.close(os.open(self._file(code), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            remedy = "run this as the user that the API runs as"
            path = str(self._directory)
            raise DirectoryError(f"directory of login links {path!r}", error.strerror or str(error), remedy) from error
        return code

    def use(self, code: str) -> bool:
        """Return whether a code is valid, and invalidate it."""
        file = self._file(code)
        try:
            issued = file.stat().st_mtime
            file.unlink()  # of several processes, one succeeds: see Note [Links are files]
        except OSError:
            return False
        return time.time() - issued <= LIFETIME

    def _file(self, code: str) -> Path:
        return self._directory / hashlib.sha256(code.encode("utf-8", "surrogateescape")).hexdigest()

    def _sweep(self) -> None:
        """Remove expired links, and the oldest beyond _MAX_LINKS."""
        links = []
        for file in self._directory.iterdir():
            with suppress(OSError):
                links.append((file.stat().st_mtime, file))
        links.sort()
        expired = time.time() - LIFETIME
        for number, (issued, file) in enumerate(links):
            if issued < expired or number <= len(links) - _MAX_LINKS:
                with suppress(OSError):
                    file.unlink()


def page_url(settings: Settings, port: int | None = None) -> str:
    """Return the URL of the page.

    :param port: port of the API; None takes the setting.
    """
    scheme = "https" if settings.api_use_ssl else "http"
    address = settings.api_listen
    if address in {"0.0.0.0", "::"}:  # noqa: S104 - compared
        address = settings.host
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}:{port or settings.api_listen_port}/"


def login_url(settings: Settings, login_links: LoginLinks, port: int | None = None) -> str:
    """Return a link that logs one browser in, once.

    :param port: port of the API; None takes the setting.
    :raises DirectoryError: the state directory cannot be written.
    """
    return f"{page_url(settings, port)}login?code={login_links.issue()}"
