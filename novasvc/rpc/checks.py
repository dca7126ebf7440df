"""What a client checks before it sends a message: whether the target is up, and which version it may have."""

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.rpc.errors import RPCError
from novasvc.rpc.target import Target

Checked = RPCError | Deferred[RPCError | None] | None
"""None: the message may be sent. An error: it may not. A Deferred that fires with one of them: it is not known yet."""

Check = Callable[[Target], Checked]
"""Check a target. The Deferred that it may return fires within a bound of its own, and does not fail."""


def check_target(checks: Sequence[Check], target: Target) -> Checked:
    """Make several checks, until one forbids the message. It costs a call each while the answers are known."""
    for place, check in enumerate(checks, 1):
        answer = check(target)
        if isinstance(answer, Deferred):
            return Deferred.fromCoroutine(_check_rest(answer, checks[place:], target))
        if answer is not None:
            return answer
    return None


async def _check_rest(pending: Deferred[RPCError | None], checks: Sequence[Check], target: Target) -> RPCError | None:
    answer = await pending
    if answer is not None:
        return answer
    rest = check_target(checks, target)
    return await rest if isinstance(rest, Deferred) else rest


def send_when_checked(
    pending: Deferred[RPCError | None],
    clock: IReactorTime,
    timeout: float | None,
    send: Callable[[float | None], Deferred[Any]],
) -> Deferred[Any]:
    """Send a message when a check that is under way allows it.

    :param pending: the result of :func:`check_target`.
    :param timeout: seconds for both; None for no limit.
    :param send: sends the message, and takes the seconds that are left.
    :return: the Deferred of ``send``, or a failure with the error of the check. Cancelling it cancels either.
    """

    async def check_and_send() -> Any:
        began = clock.seconds()
        if timeout is not None:
            pending.addTimeout(max(0.0, timeout), clock, onTimeoutCancel=lambda *_: None)
        error = await pending
        if error is not None:
            raise error
        return await send(None if timeout is None else timeout - (clock.seconds() - began))

    return Deferred.fromCoroutine(check_and_send())
