"""RPC calls of WSGI applications, through environ["novasvc.rpc"]."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from novasvc import Manager, RequestContext, rpc
from novasvc.config.errors import SettingError
from novasvc.errors import TransportClosedError
from novasvc.service import Service, WSGIService
from tests.support.http_rig import LAST, ask, connect
from tests.support.waiting import until
from tests.support.wsgi_rig import WSGICase

hanging: list[Deferred[str]] = []
ended: list[str] = []


class Stock(Manager):
    @rpc.expose
    def reserve(self, context: RequestContext, item: str) -> str:
        return f"one {item}"

    @rpc.expose
    def hang(self, context: RequestContext) -> Deferred[str]:
        hanging.append(Deferred())
        return hanging[-1]


class Loading:
    """Loads an application that calls the topic "stock"."""

    def load_app(self, name: str) -> Callable[..., Iterable[bytes]]:
        def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            path = environ["PATH_INFO"].strip("/")
            answer: Any = None
            if path:
                stock = environ["novasvc.rpc"].prepare(topic="stock", timeout=30)
                try:
                    answer = stock.call(RequestContext(), path, **({} if path == "hang" else {"item": "tea"}))
                except TransportClosedError as error:
                    ended.append(str(error))
                    raise
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(answer).encode()]

        return app


class EnvironTests(WSGICase):
    def setUp(self) -> None:
        super().setUp()
        hanging.clear()
        ended.clear()

    async def start(self, **options: Any) -> WSGIService:
        """Start a node, and an application in the same process."""
        runtime = self.runtime(**options)
        node = Service("h1", "novasvc-stock", "stock", Stock, runtime=runtime)
        self.addCleanup(node.stop)
        await node.start()
        self.web = WSGIService("web", Loading(), runtime=runtime)
        self.addCleanup(self.web.stop)
        await self.web.start()
        return self.web

    async def get(self, path: bytes) -> Any:
        (answer,) = await ask(self.web.port or 0, LAST.replace(b"/ ", b"/" + path + b" "))
        return answer.status, json.loads(answer.body)

    async def test_call(self) -> None:
        """An application calls a service; it connects at the first call, so one that never calls needs no broker."""
        web = await self.start()
        self.assertEqual(await self.get(b""), (200, None))
        self.assertIsNone(web._client)
        self.assertEqual(await self.get(b"reserve"), (200, "one tea"))
        self.assertIsNotNone(web._client)

    async def test_again(self) -> None:
        """After a stop and a start it calls again."""
        web = await self.start()
        for _ in range(2):
            self.assertEqual(await self.get(b"reserve"), (200, "one tea"))
            await web.stop()
            self.assertIsNone(web._client)
            await web.start()

    async def test_no_client(self) -> None:
        """A client that cannot be made is an error of each request, and leaves no connection behind."""
        runtime = self.runtime(rpc_signing_key_file=Path.cwd() / "missing")
        web = WSGIService("web", Loading(), runtime=runtime)
        self.addCleanup(web.stop)
        await web.start()
        for _ in range(2):
            (answer,) = await ask(web.port or 0, LAST.replace(b"/ ", b"/reserve "))
            self.assertEqual(answer.status, 500)
        self.assertEqual(len(self.flushLoggedErrors(SettingError)), 2)
        await web.stop()
        self.assertIsNone(runtime.broker._resource)

    async def test_drained(self) -> None:
        """A stop lets a request finish, with its call."""
        web = await self.start()
        asking = Deferred.fromCoroutine(self.get(b"hang"))
        await until(lambda: hanging)
        stopping = web.stop()
        await until(lambda: web.state == "draining")
        hanging[0].callback("late")
        self.assertEqual(await asking, (200, "late"))
        await stopping

    async def test_stopped(self) -> None:
        """When a stop takes too long, or hurries, a call that waits ends with an error, and its thread with it."""
        web = await self.start()
        caller = await connect(web.port or 0)
        caller.transport.write(LAST.replace(b"/ ", b"/hang "))
        await until(lambda: hanging)
        pool = web._site.pool
        stopping = web.stop()
        self.assertEqual(ended, [])
        web.hurry()
        await stopping
        await until(lambda: pool._done == pool._begun)
        self.assertEqual(ended, ["the transport is closed: waiting for a reply is not possible"])
        hanging[0].callback("too late")
        # The application's error is logged on the reactor, which may be later than the end of its thread.
        await until(lambda: self.flushLoggedErrors(TransportClosedError))
        self.flushLoggedErrors()
