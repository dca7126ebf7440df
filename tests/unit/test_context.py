"""Contexts, and what of them travels."""

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
        """What a context says arrives, but for the deadline, which has another clock over there."""
        sent = RequestContext(user_id="u", project_id="p", is_admin=True, deadline=5.0, extra={"roles": ["a"]})
        received = RequestContext.from_wire(sent.to_wire(), deadline=9.0)
        self.assertEqual(received.deadline, 9.0)
        self.assertEqual(received.to_wire(), sent.to_wire())

    def test_empty(self) -> None:
        """A peer that sends no context is nobody in particular, with a request id of ours."""
        received = RequestContext.from_wire({})
        self.assertFalse(received.is_admin)
        self.assertTrue(received.request_id.startswith("req-"))

    def test_strange_values(self) -> None:
        """A peer cannot become admin by anything but true, nor log by a request id that is no text."""
        received = RequestContext.from_wire({"is_admin": "yes", "request_id": 7})
        self.assertFalse(received.is_admin)
        self.assertIsInstance(received.request_id, str)

    def test_forged_request_ids(self) -> None:
        """A request id that could write lines of a log, or fill it, is replaced."""
        for forged in ("req-1\n2026 [forged]", "\ud800", "x" * 65, "", "a b"):
            self.assertNotEqual(RequestContext.from_wire({"request_id": forged}).request_id, forged)
        self.assertEqual(RequestContext.from_wire({"request_id": "req-1_A.b"}).request_id, "req-1_A.b")

    def test_unknown_entries(self) -> None:
        """Entries that we know nothing of are kept, and travel on."""
        received = RequestContext.from_wire({"traceparent": "00-1"})
        self.assertEqual(received.to_wire()["traceparent"], "00-1")
