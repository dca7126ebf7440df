"""The page on a Clock and in memory: the real site and resources, without a socket."""

import io
import tempfile
from collections.abc import Callable, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from unittest import TestCase
from urllib.parse import urlencode

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.login_links import LoginLinks
from novasvc.api.page.resources import make_page_resources
from novasvc.api.service_status import Assessment, assess
from novasvc.api.sessions import Sessions
from novasvc.api.site import APIRoot
from novasvc.api.tokens import Token, digest
from novasvc.http import make_site
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Judge
from novasvc.testing.runtime import memory_runtime

ADMINS, READERS = "an admin's token", "a reader's token"
TOKENS = (Token("ada", "admin", digest(ADMINS)), Token("ron", "read", digest(READERS)))


def assess_alone(service_down_time: float) -> Callable[[ServiceRecord], Assessment]:
    """Return a function that assesses rows by themselves, without outages of many services."""
    judge = Judge(VerdictRule(service_down_time=service_down_time), Outages())
    return lambda record: assess(record, judge(record))


class Answer:
    """A response.

    :param octets: of a whole answer.
    """

    def __init__(self, octets: bytes) -> None:
        class Socket:
            def makefile(self, mode: str) -> io.BytesIO:
                return io.BytesIO(octets)

        response = HTTPResponse(Socket())  # type: ignore[arg-type]
        response.begin()
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()


class Connection:
    """A client's connection to the page."""

    def __init__(self, rig: "PageRig", address: str = "127.0.0.1") -> None:
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", address, 4711))
        self.protocol = rig.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 4711))
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def send(self, method: str, path: str, headers: Mapping[str, str], body: str = "") -> None:
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: 127.0.0.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.protocol.dataReceived(("\r\n".join([*lines, "", ""]) + body).encode())

    @property
    def octets(self) -> bytes:
        return self.transport.value()


class PageRig:
    """A page, its registry, and a Clock.

    :param tokens: none lets everybody in.
    """

    def __init__(self, test: TestCase, tokens: tuple[Token, ...] = (), **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.runtime = memory_runtime(self.clock, **settings)
        holder = tempfile.TemporaryDirectory()
        test.addCleanup(holder.cleanup)
        self.login_links = LoginLinks(Path(holder.name) / "logins")
        self.sessions = Sessions(b"k" * 32, self.clock.seconds)
        self.access = Access(tokens, self.sessions, self.login_links)
        self.backend = Backend(self.runtime)
        self.site = make_site(APIRoot(make_page_resources(self.backend, self.access)), reactor=self.clock)
        self.site.startFactory()
        self.backend.open()
        self.clock.advance(0)
        test.addCleanup(self.site.stopFactory)

    @property
    def registry(self) -> MemoryRegistry:
        registry = self.backend.registry
        assert isinstance(registry, MemoryRegistry)
        return registry

    def add(self, host: str, binary: str = "novasvc-agent", topic: str | None = None) -> str:
        """Register a service that has just sent a heartbeat; return its uuid."""
        record = self.registry.register(host, binary, topic, 1).result
        self.registry.beat(record.id)
        return str(record.uuid)

    def see(self) -> None:
        """Let the watch read the registry."""
        self.clock.pump([10.0, 0.0])

    def ask(self, path: str, form: Mapping[str, str] | None = None, **headers: str) -> Answer:
        """Send a GET, or a POST with a form, and return the response; underscores in header names are dashes."""
        connection = Connection(self)
        named = {name.replace("_", "-"): value for name, value in headers.items()} | {"Connection": "close"}
        if form is None:
            connection.send("GET", path, named)
        else:
            body = urlencode(form)
            named |= {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(body))}
            connection.send("POST", path, named, body)
        for _ in range(100):
            if connection.transport.disconnecting:
                break
            self.clock.advance(0.1)
        return Answer(connection.octets)

    def mark(self) -> str:
        """Return the CSRF token of a form in a page without authentication."""
        return self.sessions.csrf_token("loopback")
