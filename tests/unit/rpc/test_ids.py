"""Tests for novasvc.rpc.ids."""

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import novasvc
from novasvc.rpc.ids import new_id

_FORKED = """
import os
from novasvc.rpc.ids import new_id

new_id()  # fills the pool
reading, writing = os.pipe()
child = os.fork()
ids = " ".join(new_id() for _ in range(100))
if child:
    os.waitpid(child, 0)
    print(ids, os.read(reading, 1 << 16).decode())
else:
    os.write(writing, ids.encode())
    os._exit(0)
"""


class NewIdTests(SynchronousTestCase):
    def test_unique(self) -> None:
        """Ids are 32 hexadecimal digits, and each is unique."""
        ids = [new_id() for _ in range(1000)]
        self.assertEqual(len(set(ids)), 1000)
        self.assertTrue(all(len(one) == 32 and int(one, 16) >= 0 for one in ids))

    def test_forked(self) -> None:
        """The child of a fork makes other ids than its parent, although the parent has some in its pool."""
        # In a process of its own, as this one may have threads.
        said = subprocess.run(
            [sys.executable, "-c", _FORKED],
            cwd=Path(novasvc.__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        ).stdout.split()
        self.assertEqual((len(said), len(set(said))), (200, 200))
