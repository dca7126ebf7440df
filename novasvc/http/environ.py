"""The environ of WSGI requests (PEP 3333)."""

from collections.abc import Mapping
from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from novasvc.http.head import Head
from novasvc.http.reactor_queue import ReactorQueue

_log = Logger()

_KEYS: dict[bytes, str] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    b"transfer-encoding": "",  # the server has decoded it
    b"proxy": "",  # HTTP libraries take HTTP_PROXY for the proxy to use (CVE-2016-5385, "httpoxy")
}
"""A cache of environ keys by header name; headers with "" are left out. It is bounded, as clients make names up."""
_MAX_KEYS, _MAX_KEY = 1000, 64


class ErrorLog:
    """The file wsgi.errors: writes to the log.

    :param reactor_queue: runs calls in the reactor's thread, where the log is written.
    :param name: of the application.
    """

    def __init__(self, reactor_queue: ReactorQueue, name: str) -> None:
        self._reactor_queue = reactor_queue
        self._name = name

    def write(self, text: str) -> int:
        """Log a text unless it is blank."""
        if line := text.rstrip():
            self._reactor_queue.post(lambda: _log.error("{app}: {text}", app=self._name, text=line))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Log the lines as one event."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""


def server_environ(host: IAddress, peer: IAddress, *, secure: bool) -> dict[str, Any]:
    """Return the entries that all requests of a connection share.

    :param host: the address that the client connected to.
    :param peer: the client's address.
    :param secure: whether the connection uses TLS.
    """
    return {
        "SCRIPT_NAME": "",
        "SERVER_NAME": str(getattr(host, "host", "localhost")),
        "SERVER_PORT": str(getattr(host, "port", 443 if secure else 80)),
        "REMOTE_ADDR": str(getattr(peer, "host", "")),
        "REMOTE_PORT": str(getattr(peer, "port", "")),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if secure else "http",
        "wsgi.run_once": False,
        "wsgi.multithread": True,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    } | ({"HTTPS": "on"} if secure else {})


def make_environ(common: Mapping[str, Any], head: Head, content: IO[bytes] | None) -> dict[str, Any]:
    """Return the environ of one request.

    Strings hold one byte per character (PEP 3333, "Unicode Issues"). A header whose name has an underscore is left out:
    its key would be that of the header with a dash in the same place, which a proxy may have validated.

    :param common: see :func:`server_environ`.
    :param content: the body, positioned at its end; None if it is empty.
    """
    environ = dict(common)
    path = head.path
    environ["REQUEST_METHOD"] = head.method.decode("latin-1")
    environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
    if path == b"*":
        environ["PATH_INFO"] = "/"  # OPTIONS * is for the server as a whole; REQUEST_URI has the "*"
    environ["QUERY_STRING"] = head.query.decode("latin-1")
    environ["REQUEST_URI"] = environ["RAW_URI"] = head.target.decode("latin-1")
    environ["SERVER_PROTOCOL"] = head.version.decode("latin-1")
    for name, value in head.headers:
        key = _KEYS.get(name)
        if key is None:
            key = _key(name)
        if not key:
            continue
        text = value.decode("latin-1")
        if key in environ:
            text = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        environ[key] = text
    if content is None:
        if "CONTENT_LENGTH" in environ:
            environ["CONTENT_LENGTH"] = "0"  # the client may have sent "00"
        environ["wsgi.input"] = BytesIO()
    else:
        environ["CONTENT_LENGTH"] = str(content.tell())
        content.seek(0)
        environ["wsgi.input"] = content
    return environ


def _key(name: bytes) -> str:
    key = "" if b"_" in name else "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
    if len(_KEYS) < _MAX_KEYS and len(name) <= _MAX_KEY:
        _KEYS[name] = key
    return key
