import contextlib
from contextvars import ContextVar
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import MiddlewareError, StateError
from novasvc.middleware import Chain, Invocation
from tests.support.middleware_rig import Answering, Around, Failing, Recorder, Silent, Twice

CALL = Invocation(kind="call", name="reserve", topic="stock", context=RequestContext(request_id="req-1"))
_variable: ContextVar[str] = ContextVar("variable", default="")


class ChainTests(SynchronousTestCase):
    def run_through(self, *middleware: Any, end: Any = lambda invocation: "done") -> Deferred[Any]:
        chain = Chain.of(middleware, "call")
        assert chain is not None
        return chain.run(CALL, end)

    def misuse(self, *middleware: Any, end: Any = lambda invocation: "done") -> MiddlewareError:
        error = self.failureResultOf(self.run_through(*middleware, end=end), MiddlewareError).value
        assert isinstance(error, MiddlewareError)
        return error

    def test_order(self) -> None:
        """The first middleware is the outermost one; each sees the invocation on its way in, and the reply back."""
        seen: list[str] = []
        outer, inner = Recorder("a"), Recorder("b")
        outer.seen = inner.seen = seen
        self.assertEqual(self.successResultOf(self.run_through(outer, inner)), "done")
        self.assertEqual(seen, ["a>call stock.reserve", "b>call stock.reserve", "b<done", "a<done"])

    def test_kinds(self) -> None:
        """A middleware wraps only its kinds; without one there is no chain."""
        other = Recorder("b", frozenset({"task"}))
        self.assertIsNone(Chain.of([other], "call"))
        self.assertIsNone(Chain.of([], "call"))
        chain = Chain.of([other, Recorder("a")], "call", "task")
        assert chain is not None
        self.assertEqual(self.successResultOf(chain.run(CALL, lambda _: 1)), 1)
        self.assertEqual(other.seen, [])

    def test_changes(self) -> None:
        """A middleware may pass on other arguments and another context, and give another reply."""

        async def change(invocation: Invocation, proceed: Any) -> Any:
            return await proceed(attrs.evolve(invocation, args={"amount": 2})) + 1

        reply = self.run_through(Around(change), end=lambda invocation: invocation.args["amount"] * 10)
        self.assertEqual(self.successResultOf(reply), 21)

    def test_not_a_coroutine(self) -> None:
        """A middleware may be a plain function that returns what next returned."""
        reply = self.run_through(Around(lambda invocation, proceed: proceed(invocation)))
        self.assertEqual(self.successResultOf(reply), "done")

        async def without_await(invocation: Invocation, proceed: Any) -> Any:
            return proceed(invocation)

        self.assertEqual(self.successResultOf(self.run_through(Around(without_await))), "done")

    def test_variables(self) -> None:
        """What a middleware sets in a context variable is seen further in, and nowhere else."""

        async def set_variable(invocation: Invocation, proceed: Any) -> Any:
            _variable.set("inside")
            return await proceed(invocation)

        self.assertEqual(
            self.successResultOf(self.run_through(Around(set_variable), end=lambda _: _variable.get())), "inside"
        )
        self.assertEqual(_variable.get(), "")

    def test_answer(self) -> None:
        """An Answer replaces the reply, and nothing further in runs."""
        inner = Recorder()
        self.assertEqual(self.successResultOf(self.run_through(Answering(7), inner)), 7)
        self.assertEqual(inner.seen, [])

    def test_error_of_the_end(self) -> None:
        """What the end raises passes through every middleware unchanged."""
        outer = Recorder("a")
        error = StateError("x", "stopped", "run")
        self.assertIs(self.failureResultOf(self.run_through(outer, end=lambda _: fail(error))).value, error)
        self.assertEqual(outer.seen[-1], "a!StateError")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_handled_error(self) -> None:
        """A middleware may turn an error into a reply."""

        async def handle(invocation: Invocation, proceed: Any) -> Any:
            try:
                return await proceed(invocation)
            except ZeroDivisionError:
                return "infinite"

        self.assertEqual(self.successResultOf(self.run_through(Around(handle), end=lambda _: 1 / 0)), "infinite")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_raises(self) -> None:
        """What a middleware raises is the outcome; what is further in does not run."""
        inner = Recorder()
        error = self.failureResultOf(self.run_through(Failing(), inner), LookupError)
        self.assertIn("no such tenant", str(error.value))
        self.assertEqual(inner.seen, [])

    def test_raises_meanwhile(self) -> None:
        """A middleware that raises while the rest runs has it cancelled."""
        running: Deferred[None] = Deferred()

        def handle(invocation: Invocation, proceed: Any) -> Any:
            proceed(invocation)
            raise LookupError

        self.failureResultOf(self.run_through(Around(handle), end=lambda _: running), LookupError)
        self.assertTrue(running.called)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_never_goes_on(self) -> None:
        """A middleware that returns without calling next is named, with what it should do."""
        self.assertRegex(str(self.misuse(Silent())), r"Silent': it returned without calling next, around call stock\.")

    def test_does_not_wait(self) -> None:
        """A middleware that does not await next is named, and what runs is cancelled."""
        running: Deferred[None] = Deferred()

        async def handle(invocation: Invocation, proceed: Any) -> Any:
            proceed(invocation)

        self.assertIn("returned before next had ended", str(self.misuse(Around(handle), end=lambda _: running)))
        self.assertTrue(running.called)

    def test_twice(self) -> None:
        """A middleware that calls next twice is named, even if it catches the error; the end runs once."""
        ends: list[Invocation] = []
        self.assertIn("called next twice", str(self.misuse(Twice(), end=ends.append)))
        self.assertEqual(len(ends), 1)

        async def handle(invocation: Invocation, proceed: Any) -> Any:
            for _ in range(2):
                with contextlib.suppress(MiddlewareError):
                    await proceed(invocation)
            return 1

        self.assertIn("called next twice", str(self.misuse(Around(handle))))

    def test_wrong_argument(self) -> None:
        """A middleware that passes on anything but an invocation of its kind is named."""
        for wrong in (None, attrs.evolve(CALL, kind="task")):
            self.assertIn("it called next with", str(self.misuse(Around(lambda _, proceed, w=wrong: proceed(w)))))

    def test_cancelled(self) -> None:
        """Cancelling the whole cancels what is waited for."""
        running: Deferred[None] = Deferred()
        recorder = Recorder("a")
        whole = self.run_through(recorder, Recorder("b"), end=lambda _: running)
        whole.cancel()
        self.failureResultOf(whole, CancelledError)
        self.assertEqual((running.called, recorder.seen[-1]), (True, "a!CancelledError"))

    def test_later(self) -> None:
        """The reply may come later."""
        running: Deferred[int] = Deferred()
        whole = self.run_through(Recorder(), end=lambda _: running)
        self.assertNoResult(whole)
        running.callback(3)
        self.assertEqual(self.successResultOf(whole), 3)
        self.assertEqual(self.successResultOf(self.run_through(Recorder(), end=lambda _: succeed(4))), 4)
