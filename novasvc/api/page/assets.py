"""Stylesheet, scripts and icon: served under a name made of what is in them, so a browser may keep them."""

import hashlib
from importlib.resources import files
from typing import Any

from klein import Klein
from twisted.python.failure import Failure

from novasvc.api.answers import answer_error
from novasvc.api.errors import APIError

_TYPES = {
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


def _load() -> dict[str, bytes]:
    # Their end tells what they are; an editor's leavings beside them are none of ours.
    return {
        file.name: file.read_bytes()
        for file in files("novasvc.api.page").joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }


class Assets:
    """The files of ``static``. Anyone may have them: the login page needs them."""

    app = Klein()

    def __init__(self) -> None:
        self._files = _load()
        # One for all: the scripts import each other by relative names.
        digest = hashlib.sha256()
        for name, octets in sorted(self._files.items()):
            digest.update(f"{name}:{len(octets)}:".encode() + octets)
        self.digest = digest.hexdigest()[:16]

    def url(self, name: str) -> str:
        """Return where a file is.

        :raises KeyError: there is no such file.
        """
        self._files[name]
        return f"/static/{self.digest}/{name}"

    @app.route("/static/<digest>/<name>", methods=["GET"])
    def serve(self, request: Any, digest: str, name: str) -> bytes:
        """Serve a file."""
        octets = self._files.get(name) if digest == self.digest else None
        if octets is None:
            raise APIError(404, "there is no such file; load the page again")
        request.setHeader(b"content-type", _TYPES[name.rpartition(".")[2]])
        request.setHeader(b"cache-control", b"public, max-age=31536000, immutable")
        return octets

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return answer_error(request, failure)
