"""Troubles that the table of services does not show: nodes are asked for theirs, and leases are looked at."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.api.page.problems import FreeLease, NodeReport
from novasvc.api.watch import Watch
from novasvc.errors import NovasvcError
from novasvc.node.troubles import LONGEST
from novasvc.registry.lease import Lease
from novasvc.registry.record import ServiceRecord

_log = Logger()

TICK = 2.0
"""Seconds from the end of a round to the next one, while somebody looks at the page."""
BATCH = 20
"""Nodes that are asked in a round: of 1,000 nodes each is asked every 100 seconds if all answer at once, and every 200
seconds if one in each round does not answer."""
AGAIN = 10.0
"""Seconds after which a node, or the leases, are asked again at the earliest."""
CURRENT = 30.0
"""Seconds for which a report is shown without its age."""
KEPT = 300.0
"""Seconds for which a report is kept while nobody looks. A page without JavaScript needs it when it is loaded again,
because nodes are asked only after that."""
PATIENCE = 30.0
"""Seconds for which a lease is free before that is a problem: while a node restarts, its lease is free for a moment."""
_MAX_REPORTS = 20
"""Troubles of one node."""


class Reports(Service):
    """Asks nodes and leases in turn while somebody looks.

    Only nodes that tell their incarnation are asked: services of Nova's own do not know the question.

    :param watch: knows the services, and whether somebody looks.
    :param ask: coroutine function that returns the response of a service's node to "troubles".
    :param read_leases: coroutine function that returns all leases.
    """

    def __init__(
        self,
        watch: Watch,
        ask: Callable[[ServiceRecord], Awaitable[Any]],
        read_leases: Callable[[], Awaitable[list[Lease]]],
        clock: IReactorTime,
    ) -> None:
        self._watch = watch
        self._ask = ask
        self._read_leases = read_leases
        self._clock = clock
        self._reports: dict[int, Sequence[NodeReport]] = {}
        self._asked: dict[int, float] = {}
        """When each node was asked last: when it answered, or when the question failed."""
        self._leases: list[tuple[Lease, float]] = []
        self._leases_read = float("-inf")
        self._next: IDelayedCall | None = None
        self._asking: Deferred[None] | None = None

    @property
    def nodes(self) -> Mapping[int, Sequence[NodeReport]]:
        """The troubles of nodes, by the ids of their services."""
        return {
            number: [attrs.evolve(report, as_of=self._as_of(self._asked[number])) for report in reports]
            for number, reports in self._reports.items()
        }

    def _as_of(self, time: float) -> float | None:
        return time if self._clock.seconds() - time > CURRENT else None

    def leases(self) -> list[FreeLease]:
        """Return the leases that nobody holds although a service of their topic is up."""
        now = self._clock.seconds()
        topics = {service.record.topic for service in self._watch.services.values() if not service.is_trouble}
        as_of = self._as_of(self._leases_read)
        return [
            FreeLease(lease, since, as_of)
            for lease, since in self._leases
            if lease.topic in topics and now - since >= PATIENCE
        ]

    def startService(self) -> None:
        """Begin to ask."""
        super().startService()
        self._next = self._clock.callLater(TICK, self._begin)

    def stopService(self) -> None:
        """Stop asking; questions under way are given up."""
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._asking is not None:
            self._asking.cancel()

    def _begin(self) -> None:
        self._next = None
        self._asking = Deferred.fromCoroutine(self._round())

        def ended(_: object) -> None:
            self._asking = None
            if self.running:
                self._next = self._clock.callLater(TICK, self._begin)

        self._asking.addErrback(self._round_failed)
        self._asking.addBoth(ended)

    def _round_failed(self, failure: Failure) -> None:
        if self.running:  # else it was cancelled
            _log.failure("asking nodes for their troubles failed; it is tried again", failure)

    async def _round(self) -> None:
        now = self._clock.seconds()
        if not self._watch.is_viewed:
            self._expire(now)
            return
        self._forget()
        chosen = self._choose(now)
        asking = [Deferred.fromCoroutine(self._ask_one(record)) for record in chosen]
        try:
            if now - self._leases_read >= AGAIN:
                await self._look_at_leases()
            for each in asking:
                await each
        finally:
            for each in asking:
                each.cancel()
                each.addErrback(lambda _: None)  # given up

    def _choose(self, now: float) -> list[ServiceRecord]:
        """Return the nodes to ask in this round: those that were not asked for the longest time."""
        due = sorted(
            (self._asked.get(number, float("-inf")), number)
            for number, service in self._watch.services.items()
            if service.record.incarnation is not None and service.record.topic is not None and not service.is_trouble
        )
        return [self._watch.services[number].record for asked, number in due[:BATCH] if now - asked >= AGAIN]

    def _forget(self) -> None:
        """Forget what services told that do not exist, or do not run, any more."""
        for number in [*self._asked]:
            service = self._watch.services.get(number)
            if service is None or service.is_trouble:
                self._asked.pop(number, None)
                self._reports.pop(number, None)

    def _expire(self, now: float) -> None:
        """Forget what was told long ago."""
        for number in [*self._reports]:
            if now - self._asked[number] >= KEPT:
                del self._reports[number]
        if now - self._leases_read >= KEPT:
            self._leases = []

    async def _ask_one(self, record: ServiceRecord) -> None:
        try:
            reports = read_reports(await self._ask(record))
        except NovasvcError:
            # Whether a node can be reached is for its heartbeats to say; an older one does not know the question.
            reports = []
        finally:
            self._asked[record.id] = self._clock.seconds()
        if reports:
            self._reports[record.id] = reports
        else:
            self._reports.pop(record.id, None)

    async def _look_at_leases(self) -> None:
        try:
            leases = await self._read_leases()
        except NovasvcError:
            return  # the watch reports that the registry cannot be read
        now = self._leases_read = self._clock.seconds()
        self._leases = [(lease, now + min(0.0, lease.expires_in)) for lease in leases if lease.is_free]


def read_reports(document: Any) -> list[NodeReport]:
    """Validate the response of a node to "troubles"; what is not as it should be is left out."""
    rows = document[:_MAX_REPORTS] if isinstance(document, list) else []
    return [
        NodeReport(row["title"][:LONGEST], _text(row.get("why")), _seconds(row.get("since")))
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("title"), str)
    ]


def _text(value: Any) -> str:
    return value[:LONGEST] if isinstance(value, str) else ""


def _seconds(value: Any) -> float | None:
    """Return a time in seconds since 1970; None if it is not one in ISO 8601 with an offset."""
    try:
        moment = datetime.fromisoformat(value)
        return None if moment.tzinfo is None else moment.timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
