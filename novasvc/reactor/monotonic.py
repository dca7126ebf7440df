"""Seconds that go on at one pace, whatever is done to the host's clock."""

import time
from typing import Any

# Note [Steady seconds]
#
# Twisted's reactor reckons with time.time(): when a host's clock is set forward by an hour, all
# that is due within that hour is due at once, and when it is set back, nothing happens for an
# hour, no heartbeat either. Every timer asks reactor.seconds(), so that is what is replaced: in a
# process that is ours, before it has any timer. Other people's processes are left alone.
#
# The new seconds begin as those of the clock, for some take them for the time of day, such as the
# access log of twisted.web, and go on as the monotonic ones.


def use_monotonic_clock(reactor: Any) -> None:
    """Let the reactor's timers take no notice of steps of the host's clock.

    :param reactor: left as it is if it runs, or has a timer.
    """
    if reactor.running or reactor.getDelayedCalls():
        return
    ahead = time.time() - time.monotonic()
    reactor.seconds = lambda: time.monotonic() + ahead
