"""A server's counters of deliveries."""

import attrs

from novasvc.telemetry import metrics


@attrs.define
class Counts:
    """Count the outcomes of a server's deliveries since its start.

    :param topic: the server's topic, a label of the metrics.
    :param received: all deliveries.
    :param completed: calls whose method returned.
    :param failed: calls whose method raised.
    :param timed_out: calls whose method was cancelled at its deadline.
    :param refused: requests refused before their method began: no such method, invalid arguments, redelivered.
    :param malformed: messages that could not be decoded, and were dropped.
    :param duplicates: deliveries of messages that were settled before.
    :param expired: calls dropped before their method began, because the caller had stopped waiting.
    :param given_back: requests requeued before their method began.
    :param quarantined: poison messages moved to the quarantine queue.
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
        """Count a delivery whose method was not run, or whose reply was lost.

        :param fate: the name of the counter: an attribute, and a label of the metric.
        """
        setattr(self, fate, getattr(self, fate) + 1)
        metrics.deliveries.at(self.topic, fate).value += 1
