"""Tests for novasvc.context."""

import uuid

from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, new_request_id


class RequestIdTests(SynchronousTestCase):
    """Tests for novasvc.context.new_request_id."""

    def test_form(self) -> None:
        """A request id is "req-" and a random UUID in its usual form."""
        for _ in range(100):
            prefix, text = new_request_id().split("-", 1)
            read = uuid.UUID(text)
            self.assertEqual((prefix, str(read), read.version, read.variant), ("req", text, 4, uuid.RFC_4122))

    def test_unique(self) -> None:
        """No two request ids are the same."""
        self.assertEqual(len({new_request_id() for _ in range(1000)}), 1000)


class RequestContextTests(SynchronousTestCase):
    """Tests for novasvc.context.RequestContext."""

    def test_round_trip(self) -> None:
        """A context survives the wire, except for the deadline: the clocks of two hosts differ."""
        sent = RequestContext(user_id="u", project_id="p", is_admin=True, deadline=5.0, extra={"roles": ["a"]})
        received = RequestContext.from_wire(sent.to_wire(), deadline=9.0)
        self.assertEqual(received.deadline, 9.0)
        self.assertEqual(received.to_wire(), sent.to_wire())

    def test_empty(self) -> None:
        """Without entries from the peer, the context has no user, no rights, and a new request id."""
        received = RequestContext.from_wire({})
        self.assertFalse(received.is_admin)
        self.assertTrue(received.request_id.startswith("req-"))

    def test_strange_values(self) -> None:
        """Only true makes a peer an admin, and a request id that is not a string is replaced."""
        received = RequestContext.from_wire({"is_admin": "yes", "request_id": 7})
        self.assertFalse(received.is_admin)
        self.assertIsInstance(received.request_id, str)

    def test_forged_request_ids(self) -> None:
        """A request id with line breaks, or a long one, is replaced, because it is logged."""
        for forged in ("req-1\n2026 [forged]", "\ud800", "x" * 65, "", "a b"):
            self.assertNotEqual(RequestContext.from_wire({"request_id": forged}).request_id, forged)
        self.assertEqual(RequestContext.from_wire({"request_id": "req-1_A.b"}).request_id, "req-1_A.b")

    def test_unknown_entries(self) -> None:
        """Unknown entries are kept and sent on."""
        received = RequestContext.from_wire({"traceparent": "00-1"})
        self.assertEqual(received.to_wire()["traceparent"], "00-1")
