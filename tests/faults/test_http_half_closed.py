"""Clients that end their sending side, and clients that go away: both look the same at first."""

import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from novasvc.http import make_site, peer, teardown
from novasvc.http.tls import make_tls, wrap
from novasvc.node.stream_server import StreamServer
from tests.servers.certificates import Certificates
from tests.support.http_rig import GET, LAST, Echo, HTTPCase, Response, responses
from tests.support.waiting import until

LATER = GET.replace(b"/ ", b"/later ")
PATIENCE = 20.0
PUT = b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    start("200 OK", [])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode() + environ["wsgi.input"].read()]


def read_all(client: socket.socket) -> bytes:
    heard = []
    while data := client.recv(65536):
        heard.append(data)
    return b"".join(heard)


class ClientCase(HTTPCase):
    """Has clients with plain sockets, as Twisted's cannot do all of this."""

    def connect(self, port: int) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.addCleanup(client.close)
        return client

    async def ask_half_closed(self, port: int, data: bytes) -> list[Response]:
        """Send this, end the sending side, and return all answers."""

        def ask() -> bytes:
            client = self.connect(port)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return read_all(client)

        return responses(await deferToThread(ask))


class AnsweredTests(ClientCase):
    async def check(self, port: int) -> None:
        for data, bodies in (
            (GET, [b"GET / "]),
            (LAST, [b"GET / "]),
            (b"GET / HTTP/1.0\r\n\r\n", [b"GET / "]),
            (PUT, [b"PUT /x abc"]),
            (GET * 50 + PUT, [b"GET / "] * 50 + [b"PUT /x abc"]),
        ):
            answers = await self.ask_half_closed(port, data)
            self.assertEqual([answer.body for answer in answers], bodies)
        (answer,) = await self.ask_half_closed(port, PUT[:-5])
        self.assertEqual(answer.status, 400)
        self.assertEqual(await self.ask_half_closed(port, b""), [])

    async def test_applications(self) -> None:
        """A client that ends its sending side after its request is answered by an application."""
        await self.check(self.serve(app))

    async def test_resources(self) -> None:
        """By a resource, as those of the API, too."""
        await self.check(self.listen(make_site(Echo(), reactor=reactor)))

    async def test_unix(self) -> None:
        """Over a unix socket it is the same, and one that closes is noticed at once."""
        folder = tempfile.TemporaryDirectory()  # its path is short enough for a socket
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "socket"
        resource = Echo()
        server = StreamServer(f"unix:{path}", make_site(resource, reactor=reactor), reactor, 1.0)
        server.startService()
        self.addCleanup(server.stopService)

        def connect(data: bytes) -> socket.socket:
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return client

        (answer,) = responses(await deferToThread(lambda: read_all(connect(GET))))
        self.assertEqual(answer.body, b"GET / ")
        gone = await deferToThread(connect, LATER.replace(b"1.1", b"1.0"))
        await until(lambda: resource.waiting)
        finished = resource.waiting.pop().notifyFinish().addErrback(lambda _: None).addTimeout(PATIENCE, reactor)
        gone.close()
        await finished

    async def test_large(self) -> None:
        """However long the answer is, the client gets all of it."""

        def large(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            start("200 OK", [])
            return (bytes(65536) for _ in range(200))

        (answer,) = await self.ask_half_closed(self.serve(large), GET)
        self.assertEqual(len(answer.body), 200 * 65536)

    async def test_slow(self) -> None:
        """A client that waits long for its answer gets it: an interim response tells that it is there."""
        self.patch(teardown, "_HALF_CLOSE_PROBE", 0.5)
        resource = Echo()
        client = await deferToThread(self.connect, self.listen(make_site(resource, reactor=reactor)))

        def ask() -> bytes:
            client.sendall(LATER)
            client.shutdown(socket.SHUT_WR)
            return client.recv(65536)

        self.assertEqual([answer.status for answer in responses(await deferToThread(ask))], [100])
        resource.waiting.pop().finish()
        self.assertEqual([answer.status for answer in responses(await deferToThread(read_all, client))], [200])


class GoneTests(ClientCase):
    """A client that has gone is noticed, and its request gets connectionLost."""

    def setUp(self) -> None:
        self.resource = Echo()

    async def waiting(self, port: int, data: bytes = LATER) -> tuple[socket.socket, Deferred[Any]]:
        """Return a client that waits for an answer, and a Deferred that fires when it is seen to be gone."""
        client = await deferToThread(self.connect, port)
        await deferToThread(client.sendall, data)
        await until(lambda: self.resource.waiting)
        finished = self.resource.waiting.pop().notifyFinish()
        return client, finished.addErrback(lambda failure: failure.type).addTimeout(PATIENCE, reactor)

    async def test_reset(self) -> None:
        """One that resets its connection, before or after it has ended its sending side."""
        site = make_site(self.resource, reactor=reactor)
        port = self.listen(site)
        for half_closed in (False, True):
            client, gone = await self.waiting(port)
            if half_closed:
                client.shutdown(socket.SHUT_WR)
                await until(lambda: [one for one in site.channels if one._input_ended])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            self.assertIsNotNone(await gone)

    async def test_closed(self) -> None:
        """One that closes, which looks like the end of its sending side until it is sent something."""
        self.patch(teardown, "_HALF_CLOSE_PROBE", 0.5)
        client, gone = await self.waiting(self.listen(make_site(self.resource, reactor=reactor)))
        client.close()
        self.assertIsNotNone(await gone)

    async def test_probed(self) -> None:
        """One that closes and speaks HTTP/1.0, which has no interim responses: the kernel's probes find it out."""
        self.patch(peer, "PROBE_IDLE", 1)
        port = self.listen(make_site(self.resource, reactor=reactor))
        client, gone = await self.waiting(port, LATER.replace(b"1.1", b"1.0"))
        # The kernel of the client keeps its side for a minute (tcp_fin_timeout), or as long as this says.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
        client.close()
        self.assertIsNotNone(await gone)

    async def test_tls(self) -> None:
        """Over TLS a close_notify is the end of both directions, and so is the end of TCP's."""
        made = Certificates(Path(self.mktemp()))
        tls = make_tls(made.server.certificate, made.server.key, None)
        port = self.listen(wrap(make_site(self.resource, reactor=reactor), tls, reactor))
        trusting = ssl.create_default_context(cafile=str(made.ca))

        def secured() -> ssl.SSLSocket:
            client = trusting.wrap_socket(self.connect(port), server_hostname="localhost")
            self.addCleanup(client.close)
            client.sendall(LATER)
            return client

        def end_tls(client: ssl.SSLSocket) -> None:
            client.unwrap()

        def end_tcp(client: ssl.SSLSocket) -> None:
            socket.socket.shutdown(client, socket.SHUT_WR)

        for end in (end_tls, end_tcp):
            client = await deferToThread(secured)
            await until(lambda: self.resource.waiting)
            gone = self.resource.waiting.pop().notifyFinish().addErrback(lambda failure: failure.type)
            await deferToThread(end, client)
            self.assertIsNotNone(await gone.addTimeout(PATIENCE, reactor))

    async def test_before_its_turn(self) -> None:
        """A request whose client has closed before its turn is not worked on."""
        self.patch(teardown, "_HALF_CLOSE_PROBE", 0.5)
        go = threading.Event()
        self.addCleanup(go.set)
        paths = []

        def slow(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            paths.append(environ["PATH_INFO"])
            go.wait(PATIENCE)
            start("200 OK", [])
            return [b""]

        port = self.serve(slow, threads=1)
        first = Deferred.fromCoroutine(self.ask_half_closed(port, GET))
        await until(lambda: paths)
        second = await deferToThread(self.connect, port)
        second.sendall(GET.replace(b"/ ", b"/second "))
        await until(lambda: self.site.pool._work)
        second.close()
        await until(lambda: len(self.site.channels) == 1)
        go.set()
        await first
        await self.ask_half_closed(port, GET.replace(b"/ ", b"/third "))
        self.assertEqual(paths, ["/", "/third"])
