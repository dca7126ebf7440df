"""What a client checks before it sends a message: whether the target is up, and which version it may have."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.rpc.errors import RPCError
from novasvc.rpc.target import Target

Checked = RPCError | Deferred[RPCError | None] | None
"""None: the message may be sent. An error: it may not. A Deferred that fires with one of them: it is not known yet."""

Check = Callable[[Target], Checked]
"""Check a target. The Deferred that it may return fires within a bound of its own, and does not fail."""


def both(first: Check | None, second: Check | None) -> Check | None:
    """Return a check that makes two checks, the second one if the first allows the message."""
    if first is None or second is None:
        return first or second

    def check(target: Target) -> Checked:
        answer = first(target)
        if isinstance(answer, Deferred):
            return Deferred.fromCoroutine(_then(answer, second, target))
        return second(target) if answer is None else answer

    return check


async def _then(pending: Deferred[RPCError | None], second: Check, target: Target) -> RPCError | None:
    answer: Checked = await pending
    if answer is None:
        answer = second(target)
    return await answer if isinstance(answer, Deferred) else answer


def send_when_checked(
    pending: Deferred[RPCError | None],
    clock: IReactorTime,
    timeout: float | None,
    send: Callable[[float | None], Deferred[Any]],
) -> Deferred[Any]:
    """Send a message when a check that is under way allows it.

    :param pending: the result of a check.
    :param timeout: seconds for both; None for no limit.
    :param send: sends the message, and takes the seconds that are left.
    :return: the Deferred of ``send``, or a failure with the error of the check. Cancelling it cancels either.
    """
    expired: list[None] = []

    async def check_and_send() -> Any:
        began = clock.seconds()
        if timeout is not None:
            pending.addTimeout(max(0.0, timeout), clock, onTimeoutCancel=lambda *_: expired.append(None))
        error = await pending
        if error is not None:
            raise error
        if timeout is None:
            return await send(None)
        return await send(0.0 if expired else timeout - (clock.seconds() - began))

    return Deferred.fromCoroutine(check_and_send())
