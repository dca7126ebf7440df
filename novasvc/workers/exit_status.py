"""How servers and processes end, and the exit status that follows."""

import contextlib
import os
import signal
from collections.abc import Coroutine
from typing import Any, cast

import attrs
from twisted.application.service import IService, IServiceCollection
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from novasvc.errors import NovasvcError
from novasvc.interfaces import IInterruptible, IWaitable

_log = Logger()

# Note [The deadline of a drain]
#
# Running work has graceful_shutdown_timeout. What remains then is cancelled: nodes and stream servers do that by
# themselves, others are told by their method hurry(). The process must be gone half a second after the deadline,
# interpreter shutdown included. The two constants divide that half second; both count from the deadline.

ABANDON_DELAY = 0.2
"""Seconds after the deadline at which parts that have not stopped are abandoned."""

KILL_DELAY = 0.3
"""Seconds after the deadline at which a process that has not exited is killed."""

UNSUPERVISED_GRACE = 60.0
"""Drain timeout of a worker without a supervisor if graceful_shutdown_timeout is 0: nobody else would stop it."""


@attrs.frozen
class Exit:
    """How a process ended.

    :param status: wait status, as from waitpid; None if unknown.
    """

    status: int | None

    @property
    def signal(self) -> int | None:
        """The signal that killed it, or None."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None

    @property
    def code(self) -> int | None:
        """Its exit status, or None."""
        return os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None

    def __str__(self) -> str:
        if self.status is None:
            return "exited with an unknown status"
        if self.code is not None:
            return f"exited with status {self.code}"
        number = self.signal or 0
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
        return f"was killed by signal {number}"


def end_of(server: Any) -> Deferred[Any] | None:
    """Return a Deferred that fires when a server ends, or None if the server cannot tell.

    :param server: provides IWaitable, or has Nova's method ``wait``.
    """
    # Nova's servers, and users', have a plain method wait() and know no interface; see Launcher.launch_server.
    wait = server.when_ended if IWaitable.providedBy(server) else getattr(server, "wait", None)
    try:
        ended = wait() if callable(wait) else None
    except Exception:  # noqa: BLE001 - an unrelated method with this name
        return None
    if isinstance(ended, Coroutine):
        return Deferred.fromCoroutine(ended)
    return ended if isinstance(ended, Deferred) else None


def interrupt(server: IService) -> None:
    """Make a server and its children cancel their running work. Called after stopService.

    :param server: provides IInterruptible, or has a plain method ``hurry()``, whose errors are logged; otherwise its
        parts are told.
    """
    # A user's service need not know the interface: docs/workers.md promises that the method is enough.
    if IInterruptible.providedBy(server) or callable(getattr(server, "hurry", None)):
        try:
            cast(IInterruptible, server).hurry()
        except Exception:  # noqa: BLE001 - a user's hurry() raised; the other parts are still interrupted
            _log.failure("hurry() of {service} failed; its remaining work may not be cancelled", service=server)
    elif IServiceCollection.providedBy(server):
        for part in list(server):
            interrupt(part)


def problem_of(error: NovasvcError | SystemExit) -> str:
    """Return the text of an error; a SystemExit's own text would be only its status."""
    return f"it raised SystemExit({error.code!r})" if isinstance(error, SystemExit) else str(error)


def status_of(error: SystemExit) -> int:
    """Return the exit status that the interpreter uses for a SystemExit."""
    return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
