"""Tests for novasvc.rpc.server.recent: the cache of replies for duplicate requests."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.message import ReplyTo
from novasvc.rpc.server.recent import MAX_BYTES, MAX_REPLIES, RecentReplies

REPLY_TO = ReplyTo("id", "reply_1")


class RecentRepliesTests(SynchronousTestCase):
    def test_last(self) -> None:
        """The last reply to a request is cached; other requests have none."""
        recent = RecentReplies()
        recent.add("a", REPLY_TO, b"1")
        recent.add("a", REPLY_TO, b"2")
        self.assertEqual((recent.get("a"), recent.get("b"), recent.get(None)), ((REPLY_TO, b"2"), None, None))

    def test_count(self) -> None:
        """The oldest replies are evicted when there are too many."""
        recent = RecentReplies()
        for number in range(MAX_REPLIES + 1):
            recent.add(str(number), REPLY_TO, b"")
        self.assertEqual((len(recent), recent.get("0"), recent.get("1")), (MAX_REPLIES, None, (REPLY_TO, b"")))

    def test_too_long(self) -> None:
        """A reply that is too long to be cached evicts no other."""
        recent = RecentReplies()
        recent.add("a", REPLY_TO, b"1")
        recent.add("b", REPLY_TO, bytes(MAX_BYTES + 1))
        self.assertEqual((recent.get("a"), recent.get("b")), ((REPLY_TO, b"1"), None))

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, MAX_BYTES + 1)), max_size=20))
    def test_bytes(self, added: list[tuple[int, int]]) -> None:
        """The cached bodies never exceed the bound in bytes, however long each is."""
        recent, bodies = RecentReplies(), {}
        for number, size in added:
            body = bodies[size] = bytes(size)
            recent.add(str(number), REPLY_TO, body)
            kept = [found[1] for each in range(6) if (found := recent.get(str(each))) is not None]
            self.assertLessEqual(sum(map(len, kept)), MAX_BYTES)
            self.assertEqual(recent.get(str(number)) is not None, size <= MAX_BYTES)
