"""Tests for novasvc.workers.orphan: the end of the other side, seen by who does not look."""

import fcntl
import os
import signal
import socket
import threading
import time

from twisted.trial.unittest import SynchronousTestCase

from novasvc.workers.orphan import call_when_orphaned

PATIENCE = 30.0


class CallWhenOrphanedTests(SynchronousTestCase):
    """SIGIO."""

    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGIO, signal.getsignal(signal.SIGIO))
        self.ours, self.theirs = socket.socketpair()
        self.addCleanup(self.theirs.close)
        self.addCleanup(self.ours.close)
        self.addCleanup(self.be_quiet)
        self.seen = 0

    def be_quiet(self) -> None:
        """Have no signal sent any more."""
        flags = fcntl.fcntl(self.ours.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(self.ours.fileno(), fcntl.F_SETFL, flags & ~os.O_ASYNC)

    def see(self) -> None:
        self.seen += 1

    def keep_busy_until_seen(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self.seen and time.monotonic() < end:
            pass

    def test_close(self) -> None:
        """That the other end is closed is seen by who is busy."""
        call_when_orphaned(self.ours.fileno(), self.see)
        self.assertEqual(self.seen, 0)
        threading.Timer(0.05, self.theirs.close).start()
        self.keep_busy_until_seen()
        self.assertTrue(self.seen)

    def test_closed_before(self) -> None:
        """That it was closed before is seen at once."""
        self.theirs.close()
        call_when_orphaned(self.ours.fileno(), self.see)
        self.assertTrue(self.seen)

    def test_data(self) -> None:
        """What comes through is no end, and stays for who reads it."""
        call_when_orphaned(self.ours.fileno(), self.see)
        self.theirs.send(b"hello")
        signal.raise_signal(signal.SIGIO)
        self.assertEqual((self.seen, self.ours.recv(100)), (0, b"hello"))

    def test_storm(self) -> None:
        """Signals that come while one is answered break nothing."""
        call_when_orphaned(self.ours.fileno(), self.see)
        over = threading.Event()

        def talk() -> None:
            while not over.is_set():
                self.theirs.send(b"x")
                self.ours.recv(1)

        talker = threading.Thread(target=talk)
        talker.start()
        try:
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                signal.raise_signal(signal.SIGIO)
        finally:
            over.set()
            talker.join()
        self.assertEqual(self.seen, 0)

    def test_signal_in_the_midst(self) -> None:
        """An end that comes while a signal is answered, is seen."""
        answers = []

        def answer() -> None:
            answers.append(len(answers))
            if len(answers) == 1:
                signal.raise_signal(signal.SIGIO)
                self.assertEqual(len(answers), 1)  # one after the other

        self.theirs.close()
        call_when_orphaned(self.ours.fileno(), answer)
        self.assertEqual(answers, [0, 1])
