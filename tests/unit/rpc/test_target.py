"""Tests for novasvc.rpc.target and novasvc.reactor.backoff."""

import random

from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import InvalidTargetError
from novasvc.reactor.backoff import jittered_backoff
from novasvc.rpc.target import Target


class TargetTests(SynchronousTestCase):
    """Tests for novasvc.rpc.target.Target."""

    def test_text(self) -> None:
        """The text of a target is its queue's name, or names the whole topic."""
        self.assertEqual(str(Target("compute")), "compute")
        self.assertEqual(str(Target("compute", "h1")), "compute.h1")
        self.assertEqual(str(Target("compute", fanout=True)), "all of compute")

    def test_wildcards(self) -> None:
        """A topic or server with a wildcard or white space is refused."""
        for topic, server in (("", None), ("a*", None), ("a", "#"), ("a b", None), ("a", "")):
            self.assertRaises(InvalidTargetError, Target, topic, server)

    def test_long(self) -> None:
        """A name too long for a queue with its suffixes, or that UTF-8 cannot encode, is refused."""
        Target("a" * 215)
        Target("a" * 10, "b" * 244)
        for topic, server in (("a" * 216, None), ("a" * 10, "b" * 245), ("ä" * 108, None), ("a", "\ud800")):
            self.assertRaises(InvalidTargetError, Target, topic, server)


class JitteredBackoffTests(SynchronousTestCase):
    """Tests for novasvc.reactor.backoff.jittered_backoff."""

    def test_grows_to_bound(self) -> None:
        """Pauses double up to the longest, each drawn from the upper half of its bound."""
        policy = jittered_backoff(first=1, longest=10, random_source=random.Random(0))
        for attempt, bound in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (1000, 10)):
            for _ in range(20):
                self.assertTrue(bound / 2 <= policy(attempt) <= bound)

    def test_hosts_differ(self) -> None:
        """Two hosts wait for different times."""
        one, other = (jittered_backoff(random_source=random.Random(seed)) for seed in (1, 2))
        self.assertNotEqual(one(3), other(3))
