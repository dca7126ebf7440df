"""Send a message again when the broker did not confirm it."""

from collections.abc import Callable

from twisted.internet.defer import Deferred

from novasvc.rpc.errors import RPCError, UnconfirmedError
from novasvc.telemetry import metrics

MAX_RESENDS = 10
"""The most times that an unconfirmed message is sent again. One that ends each connection must end itself."""


async def send_until_confirmed(send: Callable[[], Deferred[None]]) -> None:
    """Send a message until the broker confirms it, at most MAX_RESENDS times more.

    The transport buffers the message while there is no connection.

    :raises UnconfirmedError: the last attempt was not confirmed either, or the message could not be sent again; its
        cause then says why.
    :raises RPCError: the first attempt failed in another way.
    """
    unconfirmed: UnconfirmedError | None = None
    for attempt in range(MAX_RESENDS + 1):
        try:
            await send()
        except UnconfirmedError as error:
            if attempt == MAX_RESENDS:
                raise
            unconfirmed = unconfirmed or error
            metrics.resent.at().value += 1
        except RPCError as error:
            if unconfirmed is None:
                raise
            # The first copy may have arrived, so the error of the second one alone would mislead.
            problem = f"{unconfirmed.problem}; it could not be sent again: {error}"
            raise UnconfirmedError(unconfirmed.target, problem) from error
        else:
            return
