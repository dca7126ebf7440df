from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from novasvc.http.around import AroundRequests
from novasvc.http.limits import Limits
from novasvc.http.wsgi import WSGISite
from novasvc.middleware import Answer
from tests.support.http_rig import GET, LAST, HTTPCase, Wire, ask
from tests.support.middleware_rig import Answering, Around, Failing, Hanging, Recorder, Silent
from tests.unit.middleware.test_chain import _variable


class AroundRequestsTests(HTTPCase):
    def wire(self, *middleware: Any, **limits: Any) -> Wire:
        wire = Wire(**limits)
        wire.site.around = AroundRequests.of(middleware, "test")
        return wire

    def test_request(self) -> None:
        """A middleware sees the request, and the status of its response; requests of one connection follow on."""
        recorder = Recorder()
        wire = self.wire(recorder)
        wire.send(b"GET /a?b=1 HTTP/1.1\r\nHost: x\r\nTraceparent: 00-1\r\n\r\n", GET)
        self.assertEqual([answer.status for answer in wire.answers()], [200, 200])
        self.assertEqual(recorder.seen, [">http GET", "<200"] * 2)
        first = recorder.invocations[0]
        self.assertEqual(first.args, {"path": "/a", "query": "b=1", "server": "test"})
        self.assertEqual(first.headers["traceparent"], "00-1")

    def test_later(self) -> None:
        """The middleware ends with the response, or with 0 if the client disconnects before it."""
        for finish in (True, False):
            recorder = Recorder()
            wire = self.wire(recorder)
            wire.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual(recorder.seen, [">http GET"])
            if finish:
                wire.resource.waiting[0].finish()
            else:
                wire.drop()
            self.assertEqual(recorder.seen[1:], ["<200" if finish else "<0"])

    def test_fails(self) -> None:
        """A middleware that raises, or forgets to go on, ends in a 500 without details, and in the log."""
        for middleware in (Failing(), Silent()):
            wire = self.wire(middleware)
            wire.send(GET)
            (answer,) = wire.answers()
            self.assertEqual((answer.status, answer.headers["connection"]), (500, "close"))
            self.assertNotIn("tenant", answer.error["message"])
            self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_answers(self) -> None:
        """A middleware may answer with the status of an error; any other answer is a 500."""
        for value, status in ((429, 429), (200, 500), ("no", 500)):
            wire = self.wire(Answering(value))
            wire.send(GET)
            self.assertEqual(wire.answers()[0].status, status)

    def test_never_goes_on(self) -> None:
        """A middleware that hangs is cancelled when the client disconnects."""
        hanging = Hanging()
        wire = self.wire(hanging)
        wire.send(GET)
        self.assertEqual(wire.answers(), [])
        wire.drop()
        self.assertTrue(hanging.waiting.called)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_goes_on_after_the_end(self) -> None:
        """A middleware that answers or goes on although the client has disconnected changes nothing any more."""
        for answers in (True, False):

            async def stubborn(invocation: Any, proceed: Any, answers: bool = answers) -> Any:
                try:
                    await Deferred()
                except CancelledError:
                    return Answer(503) if answers else await proceed(invocation)

            wire = self.wire(Around(stubborn))
            wire.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
            wire.drop()
            self.assertEqual((wire.answers(), wire.resource.waiting, self.flushLoggedErrors()), ([], [], []))

    def test_without(self) -> None:
        """Middleware for other kinds leaves requests alone."""
        self.assertIsNone(self.wire(Recorder(kinds=frozenset({"call"}))).site.around)

    async def test_wsgi(self) -> None:
        """An application in a thread runs within the middleware, with its context variables."""
        recorder = Recorder()

        async def set_variable(invocation: Any, proceed: Any) -> Any:
            _variable.set("inside")
            return await proceed(invocation)

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("201 Created", [])
            return [_variable.get().encode()]

        site = WSGISite(app, limits=Limits(), reactor=reactor, middleware=[recorder, Around(set_variable)])
        self.addCleanup(site.pool.close)
        (answer,) = await ask(self.listen(site), LAST)
        self.assertEqual((answer.status, answer.body), (201, b"inside"))
        self.assertEqual(recorder.seen, [">http GET", "<201"])

    def test_fast_path(self) -> None:
        """A request that a resource answers without twisted.web runs within the middleware too."""
        answering: list[Deferred[bytes]] = []

        class Fast:
            def fast_handler(self, head: Any) -> Any:
                def handle(request: Any) -> Deferred[bytes]:
                    answering.append(Deferred())
                    seen.append(_variable.get())
                    return answering[-1]

                return handle

        async def set_variable(invocation: Any, proceed: Any) -> Any:
            _variable.set("inside")
            return await proceed(invocation)

        seen: list[str] = []
        recorder = Recorder()
        wire = self.wire(recorder, Around(set_variable))
        wire.site._fast_path = Fast()
        wire.send(GET)
        answering[0].callback(b"fast")
        self.assertEqual((wire.answers()[0].body, seen, recorder.seen), (b"fast", ["inside"], [">http GET", "<200"]))
