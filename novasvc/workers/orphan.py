"""Detect by signal that the peer of a socket pair has gone, even in a blocked process."""

# Note [Detecting orphans]
#
# A worker normally sees its pipe close when the supervisor dies. A blocked worker does not; then the forkserver
# kills it. But supervisor and forkserver can be killed together, and a forkserver that is importing does not look
# either. So the kernel is asked for SIGIO on any event at the socket (O_ASYNC). Its handler runs between two
# bytecodes, whatever Python code is running.

import fcntl
import os
import select
import signal
from collections.abc import Callable


def call_when_orphaned(descriptor: int, on_close: Callable[[], object]) -> None:
    """Call a function, in a SIGIO handler, when the other end is closed; possibly several times.

    Use it once per process, in the main thread.

    :param descriptor: one end of a socket pair; keep it open.
    """
    poll = select.poll()
    poll.register(descriptor, 0)  # POLLHUP is always reported
    is_polling = poll_again = False

    def handle_sigio(_number: int, _frame: object) -> None:
        # A signal can interrupt this handler, and poll objects are not re-entrant.
        nonlocal is_polling, poll_again
        poll_again = True
        if is_polling:
            return
        is_polling = True
        try:
            while poll_again:
                poll_again = False
                if poll.poll(0):
                    on_close()
        finally:
            is_polling = False

    signal.signal(signal.SIGIO, handle_sigio)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    signal.raise_signal(signal.SIGIO)  # the peer may have closed before the handler was set
