"""Parked calls: calls whose deliveries became void before their methods began."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.call import Call

GRACE = 5.0
"""Least seconds, while consuming, to wait for the redelivery of a message before the broker counts as having lost it.

The wait ends at the second look, and looks are GRACE apart.
"""
_BOUND = 1000
"""The most parked calls; the oldest are forgotten first."""


class Parking:
    """Keep calls until their messages are redelivered, or are taken for lost.

    :param clock: measures GRACE.
    :param consuming: whether a redelivery would reach this server now.
    :param missed: called with each call whose message is taken for lost.
    :ivar calls: the parked calls, by the unique ids of their messages.
    """

    # Note [Void deliveries]
    #
    # When a channel is lost, its deliveries are void: the broker redelivers the messages. Another server
    # that receives the redelivery runs it, or refuses it if its method is not idempotent. If this server
    # receives the redelivery, the call waits again as before. Beginning the call in the meantime could
    # run it twice, or after its caller was refused.
    #
    # A broker that died may have lost the message, if its queue was not durable. Then this call is the
    # only copy. If there is no redelivery within GRACE, although this server consumes, an idempotent call
    # is run; another server may run it too. Any other call is refused with RedeliveredError, because
    # nothing tells whether another server has begun it.
    #
    # If the session's messages are certainly redelivered (ISession.redelivers), the call only waits.

    def __init__(self, clock: IReactorTime, *, consuming: Callable[[], bool], missed: Callable[[Call], None]) -> None:
        self._clock = clock
        self._consuming = consuming
        self._missed = missed
        self.calls: dict[object, Call] = {}
        self._looks: dict[Call, int] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        """Return the number of calls that may still be taken for lost."""
        return len(self._looks)

    def add(self, call: Call) -> None:
        """Park a call whose delivery is void. Drops expired calls, then the oldest, if there are too many."""
        self.calls[call.request.unique_id or call] = call
        if len(self.calls) > _BOUND:
            self._purge()
        if not call.delivery.session.redelivers:
            self._looks[call] = 0
            self._look_later()

    def find(self, unique_id: str) -> Call | None:
        """Return the parked call of a message, or None."""
        return self.calls.get(unique_id)

    def take(self, unique_id: str) -> bool:
        """Forget a call whose message was redelivered; return whether it was parked."""
        call = self.calls.pop(unique_id, None)
        if call is not None:
            self._looks.pop(call, None)
        return call is not None

    def wait_no_longer(self) -> None:
        """Stop taking messages for lost; a redelivery is still recognised.

        Called when the server drains, because a draining server begins no new operation.
        """
        self._looks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Forget all parked calls and stop the timer."""
        self.calls.clear()
        self.wait_no_longer()

    def _purge(self) -> None:
        """Forget the expired calls, and the oldest ones if there are still too many."""
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
            # At its second look a call has been parked for at least one GRACE.
            missed = [call for call, looks in self._looks.items() if looks]
            self._looks = {call: 1 for call in self._looks if call not in missed}
            for call in missed:
                self.calls.pop(call.request.unique_id or call, None)
                self._missed(call)
        self._look_later()
