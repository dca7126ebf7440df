"""The hold timer: keeps deliveries valid for longer than the broker waits for an acknowledgement."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.server.call import Call
from novasvc.rpc.server.ledger import Ledger


class HoldTimer:
    """Check the unsettled calls periodically, and requeue or hold those whose deliveries are due.

    A call that has not begun within ``hold_after`` is requeued: another server may have room for it. A
    running call is held, repeatedly; see :meth:`novasvc.interfaces.IDelivery.hold`.

    :param clock: measures the age of deliveries.
    :param ledger: the unsettled calls.
    :param hold_after: returns the current limit in seconds, see :class:`novasvc.interfaces.IListener`; None is
        no limit.
    :param requeue: requeues a call if it has not begun, and returns whether it did.
    """

    def __init__(
        self,
        clock: IReactorTime,
        ledger: Ledger,
        *,
        hold_after: Callable[[], float | None],
        requeue: Callable[[Call], bool],
    ) -> None:
        self._clock = clock
        self._ledger = ledger
        self._hold_after = hold_after
        self._requeue = requeue
        self._timer: IDelayedCall | None = None
        self._seconds: float | None = None

    def start(self) -> None:
        """Start the periodic check, or restart it if the limit has changed; stop it if there is no limit."""
        seconds = self._hold_after()
        if seconds != self._seconds or self._timer is None:
            self.stop()
            self._seconds = seconds
            if seconds is not None:
                # Checking at half the limit finds a due delivery at one and a half times the limit, at the latest.
                self._timer = self._clock.callLater(seconds / 2, self._check, seconds)

    def stop(self) -> None:
        """Stop the periodic check; held deliveries stay held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, seconds: float) -> None:
        self._timer = None
        due = self._clock.seconds() - seconds
        for call in self._ledger:
            if call.delivered <= due and not call.delivery.session.ended and not self._requeue(call):
                self._ledger.hold(call)
        self.start()
