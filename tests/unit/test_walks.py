"""The walks that need no server: their figures are the same each time, and no walk gets longer unnoticed."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.target import Target
from tests.walks.__main__ import main
from tests.walks.recorder import Step, figures, record
from tests.walks.units import WITHOUT_SERVER

# A walk that is shorter now lowers its bound here; see docs/performance.md.
MOST = {
    "rpc_memory": {"calls": 69, "files": 12, "changes": 37},
    "os_services": {"calls": 57, "files": 18, "changes": 39},
    "heartbeat": {"calls": 14, "files": 4, "changes": 5},  # with the number of the incarnation
    "periodic_task": {"calls": 29, "files": 6, "changes": 14},
}


class RecorderTests(SynchronousTestCase):
    """Tests for tests.walks.recorder."""

    def test_ours(self) -> None:
        """Calls of the package's functions are recorded in order; those of tests and libraries are not."""
        first, second = Target("a"), Target("b")
        walk = record(lambda: sorted([str(first), str(second)]))
        self.assertEqual(walk, (Step("rpc/target.py", "Target.__str__"),) * 2)

    def test_figures(self) -> None:
        """The figures of a walk are its calls, its files, and how often it changes file."""
        walk = tuple(Step(file, "f") for file in "aabab")
        self.assertEqual(figures(walk), {"calls": 5, "files": 2, "changes": 3})
        self.assertEqual(figures(()), {"calls": 0, "files": 0, "changes": 0})


class WalkTests(SynchronousTestCase):
    """Tests for tests.walks.units."""

    def test_bounds(self) -> None:
        """Each walk has at most as many calls, files and changes of file as before."""
        self.assertEqual(MOST.keys(), WITHOUT_SERVER.keys())
        for name, walk in WITHOUT_SERVER.items():
            for what, number in figures(walk()).items():
                self.assertLessEqual(number, MOST[name][what], f"{what} of {name}")

    def test_stable(self) -> None:
        """A walk is the same when it is walked again."""
        for name, walk in WITHOUT_SERVER.items():
            first = walk()
            self.assertTrue(first, name)
            self.assertEqual(first, walk(), name)

    def test_output(self) -> None:
        """The command prints a line for each figure, and writes the same to a file."""
        file = Path(self.mktemp())
        with redirect_stdout(io.StringIO()) as printed:
            main(["heartbeat", "--json", str(file)])
        written = json.loads(file.read_text())
        self.assertEqual(list(written), [f"walks.heartbeat.{what}" for what in ("calls", "files", "changes")])
        self.assertEqual(printed.getvalue().splitlines(), [f"{name} {value}" for name, value in written.items()])
