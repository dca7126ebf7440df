"""Tests for novasvc.rpc.server.ledger."""

import attrs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from novasvc.interfaces import ISession
from novasvc.rpc.server.ledger import SeenWindow


@implementer(ISession)
@attrs.define(eq=False)
class Session:
    ended: bool = False
    redelivers: bool = True


class SeenWindowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.window = SeenWindow(self.clock, count=3, seconds=10)
        self.session = Session()
        verifyObject(ISession, self.session)

    def add(self, *ids: str) -> None:
        for unique_id in ids:
            self.window.add(unique_id, self.session)

    def known(self, *ids: str) -> list[str]:
        return [unique_id for unique_id in ids if unique_id in self.window]

    def test_known(self) -> None:
        """An id is remembered once it is added."""
        self.add("a", "b", "a")
        self.assertEqual((self.known("a", "b", "c"), len(self.window)), (["a", "b"], 2))

    def test_count(self) -> None:
        """An id is dropped after ``count`` newer ids."""
        self.add("a", "b", "c", "a", "d")
        self.assertEqual((self.known("a", "b", "c", "d"), len(self.window)), (["a", "c", "d"], 3))

    def test_seconds(self) -> None:
        """An id is dropped after ``seconds``, counted from its latest addition."""
        self.add("a")
        self.clock.advance(9)
        self.add("a")
        self.clock.advance(9)
        self.assertEqual(self.known("a"), ["a"])
        self.clock.advance(1)
        self.assertEqual((self.known("a"), len(self.window)), ([], 0))

    def test_session_ended(self) -> None:
        """An id whose acknowledgement may be lost is remembered without a limit of time."""
        self.add("a")
        self.session.ended = True
        self.clock.advance(100_000)
        self.assertEqual(self.known("a"), ["a"])

    def test_session_ended_and_count(self) -> None:
        """An id whose acknowledgement may be lost is dropped only after ``count`` newer ids of the same kind."""
        self.add("a", "b")
        self.session.ended = True
        self.session = Session()
        self.add(*map(str, range(100)))
        self.assertEqual(self.known("a", "b", "96", "97"), ["a", "b", "97"])
        self.add("b")
        self.assertEqual(self.known("a", "b"), ["a", "b"])

    def test_expected(self) -> None:
        """An id whose copy is expected is remembered until the copy arrives, and then as long as any other."""
        self.window.add("a", self.session, expected=True)
        self.clock.advance(100_000)
        self.assertEqual(self.known("a"), ["a"])
        self.add("b", "c", "d")
        self.assertEqual(self.known("a"), ["a"])
        self.add("a")
        self.clock.advance(10)
        self.assertEqual(self.known("a"), [])

    def test_bounded(self) -> None:
        """The window is bounded, however many sessions end."""
        for number in range(100):
            self.add(str(number))
            self.session.ended = True
            self.session = Session()
        self.assertEqual(len(self.window), 6)
        self.assertEqual(self.known(*map(str, range(100))), [str(number) for number in range(94, 100)])
