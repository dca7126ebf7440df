"""Tests for novasvc.rpc.failures.reply."""

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import NoSuchMethodError, RemoteError
from novasvc.rpc.failures.origin import Origin, set_origin
from novasvc.rpc.failures.reply import wait_for_reply


class ReplyTests(SynchronousTestCase):
    def test_raised(self) -> None:
        """A built-in exception of a method becomes a RemoteError; other errors stay as they are."""

        async def raising(error: Exception) -> None:
            raise error

        for error, kind, text in (
            (CancelledError(), CancelledError, ""),
            (KeyError("disk"), RemoteError, "remote error: KeyError 'disk'"),
            (NoSuchMethodError("x"), NoSuchMethodError, "'x'"),
        ):
            raised = self.assertRaises(kind, wait_for_reply(raising(error)).send, None)
            self.assertIn(text, str(raised))

    def test_origin(self) -> None:
        """A RemoteError that stands for another exception says where that was raised."""

        async def raising() -> None:
            error = KeyError("disk")
            set_origin(error, Origin(topic="agent", method="x", host="h1", worker=2, request_id="req-1"))
            raise error

        raised = self.assertRaises(RemoteError, wait_for_reply(raising()).send, None)
        self.assertEqual(str(raised), "remote error: KeyError 'disk' (from agent.x on h1 worker 2; request req-1)")
