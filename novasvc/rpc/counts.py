"""What a server counts."""

import attrs

from novasvc.telemetry import metrics


@attrs.define
class Counts:
    """What became of the deliveries, since the start.

    :param topic: of the server, for the figures of the process.
    :param received: all of them.
    :param completed: the method returned.
    :param failed: the method raised.
    :param timed_out: the method was cancelled at a deadline.
    :param refused: no such method, bad arguments, delivered twice: the method was not begun.
    :param malformed: not a message.
    :param duplicates: seen before.
    :param expired: not begun, because nobody waited any more.
    :param given_back: not begun, or not yet, and sent back to their queue.
    :param quarantined: put aside, because they took their service down each time.
    :param unanswered: replies that could not be published.
    """

    topic: str = ""
    received: int = 0
    completed: int = 0
    failed: int = 0
    timed_out: int = 0
    refused: int = 0
    malformed: int = 0
    duplicates: int = 0
    expired: int = 0
    given_back: int = 0
    quarantined: int = 0
    unanswered: int = 0

    def unserved(self, fate: str) -> None:
        """Count a delivery that was not run, or whose reply was lost.

        :param fate: the name of its count.
        """
        setattr(self, fate, getattr(self, fate) + 1)
        metrics.deliveries.at(self.topic, fate).value += 1
