"""Clients that are slow, or send too much: faults.md, row 37."""

import socket
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.support.http_rig import GET, LAST, HTTPCase, ask, connect, responses
from tests.support.waiting import until

SLOW = 1000


def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    start("200 OK", [])
    return [environ["wsgi.input"].read()]


class SlowTests(HTTPCase):
    async def test_slowloris(self) -> None:
        """A thousand clients that send a byte now and then hold up nobody, and are cut when their time is over."""
        port = self.serve(app)
        slow = await deferToThread(self.open, port)
        await until(lambda: len(self.site.channels) == SLOW)
        for _ in range(20):
            (answer,) = await ask(port)
            self.assertEqual(answer.status, 200)
        for client in slow[::2]:
            client.send(b"X")
        for channel in self.site.channels:
            self.assertGreater(channel._deadlines.input_due - reactor.seconds(), 10)
            channel._deadlines.input_due = 0.0  # as in half a minute
        await until(lambda: not self.site.channels)
        for client in (slow[0], slow[-1]):
            client.settimeout(5)
            self.assertEqual(responses(client.recv(4096))[0].status, 408)

    def open(self, port: int) -> list[socket.socket]:
        clients = []
        for _ in range(SLOW):
            client = socket.create_connection(("127.0.0.1", port), 10)
            self.addCleanup(client.close)
            client.send(GET[:10])
            clients.append(client)
        return clients

    async def test_slow_body(self) -> None:
        """A body that does not come in its time is not waited for, and no thread ever was."""
        port = self.serve(app, body_timeout=1, body_rate=1000)
        caller = await connect(port)
        caller.transport.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        await caller.gone.addTimeout(30, reactor)
        self.assertEqual(responses(caller.data)[0].status, 408)
        self.assertEqual(self.site.pool._started, 0)


class HugeTests(HTTPCase):
    async def test_each(self) -> None:
        """A huge URL, header or body is refused with the limit, by a server that goes on."""
        port = self.serve(app)
        put = b"PUT / HTTP/1.1\r\nHost: x\r\n"
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for status, limit, data in (
            (414, "8192", b"GET /" + b"x" * 2_000_000),
            (431, "16384", GET[:-2] + b"A: " + b"x" * 2_000_000),
            (431, "100", GET[:-2] + b"A: b\r\n" * 100_000),
            (413, "1048576", put + b"Content-Length: 2000000\r\n\r\n" + bytes(2_000_000)),
            (413, "1048576", put + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40),
        ):
            (answer,) = await ask(port, data)
            self.assertEqual((answer.status, answer.error["code"]), (status, status))
            self.assertIn(limit, answer.error["message"])
        self.assertEqual(self.site.pool._started, 0)
        self.assertEqual((await ask(port))[0].status, 200)

    async def test_at_once(self) -> None:
        """Many of them at the same time are refused one by one."""
        port = self.serve(app)
        asked = [Deferred.fromCoroutine(ask(port, b"GET /" + b"x" * 100_000)) for _ in range(50)]
        answers = await gatherResults(asked)
        self.assertEqual({answer.status for (answer,) in answers}, {414})
        self.assertEqual((await ask(port, LAST))[0].status, 200)
