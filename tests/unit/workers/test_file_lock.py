"""Tests for novasvc.workers.file_lock."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from novasvc.workers.file_lock import FileLock


class IdentityTests(SynchronousTestCase):
    """Tests for FileLock.identity()."""

    def test_time(self) -> None:
        """Whoever takes the lock later has the same lock, with a later time."""
        file = FileLock([Path(self.mktemp()).absolute()], "x.lock")
        self.addCleanup(file.release)
        self.assertIsNone(file.identity())
        held = []
        for _ in range(2):
            file.acquire()
            held.append((file.identity() or "").rpartition("@"))
            file.release()
        (lock, _, taken), (again, _, later) = held
        self.assertRegex(lock, r"^[0-9a-f-]{36}:\d+:\d+$")
        self.assertEqual(lock, again)
        self.assertLess(int(taken), int(later))
