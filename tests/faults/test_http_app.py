"""Applications that block or raise: faults.md, row 39."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource

from novasvc.http import make_site
from tests.support.http_rig import LAST, HTTPCase, ask


class Healthy(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return b"ok"


class AppTests(HTTPCase):
    async def test_blocks(self) -> None:
        """An application that blocks all its threads takes none of the reactor: others are answered as before."""
        go = threading.Event()
        self.addCleanup(go.set)

        def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            go.wait(20)
            start("200 OK", [])
            return [b"late"]

        port = self.serve(app, threads=4, queue=4)
        health = self.listen(make_site(Healthy(), reactor=reactor))
        blocked = [Deferred.fromCoroutine(ask(port)) for _ in range(20)]
        for _ in range(20):
            self.assertEqual((await ask(health))[0].body, b"ok")
        self.assertEqual(self.site.pool.busy, 4)
        go.set()
        statuses = [(await answer)[0].status for answer in blocked]
        self.assertEqual(statuses.count(503), 12)
        self.assertEqual(statuses.count(200), 8)

    async def test_raises(self) -> None:
        """One that raises gets a 500 for each request, whatever it raises, and no thread is lost."""

        def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            raise (SystemExit, ValueError, MemoryError)[int(environ["PATH_INFO"][1:]) % 3]("password=hunter2")

        port = self.serve(app, threads=2)
        for number in range(9):
            (answer,) = await ask(port, LAST.replace(b"/ ", b"/%d " % number))
            self.assertEqual(answer.status, 500)
            self.assertNotIn(b"hunter2", answer.body)
            self.assertNotIn(b"Traceback", answer.body)
        self.assertEqual(len(self.flushLoggedErrors()), 9)
