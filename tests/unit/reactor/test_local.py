"""Tests for novasvc.reactor.local: values that belong to a reactor."""

import gc
import weakref

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.local import ReactorLocal


class ReactorLocalTests(SynchronousTestCase):
    def test_made_once(self) -> None:
        """A value is made when it is first asked for, one for each reactor."""
        local = ReactorLocal(lambda reactor: [reactor.seconds()])
        one, other = Clock(), Clock()
        other.advance(3)
        self.assertIs(local.get(one), local.get(one))
        self.assertEqual((local.get(one), local.get(other)), ([0], [3]))

    def test_set(self) -> None:
        """A value that was set is that of its reactor only."""
        local = ReactorLocal(lambda _: "made")
        one = Clock()
        local.set(one, "set")
        self.assertEqual((local.get(one), local.get(Clock())), ("set", "made"))

    def test_forgotten(self) -> None:
        """A reactor is not kept by what belongs to it."""
        local: ReactorLocal[object] = ReactorLocal(lambda _: object())
        reactor = Clock()
        gone = weakref.ref(reactor)
        local.get(reactor)
        del reactor
        gc.collect()
        self.assertIsNone(gone())
