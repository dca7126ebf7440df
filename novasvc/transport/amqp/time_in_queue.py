"""How long a message has waited in its queue, which the broker does not tell."""

from collections.abc import Callable

MAX_SENDERS = 10_000
"""The most senders whose clocks are known to differ from ours."""
TOLERANCE = 0.5
"""Seconds that a message may take to its consumer, or that two clocks may differ, without being remembered."""

# Note [Time in the queue]
#
# RabbitMQ delivers the expiration of a message as it was published: with 5 s, a call that has waited for 4 s in its
# queue would seem to have 5 s left, and its method would begin, or go on, after its caller has given up. So each
# message with a TTL says when it was sent, and a receiver takes the time since then from the TTL.
#
# That takes the clocks of two hosts for equal, until one of these messages shows how much they differ:
# - one that comes to a consumer that had room, and received nothing, for a while. It has not waited.
# - one that comes before it was sent.
# - one that has waited for longer than its TTL, which the broker would have dropped.
# A smaller difference replaces a larger one, because nothing can arrive before it was sent. So if this is wrong, a
# call has more time than its caller, as without it.
#
# A message that was delivered before, or held, may be older than its TTL: the broker does not drop what a process has.


class TimesInQueue:
    """Estimate for how long each message has waited; see Note [Time in the queue].

    :param now: returns the seconds since 1970.
    :ivar differences: how far our clock is ahead of a sender's in seconds, where that is more than TOLERANCE.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.differences: dict[bytes, float] = {}

    def waited(self, sender: bytes, seconds: float, ttl: float, *, at_once: bool, again: bool) -> float:
        """Return the seconds for which a message has waited, from 0 to its TTL.

        :param seconds: since it was sent, by our clock and the sender's.
        :param ttl: seconds, as it was published.
        :param at_once: its consumer had room, and received nothing, for a while.
        :param again: it was delivered or held before.
        """
        known = self.differences.get(sender, 0.0)
        waited = 0.0 if at_once and not again else seconds - known
        if waited > ttl and again:
            return ttl
        if 0.0 < waited <= ttl:
            return waited
        self._keep(sender, seconds)
        return 0.0

    def _keep(self, sender: bytes, difference: float) -> None:
        if abs(difference) < TOLERANCE:
            self.differences.pop(sender, None)
            return
        if sender not in self.differences and len(self.differences) >= MAX_SENDERS:
            del self.differences[next(iter(self.differences))]
        self.differences[sender] = difference
