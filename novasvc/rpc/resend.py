"""Send a message again when the broker did not confirm it."""

from collections.abc import Callable

from twisted.internet.defer import Deferred

from novasvc.rpc.errors import UnconfirmedError
from novasvc.telemetry import metrics

MAX_RESENDS = 10
"""The most times that an unconfirmed message is sent again. One that ends each connection must end itself."""


async def send_until_confirmed(send: Callable[[], Deferred[None]]) -> None:
    """Send a message until the broker confirms it, at most MAX_RESENDS times more.

    The transport buffers the message while there is no connection.

    :raises UnconfirmedError: the last attempt was not confirmed either.
    """
    for attempt in range(MAX_RESENDS + 1):
        try:
            await send()
        except UnconfirmedError:
            if attempt == MAX_RESENDS:
                raise
            metrics.resent.at().value += 1
        else:
            return
