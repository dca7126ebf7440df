"""Static files: stylesheet, scripts and icon. Their URLs contain a digest, so that browsers may cache them."""

import hashlib
from importlib.resources import files
from typing import Any

from novasvc.api.errors import APIError
from novasvc.api.openapi import STRING, content, operation
from novasvc.api.responses import make_app

_TYPES = {
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


def _load() -> dict[str, bytes]:
    # Others, such as an editor's backup files, are not served.
    return {
        file.name: file.read_bytes()
        for file in files("novasvc.api.page").joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }


class Assets:
    """Serves the files in ``static``, without authentication: the login page needs them."""

    app = make_app()

    def __init__(self) -> None:
        self._files = _load()
        # One digest for all: the scripts import each other by relative URLs.
        digest = hashlib.sha256()
        for name, octets in sorted(self._files.items()):
            digest.update(f"{name}:{len(octets)}:".encode() + octets)
        self.digest = digest.hexdigest()[:16]

    def url(self, name: str) -> str:
        """Return the URL of a file.

        :raises KeyError: there is no such file.
        """
        self._files[name]
        return f"/static/{self.digest}/{name}"

    @app.route("/static/<digest>/<name>", methods=["GET"])
    @operation(
        "Static files of the page",
        {200: content("The file.", css=STRING, javascript=STRING, svg=STRING)},
        404,
        path_parameters={"digest": "Of the contents of all files.", "name": "Of the file."},
        public=True,
    )
    def serve(self, request: Any, digest: str, name: str) -> bytes:
        """Serve a file."""
        octets = self._files.get(name) if digest == self.digest else None
        if octets is None:
            raise APIError(404, "there is no such file; reload the page")
        request.setHeader(b"content-type", _TYPES[name.rpartition(".")[2]])
        request.setHeader(b"cache-control", b"public, max-age=31536000, immutable")
        return octets
