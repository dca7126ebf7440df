"""What an operator asks for when queues are replaced, and what is reported."""

from collections.abc import Collection, Mapping, Sequence

import attrs

from novasvc.transport.amqp.migration.route import PAUSE

CENSUS = 1.0
"""Seconds; see Request."""


@attrs.frozen(kw_only=True)
class Step:
    """A report of what happens, or would happen.

    :param topic: the topic; "" for all.
    :param step: what is done, as a sentence.
    :param queues: the queues that it is about.
    """

    topic: str
    step: str
    queues: Sequence[str] = ()


@attrs.frozen(kw_only=True)
class Request:
    """What an operator asks for.

    :param kind: the type that the queues get, "quorum" or "classic".
    :param exchange: the control exchange.
    :param hosts: the hosts of each topic, as far as known; those that run answer by themselves.
    :param dry_run: report what would be done, and change nothing.
    :param cut_off_others: go on in spite of consumers that do not take part.
    :param timeout: seconds that a step may wait for requests in progress.
    :param pause: seconds between two steps; see Note [Replacing a queue].
    :param census: seconds in which the processes of a topic answer what they consume.
    """

    kind: str
    exchange: str
    hosts: Mapping[str, Collection[str]]
    dry_run: bool = False
    cut_off_others: bool = False
    timeout: float = 1800.0
    pause: float = PAUSE
    census: float = CENSUS
