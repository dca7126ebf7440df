"""Verdicts on rows that were read from a registry, with a second query for what the others do, if that matters."""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args
from weakref import WeakSet

import attrs
from twisted.logger import Logger

from novasvc.interfaces import IServiceRegistry
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.query import ServicePage, ServiceQuery
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Judge, OutageKey, Status, Verdict, describe_outages, needs_outages
from novasvc.telemetry import metrics

_log = Logger()

PAGE = 500
"""Rows of a page: a transaction of a few milliseconds."""

_MOST_PAGES = 100
"""Pages that are read again at the most: a fleet of 50,000 services once more."""

_readers: WeakSet[object] = WeakSet()
"""Those in this process that count the verdicts. The metrics are of the process, and all count the same fleet."""


# Note [Services that return during a read]
#
# Outages are read after the rows, and concern services that are silent at that moment. If the last services that a
# stall kept silent return between the two, no outage excuses their old rows any more. So the rows of services that
# would be down because of their silence are read once more after the outages. A service that is still silent then was
# silent when the outages were read, and they excuse it if it has an excuse.
#
# Services that died long ago are read again each time. So the first query is for services that are not up: mostly one
# page has them all. The second query is for services that have returned; mostly there are none.


@attrs.frozen
class FleetVerdicts:
    """All services of a fleet, judged.

    :param services: rows and verdicts, in the order of their ids, without those that :func:`may_be_heard` leaves out.
    :param outages: those that concern many services.
    """

    services: Sequence[tuple[ServiceRecord, Verdict]]
    outages: Outages


def may_be_heard(record: ServiceRecord) -> bool:
    """Return whether a service sends heartbeats, as far as is known.

    Nova's API servers register, and never send any. They would be down for ever.
    """
    return record.last_seen_up is not None or record.incarnation is not None or record.forced_down


async def judge_some(registry: IServiceRegistry, records: Sequence[ServiceRecord], rule: VerdictRule) -> list[Verdict]:
    """Judge some services of a fleet.

    The registry is asked about the others only if one of these is silent.

    :param registry: the one from which the rows were read.
    :return: a verdict for each row, in the same order.
    :raises DatabaseError: the registry cannot be read.
    """
    outages, again = await read_outages(registry, [each for each in records if needs_outages(each, rule)], rule)
    judge = Judge(rule, outages)
    return [judge(again.get(record.id, record)) for record in records]


async def read_outages(
    registry: IServiceRegistry, silent: Sequence[ServiceRecord], rule: VerdictRule
) -> tuple[Outages, Mapping[int, ServiceRecord]]:
    """Read the outages that matter for silent services, then again the rows of those that would be down.

    See Note [Services that return during a read].

    :param silent: rows for which :func:`novasvc.registry.verdict.needs_outages` holds; without any, nothing is read.
    :return: the outages, and rows by id: judge them instead of the rows with the same id.
    """
    if not silent:
        return Outages(), {}
    outages: Outages = await registry.outages(rule)
    judge = Judge(rule, outages)
    down = {record.id for record in silent if may_be_heard(record) and judge(record).is_down}
    query = ServiceQuery(up=False, service_down_time=rule.service_down_time)
    again = await _read_again(registry, down, query)
    return outages, again | await _read_again(registry, down - again.keys(), ServiceQuery())


async def _read_again(registry: IServiceRegistry, ids: Iterable[int], query: ServiceQuery) -> dict[int, ServiceRecord]:
    """Read the rows that have one of some ids, in at most _MOST_PAGES pages.

    :param query: filters.
    :return: by id, without those that do not match the query or are deleted.
    """
    wanted, found, place = sorted(ids), dict[int, ServiceRecord](), 0
    for _ in range(_MOST_PAGES):
        if place == len(wanted):
            break
        after = str(wanted[place] - 1)
        page: ServicePage = await registry.page(attrs.evolve(query, sort="id", after=after, limit=PAGE))
        found |= {row.id: row for row in page.rows}
        place = bisect_right(wanted, page.rows[-1].id) if page.more else len(wanted)
    return {number: found[number] for number in wanted if number in found}


async def read_all(registry: IServiceRegistry, query: ServiceQuery | None = None) -> list[ServiceRecord]:
    """Read all services, page by page.

    :param query: filters; its order, marker and limit are ignored.
    :return: in the order of their ids.
    :raises DatabaseError: the registry cannot be read.
    """
    records: list[ServiceRecord] = []
    wanted = attrs.evolve(query or ServiceQuery(), sort="id", descending=False, after=None, limit=PAGE)
    while True:
        page: ServicePage = await registry.page(wanted)
        records += page.rows
        if not page.more:
            return records
        wanted = attrs.evolve(wanted, after=str(page.rows[-1].id))


async def judge_all(registry: IServiceRegistry, rule: VerdictRule, query: ServiceQuery | None = None) -> FleetVerdicts:
    """Read all services, and judge them.

    :param query: filters; its order, marker and limit are ignored.
    :raises DatabaseError: the registry cannot be read.
    """
    records = [*filter(may_be_heard, await read_all(registry, query))]
    outages, again = await read_outages(registry, [each for each in records if needs_outages(each, rule)], rule)
    records = [again.get(record.id, record) for record in records]
    return FleetVerdicts(list(zip(records, map(Judge(rule, outages), records), strict=True)), outages)


def count_verdicts(fleet: FleetVerdicts, reader: object) -> None:
    """Export the numbers of verdicts and outages as metrics, with the time: while reads fail, they stay as they are.

    :param reader: who has read the fleet; see :func:`forget_counts`.
    """
    _readers.add(reader)
    found = Counter((record.binary, verdict.status) for record, verdict in fleet.services)
    for binary in {binary for binary, _ in found} | {labels[0] for labels, _ in metrics.verdicts}:
        for status in get_args(Status):
            metrics.verdicts.at(binary, status).value = found[binary, status]
    metrics.outages.at().value = len(describe_outages(fleet.outages))
    metrics.fleet_read.at().value = time.time()


def forget_counts(reader: object) -> None:
    """Export the numbers no longer, unless another reader of this process counts. The time of the last read stays.

    :param reader: reads no more: another process counts from now on.
    """
    _readers.discard(reader)
    if not _readers:
        metrics.verdicts.clear()
        metrics.outages.clear()


@attrs.define
class OutageLog:
    """Logs each outage of a fleet when it is seen for the first time, and the end of the last one."""

    _known: dict[OutageKey, str] = attrs.field(factory=dict, init=False)

    def note(self, outages: Outages) -> None:
        """Compare with the outages of the call before."""
        found = describe_outages(outages)
        for key, problem in found.items():
            if key not in self._known:
                _log.error("services are suspect, not down: {problem}", problem=problem)
        if self._known and not found:
            last = next(reversed(self._known.values()))
            _log.info("no service is suspect because of the others any more; the last outage: {last}", last=last)
        self._known = found
