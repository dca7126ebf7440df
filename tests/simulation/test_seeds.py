"""The seeds of CI, and those that have found something."""

from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from novasvc.testing.simulation import check_seeds, run_seed
from tests.simulation.fleet import build

SEEDS = Path(__file__).with_name("seeds.txt")

COUNT = 200
"""How many seeds each run of the tests simulates; `python -m tests.simulation` simulates more."""
PARTS = 4


def known_seeds() -> dict[int, str]:
    """Return what each seed of the file has found."""
    lines = [line.partition(" ") for line in SEEDS.read_text().splitlines() if line and not line.startswith("#")]
    return {int(seed): found for seed, _, found in lines}


@pytest.mark.timeout(300)
class SeedsTests(SynchronousTestCase):
    """The fleet keeps its promises."""

    def check_part(self, part: int) -> None:
        check_seeds(build, range(part, COUNT, PARTS))
        self.flushLoggedErrors()  # what the simulated nodes log: the simulation judges it

    def test_first_part(self) -> None:
        """Promises are kept for a quarter of the seeds."""
        self.check_part(0)

    def test_second_part(self) -> None:
        """Promises are kept for a quarter of the seeds."""
        self.check_part(1)

    def test_third_part(self) -> None:
        """Promises are kept for a quarter of the seeds."""
        self.check_part(2)

    def test_fourth_part(self) -> None:
        """Promises are kept for a quarter of the seeds."""
        self.check_part(3)

    def test_known(self) -> None:
        """What a seed has found once is not found again."""
        for seed, found in known_seeds().items():
            self.assertEqual(run_seed(build, seed).broken, [], found)
        self.flushLoggedErrors()
