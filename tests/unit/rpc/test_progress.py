"""Tests for novasvc.rpc.progress: from context.progress to the caller."""

import threading
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import RPCTimeoutError
from novasvc.rpc.message import ReplyTo, encode_request
from novasvc.rpc.progress import INTERVAL, MAX_TEXT, pass_on
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase


class Copier(Diary):
    """Reports what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[RequestContext] = []

    @rpc.expose
    def copy(self, context: RequestContext) -> Deferred[Any]:
        self.contexts.append(context)
        return self._hang()

    @rpc.expose
    async def stubborn(self, context: RequestContext) -> None:
        self.contexts.append(context)
        try:
            await self._hang()
        except CancelledError:
            await self._hang()

    @rpc.expose(idempotent=True)
    def at_once(self, context: RequestContext) -> str:
        context.progress(0.5, "half")
        return "done"

    @rpc.expose(blocking=True)
    def thread(self, context: RequestContext) -> str:
        for number in range(1000):
            context.progress(number / 1000, f"step {number}")
        return "done"


@implementer(IReactorFromThreads)
class ThreadClock(Clock):
    """A Clock that takes functions from threads; the test calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: list[Any] = []

    def callFromThread(self, function: Any, *args: Any) -> None:
        self.from_threads.append((function, args))

    def run_from_threads(self) -> None:
        taken, self.from_threads = self.from_threads, []
        for function, args in taken:
            function(*args)


class ProgressCase(RPCCase):
    diary: Copier

    def setUp(self) -> None:
        super().setUp()
        self.reports: list[tuple[float, str]] = []
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def make_endpoint(self) -> Copier:
        return Copier()

    def begin(self, method: str = "copy", **given: Any) -> Deferred[Any]:
        client = self.client.prepare(on_progress=lambda *report: self.reports.append(report), **given)
        calling = client.call(CONTEXT, method)
        self.clock.advance(0)
        return calling

    def progress(self, fraction: Any, text: Any = "") -> None:
        self.diary.contexts[-1].progress(fraction, text)
        self.clock.advance(0)

    def warnings(self) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_level"] is LogLevel.warn]


class ProgressTests(ProgressCase):
    def test_reaches_the_caller(self) -> None:
        """Fraction and text reach the caller's function, and the result comes as always."""
        calling = self.begin()
        self.progress(0.25, "copying")
        self.clock.advance(INTERVAL)
        self.progress(1)
        self.assertEqual(self.reports, [(0.25, "copying"), (1.0, "")])
        self.diary.hanging[0].callback("copied")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), "copied")
        self.assertEqual(self.client.unmatched_replies, 0)

    def test_rate(self) -> None:
        """The caller gets a report at once, then at most one each INTERVAL, and of those between the latest."""
        self.begin()
        for number in range(10):
            self.progress(number / 10)
        self.assertEqual(self.reports, [(0.0, "")])
        self.clock.advance(INTERVAL)
        self.clock.advance(0)
        self.assertEqual(self.reports, [(0.0, ""), (0.9, "")])
        self.clock.advance(10 * INTERVAL)
        self.progress(1)
        self.assertEqual(self.reports[2:], [(1.0, "")])

    def test_at_once(self) -> None:
        """A report of a method that returns at once arrives before its result."""
        calling = self.begin("at_once")
        self.clock.advance(0)
        self.assertEqual((self.reports, self.successResultOf(calling)), ([(0.5, "half")], "done"))

    def test_not_asked_for(self) -> None:
        """A caller that did not ask for reports is sent none."""
        calling = self.call("copy")
        self.progress(0.5)
        self.diary.hanging[0].callback(None)
        self.clock.advance(0)
        self.successResultOf(calling)
        self.send(encode_request("copy", {}, {}))  # a cast
        self.progress(0.5)
        self.send(self.request("copy"))  # a caller of another program
        self.progress(0.5)
        self.assertEqual((self.reports, self.replies), ([], []))

    def test_keepalive(self) -> None:
        """A report is a keepalive: it postpones the next one, and satisfies a caller that waits for one."""
        calling = self.begin(call_monitor_timeout=4, timeout=None)
        for _ in range(5):
            self.clock.advance(1.9)
            self.progress(0.5)
        self.assertEqual(len(self.reports), 5)
        self.assertNoResult(calling)
        self.clock.advance(4)
        self.assertTrue(self.failureResultOf(calling, RPCTimeoutError).value.silent)

    def test_monitored_peer(self) -> None:
        """A caller that asked only for keepalives gets the report as one: a reply that is not the last."""
        bodies: list[bytes] = []
        address = self.successResultOf(self.transport.open_replies(bodies.append))
        self.send(encode_request("copy", {}, {}, reply_to=ReplyTo("id", address), keepalive=60))
        self.progress(0.5, "half")
        (body,) = bodies
        self.assertIn(rb"\"result\": null, \"failure\": null, \"ending\": false", body)
        self.assertIn(rb"\"novasvc\": {\"progress\": {\"fraction\": 0.5, \"text\": \"half\"}}", body)

    def test_evolved(self) -> None:
        """A context made of the method's reports, too, and equals the one without."""
        self.begin()
        context = self.diary.contexts[0]
        attrs.evolve(context, is_admin=True).progress(0.5)
        self.clock.advance(0)
        self.assertEqual(self.reports, [(0.5, "")])
        self.assertEqual(attrs.evolve(context, report=None), context)
        self.assertNotIn("report", repr(context))

    def test_text(self) -> None:
        """A long text is cut off."""
        self.begin()
        self.progress(0, "x" * 999)
        self.assertEqual(self.reports, [(0.0, "x" * MAX_TEXT)])

    def test_running_calls(self) -> None:
        """The list of running calls has the latest report, whether the caller wants it or not."""
        self.call("copy")
        (row,) = self.server.running_calls()
        self.assertNotIn("fraction", row)
        for fraction in (0.1, 0.2):
            self.progress(fraction, "copying")
        (row,) = self.server.running_calls()
        self.assertEqual((row["fraction"], row["text"]), (0.2, "copying"))


