"""How long a message has waited in its queue, which the broker does not tell."""

MAX_SENDERS = 10_000
"""The most senders whose clocks are known to differ from ours."""
TOLERANCE = 0.5
"""Seconds that a message may take to its consumer, or that two clocks may differ, and nothing is done about it."""

# Note [Time in the queue]
#
# RabbitMQ delivers the expiration of a message as it was published: with 5 s, a call that has waited for 4 s in its
# queue would seem to have 5 s left, and its method would begin, or go on, after its caller has given up. So each
# message with a TTL says when it was sent, and a receiver takes the time since then from the TTL.
#
# That takes the clocks of two processes for equal, until messages show how much they differ:
# - one that comes before it was sent;
# - two in a row, by about the same time, that come to a consumer that had room, and received nothing, for a while. They
#   have not waited; a single one may have, in the socket, while this process was blocked;
# - two in a row that have waited for longer than their TTL. The broker would have dropped them.
# A smaller difference replaces a larger one, because nothing can arrive before it was sent. So if one is wrong, a call
# has more time than its caller, as without it.
#
# The clocks are the reactors', which a step of the host's clock does not move, if they are monotonic.
#
# A message that was delivered before, or held, may be older than its TTL: the broker does not drop what a process has.


class TimesInQueue:
    """Estimate for how long each message has waited; see Note [Time in the queue].

    :ivar differences: how far our clock is ahead of a sender's in seconds, where that is more than TOLERANCE.
    """

    def __init__(self) -> None:
        self.differences: dict[bytes, float] = {}
        self._seen_once: dict[bytes, float] = {}

    def waited(self, sender: bytes, seconds: float, ttl: float, *, at_once: bool, again: bool) -> float:
        """Return the seconds for which a message has waited, from 0 to its TTL.

        :param seconds: since it was sent, by our clock and the sender's.
        :param ttl: seconds, as it was published.
        :param at_once: its consumer had room, and received nothing, for a while.
        :param again: it was delivered or held before.
        """
        if at_once and not again:
            self._compare(sender, seconds)
        waited = seconds - self.differences.get(sender, 0.0)
        if 0.0 <= waited <= ttl:
            return waited
        if waited < 0.0:
            self._keep(sender, seconds)
        elif again:
            return ttl
        else:
            self._compare(sender, seconds)
        return 0.0

    def _compare(self, sender: bytes, seconds: float) -> None:
        """Take the time of a message that seems not to have waited for the difference, if it is the second one."""
        before = self._seen_once.pop(sender, None)
        if abs(seconds) < TOLERANCE or (before is not None and abs(seconds - before) < TOLERANCE):
            self._keep(sender, seconds)
        else:
            _store(self._seen_once, sender, seconds)

    def _keep(self, sender: bytes, seconds: float) -> None:
        if abs(seconds) < TOLERANCE:
            self.differences.pop(sender, None)
        else:
            _store(self.differences, sender, seconds)


def _store(times: dict[bytes, float], sender: bytes, seconds: float) -> None:
    if sender not in times and len(times) >= MAX_SENDERS:
        del times[next(iter(times))]
    times[sender] = seconds
