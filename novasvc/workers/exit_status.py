"""How servers end, and with which status that ends their process."""

from collections.abc import Coroutine
from typing import Any, cast

from twisted.application.service import IService, IServiceCollection
from twisted.internet.defer import Deferred

from novasvc.interfaces import IInterruptible, IWaitable

# Note [The deadline of a drain]
#
# Work has graceful_shutdown_timeout. What is left then is cut short: a node and a server of connections do that by
# themselves, all others are told to, see hurry(). The process has half a second after the deadline to tidy up and to
# end, and a part of that is for the interpreter. So the two below are what is left of it: seconds after the deadline.

ABANDONED = 0.2
"""Until what has not stopped is left behind."""

FORCED = 0.3
"""Until a process that has not ended is ended by force."""

UNSUPERVISED = 60.0
"""Seconds that a worker has whose supervisor is gone, if graceful_shutdown_timeout is 0: nobody else would end it."""


def end_of(server: Any) -> Deferred[Any] | None:
    """Return a Deferred of the end of a server, if it knows of one: Nova's have ``wait`` for that."""
    # Nova's servers, and users', have a plain method wait() and know no interface; see Launcher.launch_server.
    wait = server.when_ended if IWaitable.providedBy(server) else getattr(server, "wait", None)
    try:
        ended = wait() if callable(wait) else None
    except Exception:  # noqa: BLE001 - it is something else that has this name
        return None
    if isinstance(ended, Coroutine):
        return Deferred.fromCoroutine(ended)
    return ended if isinstance(ended, Deferred) else None


def hurry(server: IService) -> None:
    """Have a server, and all that is in it, cut short what it does. It was told to stop before.

    :param server: provides IInterruptible, or has a plain method ``hurry()``; otherwise its parts are told.
    """
    # A user's service need not know the interface: docs/workers.md promises that the method is enough.
    if IInterruptible.providedBy(server) or callable(getattr(server, "hurry", None)):
        cast(IInterruptible, server).hurry()
    elif IServiceCollection.providedBy(server):
        for part in list(server):
            hurry(part)


def status_of(error: SystemExit) -> int:
    """Return the exit status that an interpreter would end with."""
    return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
