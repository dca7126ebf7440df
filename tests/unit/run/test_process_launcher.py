"""Tests for what the launcher of workers makes of requests to end; tests/e2e/test_workers.py has real workers."""

import math
import shutil
import signal
from pathlib import Path

from twisted.application.service import Application, Service
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import ProblemError, StateError
from novasvc.run.forced_exit import _seconds_to_forced_exit, cancel_forced_exit
from novasvc.run.process_launcher import ProcessLauncher
from novasvc.run.process_tree import ProcessTree
from novasvc.workers.errors import ControlError
from tests.support.launcher_rig import HandReactor
from tests.support.supervisor_rig import Listening, Server, SupervisorCase, configuration


class EndTests(SynchronousTestCase):
    """Requests to end while the workers drain."""

    def setUp(self) -> None:
        self.clock, self.hurried = Clock(), 0
        self.launcher = ProcessLauncher(configuration(), self.clock)
        self.patch(self.launcher, "hurry", self.hurry)
        self.addCleanup(cancel_forced_exit)

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

    def test_terminated_while_restarting(self) -> None:
        """A signal to end during a restart counts even before the reactor handles it; the first SIGTERM drains on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            launcher = ProcessLauncher(configuration(), self.clock)
            self.patch(launcher, "hurry", self.hurry)
            self.patch(launcher, "_executes_again", True)
            launcher._handle_signal(number)
            self.assertFalse(launcher._is_restarting())
            if number == signal.SIGTERM:
                launcher.terminate()
            self.clock.advance(0)
        self.assertEqual(self.hurried, 0)

    def seconds_left(self) -> float:
        """Return the seconds until this process would be ended by force, and cancel that; infinite if it would not."""
        seconds = _seconds_to_forced_exit()
        cancel_forced_exit()
        return seconds

    def test_limited(self) -> None:
        """A signal to end, and an order to drain, limit the time even if the reactor does not run any more."""
        grace = self.launcher.configuration.settings.graceful_shutdown_timeout
        for number, limit in ((signal.SIGTERM, grace + 7), (signal.SIGTERM, 7), (signal.SIGINT, 7)):
            self.launcher._handle_signal(number)
            left = self.seconds_left()
            self.assertTrue(limit - 7 < left <= limit, left)  # the timer is a real one, and the machine may be slow
        self.launcher._handle_signal(signal.SIGHUP)
        self.assertEqual(self.seconds_left(), math.inf)

    def test_drain_limited(self) -> None:
        """An order to drain does so, too."""
        self.launcher.drain()
        self.assertGreater(self.seconds_left(), 7)

    def test_limited_after_the_end(self) -> None:
        """The limit outlasts the services of ``twistd novasvc``, but not if other services of the process may go on."""
        for others, limited in ((0, True), (1, False)):
            application = Application("novasvc")
            tree = ProcessTree(configuration(), self.clock)
            tree.setServiceParent(application)
            for _ in range(others):
                Service().setServiceParent(application)
            launcher = ProcessLauncher(configuration(), self.clock)
            launcher.setServiceParent(tree)
            launcher._handle_signal(signal.SIGTERM)
            launcher.stopService()
            self.assertEqual(launcher.state, "stopped")
            self.assertEqual(self.seconds_left() < math.inf, limited)

    def test_drained_after_a_signal(self) -> None:
        """An order to drain is no second SIGTERM, even if the reactor has not handled the first one yet."""
        self.launcher._handle_signal(signal.SIGTERM)
        cancel_forced_exit()
        self.assertEqual((self.ask("drain"), self.seconds_left()), (0, math.inf))


class FailedStartTests(SynchronousTestCase):
    """A start that fails before there are workers."""

    def test_sockets_closed(self) -> None:
        """A launcher that cannot use its control socket closes its listening sockets, so that clients are refused."""
        launcher = ProcessLauncher(configuration(control_socket=Path("long" * 50)), HandReactor())
        launcher.launch_server(Listening("web"))
        launcher.privilegedStartService()
        assert launcher._sockets is not None
        [shared] = launcher._sockets["web"]
        self.addCleanup(shared.close)
        launcher.startService()
        self.assertEqual(launcher.state, "failed")
        self.assertEqual([failure.type for failure in self.flushLoggedErrors()], [ControlError])
        self.assertEqual(shared.fileno(), -1)


class ReloadTests(SupervisorCase):
    """A reload that changes graceful_shutdown_timeout."""

    def limit(self, before: float) -> float:
        """Return the seconds to the forced exit at SIGTERM, while workers with another timeout run yet."""
        launcher = ProcessLauncher(configuration(graceful_shutdown_timeout=before), self.host, reread=self.reread)
        self.addCleanup(cancel_forced_exit)
        self.supervisor = launcher._supervisor
        self.run_all((Server("api"), 1))
        reload = self.reload((configuration(graceful_shutdown_timeout=10.0), None))
        reload.addErrback(lambda _: None)  # the end of the test ends it
        launcher._handle_signal(signal.SIGTERM)
        return _seconds_to_forced_exit()

    def test_lowered(self) -> None:
        """The supervisor is given the time of the workers from before the reload, which keep their timeout."""
        self.assertGreater(self.limit(600.0), 500)

    def test_unlimited(self) -> None:
        """It has no limit while a worker has none."""
        self.assertEqual(self.limit(0.0), math.inf)


class LogFileTests(SynchronousTestCase):
    """The file that the workers log to."""

    def test_missing_directory(self) -> None:
        """A launcher whose log file cannot be opened is not made, with an error that names the file."""
        path = f"{self.mktemp()}/node.log"
        error = self.assertRaises(ProblemError, ProcessLauncher, configuration(), Clock(), log_file=path)
        self.assertIn(f"log file '{Path(path).absolute()}': No such file or directory; name a file", str(error))

    def test_removed_directory(self) -> None:
        """A launcher ends although its log file cannot be opened any more; only its next start needs the file."""
        folder = Path(self.mktemp())
        folder.mkdir()
        launcher = ProcessLauncher(configuration(), Clock(), log_file=str(folder / "node.log"))
        shutil.rmtree(folder)
        launcher.startService()  # has no server
        self.assertEqual(launcher.state, "failed")
        self.assertEqual([failure.type for failure in self.flushLoggedErrors()], [StateError])
        self.assertRaises(ProblemError, launcher.privilegedStartService)
