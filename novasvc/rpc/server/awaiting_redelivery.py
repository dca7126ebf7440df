"""Calls that wait for a redelivery, because their deliveries became void before their methods began."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.server.call import Call

REDELIVERY_GRACE = 5.0
"""Seconds, at least, to wait for a redelivery while the server consumes; after that the message counts as lost."""
_MAX_CALLS = 1000
"""The most calls that wait; beyond that, expired calls and then the oldest ones are forgotten."""


class AwaitingRedelivery:
    """Keep calls until their messages are redelivered or count as lost.

    :param clock: measures REDELIVERY_GRACE.
    :param consuming: whether a redelivery would reach this server now.
    :param lost: called with each call whose message counts as lost.
    :param checked: called after each check, which may have been the last one of some calls.
    :ivar calls: the calls, by the unique ids of their messages.
    """

    # Note [Void deliveries]
    #
    # The loss of a channel makes its deliveries void: an acknowledgement is only valid on the channel of
    # the delivery (AMQP 0-9-1, domain delivery-tag), and the broker redelivers the messages. Another server that
    # receives the redelivery runs it, or refuses it if its method is not idempotent. If this server
    # receives the redelivery, the call waits again as before. Beginning the call in the meantime could
    # run it twice, or after its caller was refused.
    #
    # A broker that died may have lost the message, if its queue was not durable. Then this call is the
    # only copy. If there is no redelivery within REDELIVERY_GRACE, although this server consumes, an
    # idempotent call is run; another server may run it too. Any other call is refused with
    # RedeliveredError, because nothing tells whether another server has begun it.
    #
    # If the session's messages are certainly redelivered (ISession.redelivers), the call only waits.

    def __init__(
        self,
        clock: IReactorTime,
        *,
        consuming: Callable[[], bool],
        lost: Callable[[Call], None],
        checked: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._consuming = consuming
        self._lost = lost
        self._checked = checked
        self.calls: dict[object, Call] = {}
        self._checks: dict[Call, int] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        """Return the number of calls whose messages may still come to count as lost."""
        return len(self._checks)

    def add(self, call: Call) -> None:
        """Keep a call whose delivery is void. Drops expired calls, then the oldest, if there are too many."""
        self.calls[call.request.unique_id or call] = call
        if len(self.calls) > _MAX_CALLS:
            self._purge()
        if not call.delivery.session.redelivers:
            self._checks[call] = 0
            self._schedule_check()

    def get(self, unique_id: str) -> Call | None:
        """Return the call of a message that waits for its redelivery, or None."""
        return self.calls.get(unique_id)

    def remove(self, unique_id: str) -> bool:
        """Forget a call whose message was redelivered; return whether it was waiting."""
        call = self.calls.pop(unique_id, None)
        if call is not None:
            self._checks.pop(call, None)
        return call is not None

    def stop_checks(self) -> None:
        """Let no message count as lost any more; a redelivery is still recognised.

        Called when the server drains, because a draining server begins no new operation.
        """
        self._checks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Forget all calls and stop the timer."""
        self.calls.clear()
        self.stop_checks()

    def _purge(self) -> None:
        """Forget the expired calls, and the oldest ones if there are still too many."""
        now = self._clock.seconds()
        expired = [key for key, call in self.calls.items() if call.expires_at is not None and call.expires_at <= now]
        oldest = list(self.calls)[: max(0, len(self.calls) - len(expired) - _MAX_CALLS)]
        for key in [*expired, *oldest]:
            call = self.calls.pop(key, None)
            if call is not None:
                self._checks.pop(call, None)

    def _schedule_check(self) -> None:
        if self._timer is None and self._checks:
            self._timer = self._clock.callLater(REDELIVERY_GRACE, self._check)

    def _check(self) -> None:
        self._timer = None
        self._purge()
        # While this server does not consume, a missing redelivery proves nothing, so the check does not count.
        if self._consuming():
            # One timer serves all calls, so a call's first check may come at once. At its second check it has
            # waited for at least one REDELIVERY_GRACE.
            lost = [call for call, checks in self._checks.items() if checks]
            self._checks = {call: 1 for call in self._checks if call not in lost}
            for call in lost:
                self.calls.pop(call.request.unique_id or call, None)
                self._lost(call)
        self._schedule_check()
        self._checked()
