"""Deliveries that are in hand for so long that the transport would take them back."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.call import Call
from novasvc.rpc.ledger import Ledger


class Holding:
    """Looks after the calls in hand, now and then.

    What is not begun after so long is given back, as others may have time for it. What runs is
    held, again and again; see :meth:`novasvc.interfaces.IDelivery.hold`.

    :param clock: measures the time.
    :param ledger: has the calls in hand.
    :param hold_after: seconds, see IListener; None is for ever, now.
    :param give_back: gives a call back if it only waits, and returns whether.
    """

    def __init__(
        self,
        clock: IReactorTime,
        ledger: Ledger,
        *,
        hold_after: Callable[[], float | None],
        give_back: Callable[[Call], bool],
    ) -> None:
        self._clock = clock
        self._ledger = ledger
        self._hold_after = hold_after
        self._give_back = give_back
        self._timer: IDelayedCall | None = None
        self._seconds: float | None = None

    def start(self) -> None:
        """Look after them by the limit that there is now, if there is one."""
        seconds = self._hold_after()
        if seconds != self._seconds or self._timer is None:
            self.stop()
            self._seconds = seconds
            if seconds is not None:
                # Whatever is due is found when half as much has passed again, at the latest.
                self._timer = self._clock.callLater(seconds / 2, self._look, seconds)

    def stop(self) -> None:
        """Look after them no longer; what is held stays so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, seconds: float) -> None:
        self._timer = None
        due = self._clock.seconds() - seconds
        for call in self._ledger:
            if call.delivered <= due and not call.delivery.session.ended and not self._give_back(call):
                self._ledger.hold(call)
        self.start()
