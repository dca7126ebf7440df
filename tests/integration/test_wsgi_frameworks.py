"""Real applications, of Flask and of Django, as clients see them: forms, uploads, streams."""

import hashlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import django
import flask
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.support.http_rig import LAST, HTTPCase, ask, connect, responses

BOUNDARY = b"----x"


def upload(target: bytes, content: bytes, *, chunked: bool = False) -> bytes:
    """Return a request that uploads a file, and a field, as a browser does."""
    part = b'Content-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    body = b"--%b\r\n" % BOUNDARY + part % (b"kind", b"", b"disk \xc3\xa4")
    body += b"--%b\r\n" % BOUNDARY + part % (b"file", b'; filename="disk.img"', content) + b"--%b--\r\n" % BOUNDARY
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: multipart/form-data; boundary=%b\r\n"
    if not chunked:
        return head % (target, BOUNDARY) + b"Content-Length: %d\r\n\r\n" % len(body) + body
    pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head % (target, BOUNDARY) + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"


class FlaskTests(HTTPCase):
    def setUp(self) -> None:
        self.go = go = threading.Event()
        app = flask.Flask("test")

        @app.get("/hello/<name>")
        def hello(name: str) -> Any:
            answer = flask.jsonify(name=name, query=flask.request.args["q"], secure=flask.request.is_secure)
            answer.set_cookie("a", "1")
            answer.set_cookie("b", "2")
            return answer

        @app.post("/upload")
        def take() -> Any:
            file = flask.request.files["file"]
            return {"kind": flask.request.form["kind"], "sum": hashlib.sha256(file.read()).hexdigest()}

        @app.get("/events")
        def events() -> Any:
            def told() -> Iterator[str]:
                yield "data: first\n\n"
                go.wait(10)
                yield "data: last\n\n"

            return flask.Response(told(), mimetype="text/event-stream")

        @app.get("/boom")
        def boom() -> None:
            raise RuntimeError("no")

        self.port = self.serve(app)

    async def test_pages(self) -> None:
        """Routes, queries, cookies and JSON work, and pages that are not there."""
        (answer,) = await ask(self.port, LAST.replace(b"/ ", b"/hello/w%C3%B6rld?q=%26 "))
        self.assertEqual(json.loads(answer.body), {"name": "w\u00f6rld", "query": "&", "secure": False})
        (missing,) = await ask(self.port)
        self.assertEqual(missing.status, 404)
        (failed,) = await ask(self.port, LAST.replace(b"/ ", b"/boom "))
        self.assertEqual(failed.status, 500)

    async def test_upload(self) -> None:
        """Files arrive whole, by length and in chunks, from memory and from a temporary file."""
        for content in (b"small", bytes(range(256)) * 2000):
            for chunked in (False, True):
                (answer,) = await ask(self.port, upload(b"/upload", content, chunked=chunked))
                found = json.loads(answer.body)
                self.assertEqual(found, {"kind": "disk \u00e4", "sum": hashlib.sha256(content).hexdigest()})

    async def test_stream(self) -> None:
        """An event goes out when it is told, not when there are more."""
        caller = await connect(self.port)
        caller.transport.write(LAST.replace(b"/ ", b"/events "))
        await caller.until(b"data: first")
        self.go.set()
        await caller.gone
        (answer,) = responses(caller.data)
        self.assertEqual(answer.body, b"data: first\n\ndata: last\n\n")


def django_hello(request: HttpRequest, name: str) -> HttpResponse:
    return JsonResponse({"name": name, "host": request.get_host(), "path": request.get_full_path()})


def django_upload(request: HttpRequest) -> HttpResponse:
    file: Any = request.FILES["file"]
    return JsonResponse({"kind": request.POST["kind"], "sum": hashlib.sha256(file.read()).hexdigest()})


def django_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(f"{number}\n" for number in range(20_000))


urlpatterns = [
    path("hello/<name>", django_hello),
    path("upload", django_upload),
    path("stream", django_stream),
]


class DjangoTests(HTTPCase):
    def setUp(self) -> None:
        if not settings.configured:
            settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["localhost", "x"], SECRET_KEY="x", DEBUG=False)
            django.setup()
        self.port = self.serve(WSGIHandler())

    async def test_pages(self) -> None:
        """Routes work, and HEAD, and pages that are not there."""
        request = LAST.replace(b"/ ", b"/hello/w%C3%B6rld?q=1 ")
        (answer,) = await ask(self.port, request)
        expected = {"name": "w\u00f6rld", "host": "x", "path": "/hello/w%C3%B6rld?q=1"}
        self.assertEqual(json.loads(answer.body), expected)
        (head,) = await ask(self.port, request.replace(b"GET", b"HEAD"), head_only=True)
        self.assertEqual((head.status, head.body), (200, b""))
        (missing,) = await ask(self.port)
        self.assertEqual(missing.status, 404)

    async def test_upload(self) -> None:
        """Files arrive whole."""
        content = bytes(range(256)) * 2000
        for chunked in (False, True):
            (answer,) = await ask(self.port, upload(b"/upload", content, chunked=chunked))
            self.assertEqual(json.loads(answer.body)["sum"], hashlib.sha256(content).hexdigest())

    async def test_stream(self) -> None:
        """A streamed answer comes whole."""
        (answer,) = await ask(self.port, LAST.replace(b"/ ", b"/stream "))
        self.assertEqual(answer.body, b"".join(b"%d\n" % number for number in range(20_000)))
