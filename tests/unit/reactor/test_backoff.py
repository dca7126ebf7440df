"""Tests for novasvc.reactor.backoff."""

import random
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.backoff import jittered_backoff

_FORKS = """
import os
from novasvc.reactor.backoff import jittered_backoff

policy = jittered_backoff()
for _ in range(2):
    if not os.fork():
        print(policy(3), flush=True)
        os._exit(0)
    os.wait()
"""


class JitteredBackoffTests(SynchronousTestCase):
    def test_grows_to_bound(self) -> None:
        """Waits double up to the longest; each is drawn from the upper half of its bound."""
        policy = jittered_backoff(first=1, longest=10, random_source=random.Random(0))
        for attempt, bound in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (1000, 10)):
            for _ in range(20):
                self.assertTrue(bound / 2 <= policy(attempt) <= bound)

    def test_hosts_differ(self) -> None:
        """Two hosts with different random sources wait for different times."""
        one, other = (jittered_backoff(random_source=random.Random(seed)) for seed in (1, 2))
        self.assertNotEqual(one(3), other(3))

    def test_forks_differ(self) -> None:
        """Processes that were forked after the policy was made wait for different times."""
        ran = subprocess.run([sys.executable, "-c", _FORKS], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
        one, other = ran.stdout.split()
        self.assertNotEqual(one, other)
