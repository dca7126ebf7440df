"""The end of who is at the other end of a socket pair, seen by a process that does not look."""

# Note [Who sees a hangup]
#
# A worker sees by its channel that its supervisor is gone. One that hangs sees nothing; the
# forkserver kills it. But the two can be killed at once, and a forkserver that imports does not
# look either. So the system is asked for a signal whenever something happens at the socket. Its
# handler runs between two steps of Python, whatever that is doing.

import fcntl
import os
import select
import signal
from collections.abc import Callable


def call_when_orphaned(descriptor: int, act: Callable[[], object]) -> None:
    """Call a function, in a handler of SIGIO, when the other end is closed; maybe more than once.

    One for a process, in its main thread.

    :param descriptor: of one end of a socket pair, open as long as this is wanted.
    """
    poll = select.poll()
    poll.register(descriptor, 0)  # the end is always told
    looking = again = False

    def look(_number: int, _frame: object) -> None:
        # Signals come in the midst of this, too, and poll objects are not for two at a time.
        nonlocal looking, again
        again = True
        if looking:
            return
        looking = True
        try:
            while again:
                again = False
                if poll.poll(0):
                    act()
        finally:
            looking = False

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    signal.raise_signal(signal.SIGIO)  # maybe it was closed before
