"""Login links: a code that works once, and soon or never."""

import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from novasvc.config import Settings
from novasvc.errors import DirectoryError
from novasvc.node.runtime import make_directory

LIFETIME = 3600.0
"""Seconds that a link may be used."""

_MOST = 100
"""Links that wait to be used."""

# Note [Links are files]
#
# Which worker is asked to honour a link is chance, and the one that printed it may have been replaced. What
# all processes of a host share is the state directory: a link is a file there, named by the digest of its
# code. To use it is to remove it, and the system lets one process alone do that.


class Logins:
    """The login links of this host.

    :param directory: for them alone; made when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the links of the host that has these settings."""
        return cls(settings.state_dir / "logins")

    def issue(self) -> str:
        """Return a new code, 43 characters that fit into a URL.

        :raises DirectoryError: it cannot be kept there.
        """
        make_directory(self._directory)
        code = secrets.token_urlsafe(32)
        try:
            self._sweep()
            os.close(os.open(self._file(code), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            remedy = "run this as the user of the API"
            path = str(self._directory)
            raise DirectoryError("directory of login links", path, error.strerror or str(error), remedy) from error
        return code

    def use(self, code: str) -> bool:
        """Tell whether the code is good; it is not any more afterwards."""
        file = self._file(code)
        try:
            issued = file.stat().st_mtime
            file.unlink()
        except OSError:
            return False
        return time.time() - issued <= LIFETIME

    def _file(self, code: str) -> Path:
        return self._directory / hashlib.sha256(code.encode("utf-8", "surrogateescape")).hexdigest()

    def _sweep(self) -> None:
        """Remove the links that are too old, and the oldest if there are too many."""
        links = []
        for file in self._directory.iterdir():
            with suppress(OSError):
                links.append((file.stat().st_mtime, file))
        links.sort()
        too_old = time.time() - LIFETIME
        for number, (issued, file) in enumerate(links):
            if issued < too_old or number <= len(links) - _MOST:
                with suppress(OSError):
                    file.unlink()


def page_url(settings: Settings, port: int | None = None) -> str:
    """Return where a browser finds the page.

    :param port: that the API listens on; None is the one of the settings.
    """
    scheme = "https" if settings.api_use_ssl else "http"
    address = settings.api_listen
    if address in {"0.0.0.0", "::"}:  # noqa: S104 - compared
        address = settings.host
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}:{port or settings.api_listen_port}/"


def login_url(settings: Settings, logins: Logins, port: int | None = None) -> str:
    """Return a link that logs one browser in, once.

    :param port: as above.
    :raises DirectoryError: no link can be kept in the state directory.
    """
    return f"{page_url(settings, port)}login?code={logins.issue()}"
