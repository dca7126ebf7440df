"""Restore what the broker has taken away, such as a channel or a consumer, with backoff."""

from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.reactor.backoff import RetryPolicy
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.errors import BrokerError

_log = Logger()


async def restore(
    step: Callable[[], Awaitable[None]],
    wanted: Callable[[], bool],
    failed: Callable[[Exception], None],
    *,
    clock: IReactorTime,
    backoff: RetryPolicy,
) -> bool:
    """Repeat a step after pauses until it succeeds; cancel the coroutine to stop.

    :param step: restores it; fails with AMQPClosedError or BrokerError.
    :param wanted: returns whether to go on; asked before and after each pause.
    :param failed: called with the error of a failed step, for the log; once for each change of its text.
    :return: whether the step has succeeded.
    """
    attempt, reported = 0, ""
    while wanted():
        attempt += 1
        await deferLater(clock, backoff(attempt), lambda: None)
        if not wanted():
            break
        try:
            await step()
        except (BrokerError, AMQPClosedError) as error:
            if str(error) != reported:
                reported = str(error)
                failed(error)
        else:
            return True
    return False


def log_unless_cancelled(failure: Failure, what: str) -> None:
    """Log a failure with its traceback, except a cancellation.

    :param what: what failed, as a sentence.
    """
    if not failure.check(CancelledError):
        _log.failure("{what}", failure, what=what)
