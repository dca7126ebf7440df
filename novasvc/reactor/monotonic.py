"""Make the reactor's timers independent of steps of the host's clock."""

import time
from typing import Any

# Note [Monotonic clock]
#
# Twisted's reactor computes its timers with time.time(). If the host's clock is set forward by an
# hour, everything due within that hour is due at once; if it is set back, nothing runs for an hour,
# heartbeats included. Every timer calls reactor.seconds(), so that method is replaced, in processes
# of our own and before any timer exists. Other applications' processes are left alone.
#
# The new seconds start at the time of day, because some code takes them for it (twisted.web's
# access log), and advance with the monotonic clock.


def use_monotonic_clock(reactor: Any) -> None:
    """Make the reactor's timers ignore steps of the host's clock.

    :param reactor: left unchanged if it runs or has a timer: a change of its clock would shift that timer.
    """
    if reactor.running or reactor.getDelayedCalls():
        return
    ahead = time.time() - time.monotonic()
    reactor.seconds = lambda: time.monotonic() + ahead
