"""Tests for the stable names of private queues."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.private_names import PrivateNames

FORKED = """
import os, pathlib, sys
from novasvc.transport.amqp.private_names import PrivateNames
directory = pathlib.Path(sys.argv[1])
parent = PrivateNames(directory, "h1", "agent")
name = parent.take("reply_", [])
read, write = os.pipe()
if not os.fork():
    os.close(write)
    os.read(read, 1)
    os._exit(0)
parent.release()
print(PrivateNames(directory, "h1", "agent").take("reply_", []) == name)
"""


class PrivateNamesTests(SynchronousTestCase):
    """Tests for PrivateNames."""

    def setUp(self) -> None:
        holder = TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.directory = Path(holder.name, "queues")

    def names(self, host: str = "h1", binary: str = "agent", directory: Path | None = None) -> PrivateNames:
        names = PrivateNames(directory or self.directory, host, binary)
        self.addCleanup(names.release)
        return names

    def assert_random(self, name: str) -> None:
        self.assertRegex(name, "^reply_[0-9a-f]{32}$")

    def test_successor(self) -> None:
        """A process has the names of one that has ended, on the same host, with the same arguments."""
        first = self.names()
        name = first.take("reply_", [1])
        self.assertRegex(name, "^reply_h1:agent:[0-9a-f]{8}:1$")
        self.assertTrue(first.is_stable(name))
        first.release()
        self.assertEqual(self.names().take("reply_", [1]), name)

    def test_at_the_same_time(self) -> None:
        """Processes that run at the same time have different names; the lowest free slot is used again."""
        running = [self.names() for _ in range(3)]
        names = [each.take("reply_", []) for each in running]
        self.assertEqual([name.rpartition(":")[2] for name in names], ["1", "2", "3"])
        running[1].release()
        self.assertEqual(self.names().take("reply_", []), names[1])

    def test_told_apart(self) -> None:
        """Host, binary, directory and arguments are in the name."""
        takers = [
            (self.names(), []),
            (self.names("h2"), []),
            (self.names(binary="api"), []),
            (self.names(directory=self.directory / "other"), []),
        ]
        names = [names.take("reply_", arguments) for names, arguments in takers]
        names.append(takers[0][0].take("reply_", ["quorum"]))
        self.assertEqual(len(set(names)), 5)
        self.assertEqual({name.rpartition(":")[2] for name in names}, {"1"})

    def test_twice_in_a_process(self) -> None:
        """A second queue of the same kind has a random name, until the first one is given back."""
        names = self.names()
        name = names.take("reply_", [])
        other = names.take("reply_", [])
        self.assert_random(other)
        self.assertFalse(names.is_stable(other))
        names.give_back(name)
        self.assertEqual(names.take("reply_", []), name)
        self.assertNotEqual(names.take("compute_fanout_", []), name)

    def test_random(self) -> None:
        """Names are random without a directory, without a lock file, and where they would be too long."""
        self.assert_random(PrivateNames().take("reply_", []))
        self.assert_random(self.names("h" * 250).take("reply_", []))
        file = self.directory.parent / "file"
        file.touch()
        refused = self.names(directory=file / "queues")
        self.assert_random(refused.take("reply_", []))
        self.assert_random(refused.take("reply_", []))

    def test_child(self) -> None:
        """A child that was forked does not keep the slot of its parent when that has released it."""
        command = [sys.executable, "-c", FORKED, str(self.directory)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        self.assertEqual(found.stdout, "True\n")
