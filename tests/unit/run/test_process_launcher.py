"""Tests for what the launcher of workers makes of requests to end; tests/e2e/test_workers.py has real workers."""

import signal

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.run.process_launcher import ProcessLauncher
from tests.support.supervisor_rig import configuration


class EndTests(SynchronousTestCase):
    """Requests to end while the workers drain."""

    def setUp(self) -> None:
        self.clock, self.hurried = Clock(), 0
        self.launcher = ProcessLauncher(configuration(), self.clock)
        self.patch(self.launcher, "hurry", self.hurry)

    def hurry(self) -> None:
        self.hurried += 1

    def ask(self, what: str) -> int:
        """Ask for something; return how often work was cut short by now."""
        getattr(self.launcher, what)()
        self.clock.advance(0)
        return self.hurried

    def test_drained_twice(self) -> None:
        """Only a second SIGTERM cuts work short, not a second drain."""
        self.patch(self.launcher, "_signo", signal.SIGTERM)
        self.assertEqual([self.ask("drain"), self.ask("drain"), self.ask("terminate")], [0, 0, 1])

    def test_drained_while_restarting(self) -> None:
        """A drain during that of a restart makes the supervisor exit at its end; the next SIGTERM is the second."""
        self.patch(self.launcher, "_executes_again", True)
        self.assertEqual([self.ask("drain"), self.ask("drain")], [0, 0])
        self.assertFalse(self.launcher._is_restarting())
        self.assertEqual(self.ask("terminate"), 1)
