"""What a WSGI application is told of a request."""

from collections.abc import Mapping
from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from novasvc.http.crew import Mailbox
from novasvc.http.head import Head

_log = Logger()

_KEYS: dict[bytes, str] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    b"transfer-encoding": "",  # as has been undone
    b"proxy": "",  # to some libraries HTTP_PROXY is not what a client says, but what they go through
}
"""The environ's keys by header, as far as they are known; "" is left out."""
_MOST_KEYS, _LONGEST_KEY = 1000, 64


class ErrorLog:
    """Has what an application writes to wsgi.errors logged.

    :param mailbox: the way to the reactor's thread, where the log is written.
    :param name: of the application.
    """

    def __init__(self, mailbox: Mailbox, name: str) -> None:
        self._mailbox = mailbox
        self._name = name

    def write(self, text: str) -> int:
        """Log a text, unless it is blank."""
        if shown := text.rstrip():
            self._mailbox.post(lambda: _log.error("{app}: {text}", app=self._name, text=shown))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Log some lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""


def server_environ(host: IAddress, peer: IAddress, *, secure: bool) -> dict[str, Any]:
    """Return what all requests of a connection have in common.

    :param host: our address, as a transport gives it.
    :param peer: the client's.
    :param secure: whether it is TLS.
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

    Texts hold bytes, one a character, as PEP 3333 says. A header whose name has an underscore is left out:
    its key would be that of another header, with a dash, which a proxy may have checked.

    :param common: see :func:`server_environ`.
    :param content: the body, its position at its end; None is an empty one.
    """
    environ = dict(common)
    path = head.path
    environ["REQUEST_METHOD"] = head.method.decode("latin-1")
    environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
    if path == b"*":
        environ["PATH_INFO"] = "/"  # of the server itself, whose root it is; REQUEST_URI has what was asked
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
            environ["CONTENT_LENGTH"] = "0"  # were it sent as "00"
        environ["wsgi.input"] = BytesIO()
    else:
        environ["CONTENT_LENGTH"] = str(content.tell())
        content.seek(0)
        environ["wsgi.input"] = content
    return environ


def _key(name: bytes) -> str:
    key = "" if b"_" in name else "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
    if len(_KEYS) < _MOST_KEYS and len(name) <= _LONGEST_KEY:
        _KEYS[name] = key
    return key
