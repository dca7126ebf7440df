"""Wait for a reply, and raise only errors of novasvc."""

from collections.abc import Awaitable
from typing import TypeVar

from novasvc.errors import NovasvcError
from novasvc.rpc.errors import RemoteError
from novasvc.rpc.failures.origin import origin_of, set_origin

_T = TypeVar("_T")


async def wait_for_reply(reply: Awaitable[_T]) -> _T:
    """Wait for the reply to a call; turn an exception that is not novasvc's into a RemoteError.

    :raises RemoteError: class and text of the remote exception.
    """
    from twisted.internet.defer import CancelledError  # noqa: PLC0415 - the command line's `--help` does not need it

    try:
        return await reply
    except (NovasvcError, CancelledError):
        raise
    except Exception as error:
        remote = RemoteError(type(error).__name__, str(error), module=type(error).__module__)
        origin = origin_of(error)
        if origin is not None:
            set_origin(remote, origin)
        raise remote from error