class MistakeTests(ProgressCase):
    def test_invalid(self) -> None:
        """A fraction that is none, and a text that is none, are errors that show the value."""
        for context in (RequestContext(), self.running_context()):
            for fraction in (1.5, -0.1, float("nan"), float("inf"), "half", None, True, [0.5]):
                error = self.assertRaises(ValueError, context.progress, fraction)
                self.assertEqual(str(error), f"progress({fraction!r}): the fraction is not a number from 0 to 1")
            error = self.assertRaises(ValueError, context.progress, 0.5, 7)
            self.assertEqual(str(error), "progress(0.5, 7): the text is not a string")
        self.assertEqual(self.reports, [])

    def running_context(self) -> RequestContext:
        self.begin()
        return self.diary.contexts[0]

    def test_outside(self) -> None:
        """Outside of a call there is nobody to report to, and that is no error."""
        RequestContext().progress(0.5, "alone")

    def test_after_the_end(self) -> None:
        """Reports after the method's end are ignored, with one line in the log."""
        calling = self.begin()
        self.progress(0.1)
        self.progress(0.2)  # waits for its turn
        self.diary.hanging[0].callback(None)
        self.clock.advance(0)
        self.successResultOf(calling)
        for _ in range(3):
            self.progress(0.9)
            self.clock.advance(INTERVAL)
        self.assertEqual(self.reports, [(0.1, "")])
        (warning,) = self.warnings()
        self.assertIn("copy reported progress after its end, which is ignored", warning)
        self.successResultOf(self.client.close())

    def test_cancelled(self) -> None:
        """A method that was answered already, and runs on, sends no more reports."""
        calling = self.begin("stubborn", timeout=1)
        self.clock.advance(1)
        self.failureResultOf(calling, RPCTimeoutError)
        self.progress(0.5)
        self.assertEqual((self.reports, self.server.in_flight), ([], 1))
        self.assertFalse([warning for warning in self.warnings() if "progress" in warning])

    def test_function_raises(self) -> None:
        """An error of the caller's function is logged, and does not cost it the result."""

        def raises(*_: object) -> None:
            raise LookupError("no bar")

        calling = self.client.prepare(on_progress=raises).call(CONTEXT, "at_once")
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), "done")
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_malformed(self) -> None:
        """A malformed report of a peer is a keepalive only."""
        for report in (None, 7, {}, {"fraction": 2, "text": ""}, {"fraction": True, "text": ""}, {"fraction": 0.5}):
            pass_on(report, lambda *given: self.reports.append(given))
        self.assertEqual(self.reports, [])

    def test_unreachable(self) -> None:
        """A report that cannot be sent is dropped."""
        self.begin()

        def fails() -> Deferred[None]:
            failed: Deferred[None] = Deferred()
            failed.errback(LookupError("no"))
            return failed

        self.transport.on_reply = fails
        self.progress(0.5)
        self.assertEqual((self.reports, self.server.in_flight), ([], 1))

    def test_no_timeout_extension(self) -> None:
        """Reports do not extend the caller's timeout."""
        calling = self.begin(timeout=3)
        for _ in range(3):
            self.progress(0.5)
            self.clock.advance(1)
        self.failureResultOf(calling, RPCTimeoutError)


class ThreadTests(ProgressCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = ThreadClock()
        self.broker = type(self.broker)()
        self.transport = self.make_transport()
        self.server = self.serve()
        self.client = rpc.Client(self.make_transport(), clock=self.clock, target=TARGET)

    def test_flood(self) -> None:
        """A thread that reports all the time hands one report to the reactor until that has taken it."""
        calling = self.begin("thread")
        ((function, waiting),) = self.blocking
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(function()))
        thread.start()
        thread.join(30)
        self.assertEqual(len(self.clock.from_threads), 1)
        self.clock.run_from_threads()
        self.clock.advance(0)
        self.assertEqual(self.reports, [(0.999, "step 999")])
        waiting.callback(results[0])
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), "done")

    def test_ended_meanwhile(self) -> None:
        """A report that the reactor takes after the method's end is dropped."""
        self.begin("thread")
        ((function, waiting),) = self.blocking
        thread = threading.Thread(target=function)
        thread.start()
        thread.join(30)
        waiting.callback("done")
        self.clock.run_from_threads()
        self.clock.advance(INTERVAL)
        self.assertEqual((self.reports, self.warnings()), ([], []))
