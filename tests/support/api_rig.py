"""The API on a Clock and in memory: the real site and resources, without a socket."""

import io
import json
import tempfile
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from unittest import TestCase

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.login_links import LoginLinks
from novasvc.api.sessions import Sessions
from novasvc.api.site import make_api_root
from novasvc.api.tokens import Token, digest
from novasvc.http import make_site
from novasvc.registry.record import ServiceRecord
from novasvc.testing import MemoryRegistry, memory_runtime

ADMINS, READERS = "an-admins-token", "a-readers-token"
TOKENS = (Token("ada", "admin", digest(ADMINS)), Token("ron", "read", digest(READERS)))
"""Give them to the rig, and the one or the other as X_Auth_Token with a request."""

_PEER = IPv4Address("TCP", "127.0.0.1", 4711)


class Answer:
    """A response.

    :param octets: of a whole answer.
    """

    def __init__(self, octets: bytes, method: str) -> None:
        class Socket:
            def makefile(self, mode: str) -> io.BytesIO:
                return io.BytesIO(octets)

        response = HTTPResponse(Socket(), method=method)  # type: ignore[arg-type]
        response.begin()
        self.status: int = response.status
        self.headers: HTTPMessage = response.headers
        self.body: bytes = response.read()

    @property
    def document(self) -> Any:
        """The JSON body."""
        assert self.headers.get_content_type() == "application/json", (self.status, self.headers, self.body)
        return json.loads(self.body)


class Asking:
    """A connection with one request, and its response.

    :ivar transport: has what was answered, and loses its connection on demand.
    """

    def __init__(self, rig: "APIRig", method: str, octets: bytes) -> None:
        self._method = method
        self.transport = StringTransport(peerAddress=_PEER)
        self.protocol = rig.site.buildProtocol(_PEER)
        self.transport.protocol = self.protocol  # type: ignore[attr-defined]  # who gets what is unread at its end
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(octets)

    @property
    def answered(self) -> bool:
        """Whether the response is complete."""
        return bool(self.transport.disconnecting)

    @property
    def answer(self) -> Answer:
        """A response."""
        assert self.answered, self.transport.value()
        return Answer(self.transport.value(), self._method)


class APIRig:
    """All resources of the API, with a registry in memory and a Clock.

    :param tokens: none lets everybody in.
    :param settings: fields of :class:`novasvc.config.Settings`.
    """

    def __init__(self, test: TestCase, tokens: tuple[Token, ...] = (), **settings: Any) -> None:
        holder = tempfile.TemporaryDirectory()
        test.addCleanup(holder.cleanup)
        folder = Path(holder.name)
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.runtime = memory_runtime(self.clock, **{"control_socket": folder / "control", **settings})
        self.access = Access(tokens, Sessions(b"k" * 32, self.clock.seconds), LoginLinks(folder / "logins"))
        self.backend = Backend(self.runtime)
        self.site = make_site(make_api_root(self.backend, self.access), reactor=self.clock)
        self.site.startFactory()
        test.addCleanup(self.site.stopFactory)
        self.backend.open()
        self.clock.advance(0)

    @property
    def registry(self) -> MemoryRegistry:
        registry = self.backend.registry
        assert isinstance(registry, MemoryRegistry)
        return registry

    def add(self, host: str, binary: str = "novasvc-agent", topic: str | None = "agent") -> ServiceRecord:
        """Register a service that has just sent a heartbeat; return its row."""
        record: ServiceRecord = self.registry.register(host, binary, topic, 1).result
        self.registry.beat(record.id)
        return self.row(record.id)

    def row(self, service_id: int) -> ServiceRecord:
        """Return the current row of a service."""
        record: ServiceRecord = self.registry.get(str(service_id)).result
        return record

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Asking:
        """Send a request, without waiting for the response.

        :param path: with its query; not encoded here.
        :param body: bytes as they are; anything else as JSON; None for no body.
        :param headers: underscores are dashes. A body's type and length are given unless they are here.
        """
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        usual = {"host": "127.0.0.1:8774", "connection": "close"}
        if body is not None:
            usual |= {"content-type": "application/json", "content-length": str(len(content))}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in {**usual, **given}.items())]
        return Asking(self, method, "\r\n".join([*lines, "", ""]).encode() + content)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request, and return the response; see :meth:`send`."""
        asking = self.send(method, path, body, **headers)
        for _ in range(100):
            if asking.answered:
                break
            self.clock.advance(0.1)
        return asking.answer

    def get(self, path: str, **headers: str) -> Answer:
        """Send a GET; see :meth:`send`."""
        return self.ask("GET", path, **headers)
