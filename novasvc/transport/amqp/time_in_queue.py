"""How long a message has waited in its queue, which the broker does not tell."""

from math import inf

import attrs

from novasvc.transport.amqp.content import read_stamp

MAX_SENDERS = 10_000
"""The most senders whose clocks are compared with ours."""
_WINDOW = 60.0
"""Seconds after which a difference between two clocks is measured anew."""

# Note [Time in the queue]
#
# RabbitMQ delivers the expiration of a message as it was published: with 5 s, a call that has waited for 4 s in its
# queue would seem to have 5 s left, and its method would begin, or go on, after its caller has given up. So each
# message with a TTL says when it was sent, and a receiver takes the time since then from the TTL.
#
# That compares the clocks of two processes. What comes to a consumer that has had room for a while has not waited, so
# it tells the difference between the clocks, with the time on the way; the smallest one of the last minute or two
# counts. While the consumer has no room nothing is learnt, and the last difference stays. Until one is known, as after
# a start with a full queue, the clocks count as equal.
#
# The broker drops what has waited for longer than its TTL. If a message seems to have, a clock was set: then it counts
# as one that has not waited.


@attrs.define
class _Difference:
    """How far our clock is ahead of a sender's, in seconds, as the smallest that was seen.

    :param smallest: of this window.
    :param until: seconds on our clock at which the window ends.
    :param before: the smallest of the window before.
    """

    smallest: float
    until: float
    before: float = inf


class TimesInQueue:
    """Estimate for how long each message has waited; see Note [Time in the queue]."""

    def __init__(self) -> None:
        self._differences: dict[bytes, _Difference] = {}

    def waited(self, sent: bytes, now: float, ttl: float, *, at_once: bool) -> float:
        """Return the seconds for which a message has waited, from 0 to its TTL.

        :param sent: its stamp; one that is malformed counts as none.
        :param now: seconds on our clock.
        :param ttl: seconds, as it was published.
        :param at_once: its consumer has had room for a while, so the message has not waited for it.
        """
        read = read_stamp(sent)
        if read is None:
            return 0.0
        sender, sent_at = read
        known = self._differences.get(sender)
        measured = now - sent_at
        if known is None:
            if at_once:
                self._add(sender, _Difference(measured, now + _WINDOW))
                return 0.0
            return measured if 0.0 <= measured <= ttl else 0.0
        if at_once and now >= known.until:
            known.before, known.smallest, known.until = known.smallest, measured, now + _WINDOW
        elif measured < known.smallest:
            known.smallest = measured
        waited = measured - min(known.smallest, known.before)
        if waited > ttl:
            self._differences[sender] = _Difference(measured, now + _WINDOW)
            return 0.0
        return waited

    def _add(self, sender: bytes, difference: _Difference) -> None:
        if len(self._differences) >= MAX_SENDERS:
            del self._differences[next(iter(self._differences))]
        self._differences[sender] = difference
