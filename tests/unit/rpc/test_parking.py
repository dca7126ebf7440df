"""Tests for novasvc.rpc.parking: what waited when its session ended."""

from typing import Any

from novasvc.errors import RedeliveredError, RPCTimeoutError
from novasvc.rpc.parking import GRACE
from tests.support.rpc_rig import TARGET, RPCCase


class ParkingTests(RPCCase):
    def lose_broker(self, *, kept: bool) -> None:
        """End the session, with nothing that comes again by itself, and consume again."""
        listener: Any = self.server._listener
        listener.kept, listener.ended = kept, True
        listener.cancel()
        self.server._listener = self.successResultOf(self.transport.listen(TARGET, listener._receiver, 2))

    def fill(self) -> None:
        """Have two methods run, while an idempotent call waits and one that may run once."""
        self.calls = [self.call(method, what=method) for method in ("hang", "hang", "hang_again", "note")]
        self.assertEqual(len(self.server._waiting), 2)

    def end_running(self) -> None:
        for hanging in self.diary.hanging:
            hanging.callback(None)
        self.clock.advance(0)

    def test_missed(self) -> None:
        """What a broker may have lost is run after a while if it may run again, and refused otherwise."""
        self.fill()
        self.lose_broker(kept=False)
        self.end_running()
        self.clock.advance(GRACE)
        self.assertEqual(self.diary.calls, ["hang"] * 2)
        drained = self.server.drained()
        self.assertNoResult(drained)
        self.clock.pump([GRACE, 0.0])
        self.assertEqual(self.diary.calls, ["hang"] * 2 + ["hang_again"])
        self.failureResultOf(self.calls[3], RedeliveredError)
        self.diary.hanging[2].callback("done")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(self.calls[2]), "done")
        self.successResultOf(drained)

    def test_kept(self) -> None:
        """What the broker has still is left to whom it comes to, and keeps nobody from ending."""
        self.fill()
        self.lose_broker(kept=True)
        self.end_running()
        self.clock.pump([GRACE] * 10)
        self.assertEqual(self.diary.calls, ["hang"] * 2)
        self.successResultOf(self.server.drained())

    def test_draining(self) -> None:
        """A server that drains begins none of them, waits for none, and refuses none."""
        for drained_first in (True, False):
            self.setUp()
            self.fill()
            self.lose_broker(kept=False)
            if drained_first:
                self.server.drain()
            self.end_running()
            if not drained_first:
                self.server.drain()
            self.clock.pump([GRACE] * 4)
            self.assertEqual(self.diary.calls, ["hang"] * 2, drained_first)
            self.successResultOf(self.server.drained())

    def test_cut_short(self) -> None:
        """A server that is cut short waits for none of them."""
        self.fill()
        self.lose_broker(kept=False)
        self.end_running()
        self.server.cut_short("b@h was shutting down")
        self.successResultOf(self.server.drained())

    def test_nobody_waits(self) -> None:
        """What nobody waits for any more is forgotten, and not begun."""
        self.fill()
        self.lose_broker(kept=False)
        self.end_running()
        self.server._listener.live = False  # type: ignore[union-attr]  # as while the broker is away
        self.clock.pump([GRACE] * 20)  # the calls' timeout is 60 s
        self.assertEqual(len(self.server._parking), 0)
        for call in self.calls[2:]:
            self.failureResultOf(call, RPCTimeoutError)
        self.successResultOf(self.server.drained())
