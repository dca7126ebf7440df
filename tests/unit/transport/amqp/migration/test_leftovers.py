"""Tests for copies of messages that nobody consumed; tests/faults/test_amqp_migration.py moves them on a broker."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.codec import decode_properties, encode_properties
from novasvc.transport.amqp.content import DELIVERIES
from novasvc.transport.amqp.migration.leftovers import mark_redelivered


class MarkRedeliveredTests(SynchronousTestCase):
    """Tests for mark_redelivered."""

    def test_counted(self) -> None:
        """One delivery is counted at least; a header that is no count is replaced, the others stay."""
        for before, after in ((None, 1), (3, 3), (0, 1), ("x", 1), ([1], 1), (True, 1), (-1, 1), (2**40, 1)):
            headers = {"other": "kept"} if before is None else {"other": "kept", DELIVERIES: before}
            marked = mark_redelivered(encode_properties({"headers": headers, "expiration": "500"}))
            expected = {"headers": {"other": "kept", DELIVERIES: after}, "expiration": "500"}
            self.assertEqual(decode_properties(marked), expected, before)

    def test_without_headers(self) -> None:
        """A message without headers gets one."""
        self.assertEqual(decode_properties(mark_redelivered(b"\0\0")), {"headers": {DELIVERIES: 1}})

    def test_malformed(self) -> None:
        """Properties that cannot be read stay as they are."""
        for properties in (b"", b"\0\1", b"\x20\0\0\0\0\5"):
            self.assertEqual(mark_redelivered(properties), properties)
