import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, current_context
from novasvc.errors import MiddlewareError, TaskTimeoutError
from novasvc.periodic import TaskRunner, periodic_task
from tests.support.middleware_rig import Failing, Hanging, Recorder, Silent


class Owner:
    def __init__(self) -> None:
        self.runs = 0

    @periodic_task(spacing=10, timeout=3)
    async def clean(self, context: RequestContext) -> Any:
        self.runs += 1
        return current_context.get() is context


class TaskMiddlewareTests(SynchronousTestCase):
    def runner(self, *middleware: Any) -> TaskRunner:
        self.clock, self.owner = Clock(), Owner()
        return TaskRunner(self.owner, clock=self.clock, random_source=random.Random(0), middleware=middleware)

    def run_task(self, *middleware: Any) -> Deferred[Any]:
        return self.runner(*middleware).run_now("clean")

    def test_run(self) -> None:
        """A run passes through the middleware, with its context."""
        recorder = Recorder(kinds=frozenset({"task"}))
        self.assertIs(self.successResultOf(self.run_task(recorder)), True)
        self.assertEqual(recorder.seen, [">task clean", "<True"])
        self.assertTrue(recorder.invocations[0].context.is_admin)

    def test_fails(self) -> None:
        """A middleware that raises, or forgets to go on, fails the run."""
        for middleware, expected in ((Failing(), LookupError), (Silent(), MiddlewareError)):
            self.failureResultOf(self.run_task(middleware), expected)
            self.assertEqual((self.owner.runs, len(self.flushLoggedErrors(expected))), (0, 1))

    def test_timeout(self) -> None:
        """A middleware that never goes on is cancelled at the task's timeout, and the task runs again when due."""
        hanging = Hanging()
        runner = self.runner(hanging)
        running = runner.run_now("clean")
        self.clock.advance(3)
        self.failureResultOf(running, TaskTimeoutError)
        self.assertTrue(hanging.waiting.called)
        self.assertFalse(runner.stats()[0].running)
        self.assertEqual(len(self.flushLoggedErrors(TaskTimeoutError)), 0)
