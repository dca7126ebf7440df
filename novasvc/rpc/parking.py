"""Calls that were not begun when their deliveries became void: whoever gets the next ones decides."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.call import Call

GRACE = 5.0
"""Seconds of consuming after which a message that has not come again, and may be lost with the broker, is missed."""
_BOUND = 1000
"""Calls that are parked at the most; the oldest go first."""


class Parking:
    """Calls that wait for their messages to come again.

    :param clock: measures the grace.
    :param consuming: whether messages would reach us now, if there were any.
    :param missed: called with a call whose message is taken for lost.
    :ivar calls: those that are parked, by the unique ids of their messages.
    """

    # Note [Void deliveries]
    #
    # A message whose channel was lost is on its way to somebody, who runs it, or refuses it if it
    # may run once only; if it comes to us, it is as if nothing had been. To begin it meanwhile
    # would be to begin it twice, or after its caller was answered.
    #
    # But a broker that died may have taken it along, if its queue was not durable, and then it is
    # nowhere but here. If it has not come for a while, although we consume, an idempotent call is
    # run; it may be run elsewhere as well. Any other one is refused, as nobody can tell.

    def __init__(self, clock: IReactorTime, *, consuming: Callable[[], bool], missed: Callable[[Call], None]) -> None:
        self._clock = clock
        self._consuming = consuming
        self._missed = missed
        self.calls: dict[object, Call] = {}
        self._looks: dict[Call, int] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        """Return how many may yet be taken for lost."""
        return len(self._looks)

    def add(self, call: Call) -> None:
        """Park a call."""
        self.calls[call.request.unique_id or call] = call
        if len(self.calls) > _BOUND:
            self._purge()
        if not call.delivery.session.kept:
            self._looks[call] = 0
            self._look_later()

    def find(self, unique_id: str) -> Call | None:
        """Return the call of a message, if it is parked."""
        return self.calls.get(unique_id)

    def take(self, unique_id: str) -> bool:
        """Forget a call whose message has come again; return whether it was there."""
        call = self.calls.pop(unique_id, None)
        if call is not None:
            self._looks.pop(call, None)
        return call is not None

    def wait_no_longer(self) -> None:
        """Take no call for lost any more; a message that comes again is still recognised.

        Called when a server drains: nothing new begins there.
        """
        self._looks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Forget all."""
        self.calls.clear()
        self.wait_no_longer()

    def _purge(self) -> None:
        """Forget the calls that nobody waits for any more, and the oldest if there are still too many."""
        now = self._clock.seconds()
        over = [key for key, call in self.calls.items() if call.expires_at is not None and call.expires_at <= now]
        for key in [*over, *list(self.calls)[: max(0, len(self.calls) - len(over) - _BOUND)]]:
            call = self.calls.pop(key, None)
            if call is not None:
                self._looks.pop(call, None)

    def _look_later(self) -> None:
        if self._timer is None and self._looks:
            self._timer = self._clock.callLater(GRACE, self._look)

    def _look(self) -> None:
        self._timer = None
        self._purge()
        if self._consuming():
            # One grace at the least has passed at the second look.
            missed = [call for call, looks in self._looks.items() if looks]
            self._looks = {call: 1 for call in self._looks if call not in missed}
            for call in missed:
                self.calls.pop(call.request.unique_id or call, None)
                self._missed(call)
        self._look_later()
