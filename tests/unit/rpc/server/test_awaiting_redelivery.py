"""Tests for novasvc.rpc.server.awaiting_redelivery: calls that waited when their session ended."""

from typing import Any

from novasvc.errors import RedeliveredError, RPCTimeoutError
from novasvc.rpc.server.awaiting_redelivery import REDELIVERY_GRACE
from tests.support.rpc_rig import TARGET, RPCCase


class AwaitingRedeliveryTests(RPCCase):
    def lose_broker(self, *, redelivers: bool) -> None:
        """End the session without redeliveries, and consume again."""
        listener: Any = self.server._listener
        session = listener._session
        session.redelivers, session.ended = redelivers, True
        listener.cancel()
        self.server._listener = self.successResultOf(self.transport.listen(TARGET, listener._receiver, 2))

    def fill(self) -> None:
        """Run two methods while an idempotent call and one that is not idempotent wait."""
        self.calls = [self.call(method, what=method) for method in ("hang", "hang", "hang_again", "note")]
        self.assertEqual(len(self.server._dispatcher._waiting), 2)

    def end_running(self) -> None:
        for hanging in self.diary.hanging:
            hanging.callback(None)
        self.clock.advance(0)

    def test_message_lost(self) -> None:
        """A call whose message may be lost is run after a while if it is idempotent, and refused otherwise."""
        self.fill()
        self.lose_broker(redelivers=False)
        self.end_running()
        self.clock.advance(REDELIVERY_GRACE)
        self.assertEqual(self.diary.calls, ["hang"] * 2)
        drained = self.server.drained()
        self.assertNoResult(drained)
        self.clock.pump([REDELIVERY_GRACE, 0.0])
        self.assertEqual(self.diary.calls, ["hang"] * 2 + ["hang_again"])
        self.failureResultOf(self.calls[3], RedeliveredError)
        self.diary.hanging[2].callback("done")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(self.calls[2]), "done")
        self.successResultOf(drained)

    def test_kept(self) -> None:
        """A call whose message the broker keeps is left to the redelivery, and does not delay the shutdown."""
        self.fill()
        self.lose_broker(redelivers=True)
        self.end_running()
        self.clock.pump([REDELIVERY_GRACE] * 10)
        self.assertEqual(self.diary.calls, ["hang"] * 2)
        self.successResultOf(self.server.drained())

    def test_draining(self) -> None:
        """A draining server neither begins nor refuses calls that wait for a redelivery, nor waits for them."""
        for drained_first in (True, False):
            self.setUp()
            self.fill()
            self.lose_broker(redelivers=False)
            if drained_first:
                self.server.drain()
            self.end_running()
            if not drained_first:
                self.server.drain()
            self.clock.pump([REDELIVERY_GRACE] * 4)
            self.assertEqual(self.diary.calls, ["hang"] * 2, drained_first)
            self.successResultOf(self.server.drained())

    def test_drained_without_broker(self) -> None:
        """A drain ends with the running methods, while calls of their operation await a redelivery that cannot come."""
        for live in (True, False):
            self.setUp()
            self.fill()
            self.lose_broker(redelivers=False)
            self.server.drain()
            self.server._listener.live = live  # type: ignore[union-attr]
            drained = self.server.drained()
            self.end_running()
            self.successResultOf(drained)

    def test_cut_short(self) -> None:
        """A server that is cut short does not wait for calls that wait for a redelivery, however long they have."""
        for ended_first in (True, False):
            self.setUp()
            self.fill()
            self.lose_broker(redelivers=False)
            if ended_first:
                self.end_running()
            drained = self.server.drained()
            self.assertNoResult(drained)
            self.server.cut_short("b@h was shutting down")
            self.successResultOf(drained)

    def test_nobody_waits(self) -> None:
        """An expired call is forgotten and not begun."""
        self.fill()
        self.lose_broker(redelivers=False)
        self.end_running()
        self.server._listener.live = False  # type: ignore[union-attr]  # as while the broker is away
        drained = self.server.drained()
        self.clock.pump([REDELIVERY_GRACE] * 20)  # the calls' timeout is 60 s
        self.assertEqual(len(self.server._dispatcher._awaiting), 0)
        for call in self.calls[2:]:
            self.failureResultOf(call, RPCTimeoutError)
        self.successResultOf(drained)
