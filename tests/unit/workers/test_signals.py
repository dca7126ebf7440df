"""Signals as calls in the reactor's turn."""

import signal
import threading

from novasvc.workers.signals import Signals
from tests.support.launcher_rig import SignalsTestCase


class SignalsTests(SignalsTestCase):
    """Tests for novasvc.workers.signals."""

    def make(self) -> Signals:
        seen = self.log
        handlers = {signal.SIGUSR2: lambda: seen.append("dump"), signal.SIGTERM: lambda: seen.append("end")}
        return Signals(self.reactor, handlers, lambda number: seen.append(f"at once {number}"))

    def test_taken_when_running(self) -> None:
        """The signals are taken after the reactor has taken its own."""
        signals = self.make()
        signals.startService()
        self.assertIsNone(signals.former(signal.SIGTERM))
        self.reactor.begin()
        self.send(signal.SIGTERM)
        self.assertIn("end", self.log)
        self.assertFalse(self.reactor.stopped)
        self.assertTrue(callable(signals.former(signal.SIGTERM)))

    def test_taken_while_running(self) -> None:
        """A reactor that runs already is no reason to wait."""
        self.reactor.begin()
        self.make().startService()
        self.send(signal.SIGUSR2)
        self.assertIn("dump", self.log)

    def test_in_the_reactors_turn(self) -> None:
        """A signal's function waits for the reactor, so that it finds nothing half done; the other does not."""
        self.make().startService()
        self.reactor.begin()
        signal.raise_signal(signal.SIGUSR2)
        self.assertEqual(self.log, [f"at once {signal.SIGUSR2}"])
        self.reactor.turn()
        self.assertEqual(self.log[1:], ["dump"])

    def test_ignored(self) -> None:
        """A SIGINT that is ignored stays so, and the log says it; other signals that were ignored are taken."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
            signal.signal(number, signal.SIG_IGN)
        self.reactor.running = True
        signals = Signals(self.reactor, dict.fromkeys((signal.SIGINT, signal.SIGTERM), self.log.append))
        signals.startService()
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
        self.assertIsNot(signal.getsignal(signal.SIGTERM), signal.SIG_IGN)
        self.assertEqual([line for line in self.told if "SIGINT stays ignored" in line], self.told)
        signals.stopService()
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
        self.assertIs(signal.getsignal(signal.SIGTERM), signal.SIG_IGN)

    def test_given_back(self) -> None:
        """At the end the former handlers are back."""
        before = signal.getsignal(signal.SIGUSR2)
        signals = self.make()
        signals.startService()
        self.reactor.begin()
        signals.stopService()
        self.assertEqual(signal.getsignal(signal.SIGUSR2), before)
        self.send(signal.SIGTERM)
        self.assertTrue(self.reactor.stopped)
        self.assertEqual(self.log, [])

    def test_stopped_before_running(self) -> None:
        """Signals that were stopped before the reactor runs are not taken then."""
        before = signal.getsignal(signal.SIGUSR2)
        signals = self.make()
        signals.startService()
        signals.stopService()
        self.reactor.begin()
        self.assertEqual(signal.getsignal(signal.SIGUSR2), before)

    def test_taken_by_another(self) -> None:
        """A signal that somebody else has taken since stays theirs."""
        signals = self.make()
        signals.startService()
        self.reactor.begin()
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signals.stopService()
        self.assertIs(signal.getsignal(signal.SIGUSR2), signal.SIG_IGN)

    def test_resume(self) -> None:
        """What the reactor would have done at a signal can still be done."""
        signals = self.make()
        signals.startService()
        self.reactor.begin()
        self.assertTrue(signals.resume(signal.SIGTERM))
        self.reactor.turn()
        self.assertTrue(self.reactor.stopped)

    def test_nothing_to_resume(self) -> None:
        """A signal that would have done nothing, or ended the process on the spot, is not resumed."""
        self.reactor.begin()
        for former in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler):
            signal.signal(signal.SIGTERM, former)
            signals = self.make()
            self.assertFalse(signals.resume(signal.SIGTERM))
            signals.startService()
            self.assertFalse(signals.resume(signal.SIGTERM))
            signals.stopService()
            self.assertIs(signal.getsignal(signal.SIGTERM), former)

    def test_two(self) -> None:
        """Two who want to know of a signal both hear of it, and it is given back when both have stopped."""
        before = signal.getsignal(signal.SIGUSR2)
        self.reactor.begin()
        first, second = self.make(), self.make()
        first.startService()
        second.startService()
        self.send(signal.SIGUSR2)
        self.assertEqual(self.log.count("dump"), 2)
        first.stopService()
        self.send(signal.SIGUSR2)
        self.assertEqual(self.log.count("dump"), 3)
        second.stopService()
        self.assertEqual(signal.getsignal(signal.SIGUSR2), before)

    def test_two_resume(self) -> None:
        """What would have been done is done once, whoever asks for it."""
        self.reactor.begin()
        first, second = self.make(), self.make()
        first.startService()
        second.startService()
        self.assertTrue(first.resume(signal.SIGTERM))
        self.assertTrue(second.resume(signal.SIGTERM))
        self.reactor.turn()
        self.assertTrue(self.reactor.stopped)

    def test_other_thread(self) -> None:
        """Where the reactor runs in another thread, signals stay as they are, and one line says so."""
        before = signal.getsignal(signal.SIGUSR2)
        signals = self.make()
        self.reactor.running = True
        thread = threading.Thread(target=signals.startService)
        thread.start()
        thread.join()
        self.assertEqual(signal.getsignal(signal.SIGUSR2), before)
        self.assertEqual(self.told, ["signal handlers not installed: the reactor does not run in the main thread"])
        signals.stopService()
