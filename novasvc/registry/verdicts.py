"""Verdicts on rows that were read from a registry, with a second query for what the others do, if that matters."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import get_args

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
    return list(map(Judge(rule, await read_outages(registry, records, rule)), records))


async def read_outages(registry: IServiceRegistry, records: Sequence[ServiceRecord], rule: VerdictRule) -> Outages:
    """Return the outages that matter for some rows, read after them."""
    if not any(needs_outages(record, rule) for record in records):
        return Outages()
    outages: Outages = await registry.outages(rule)
    return outages


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
    outages = await read_outages(registry, records, rule)
    return FleetVerdicts(list(zip(records, map(Judge(rule, outages), records), strict=True)), outages)


def count_verdicts(fleet: FleetVerdicts) -> None:
    """Export the numbers of verdicts and outages as metrics, with the time: while reads fail, they stay as they are."""
    found = Counter((record.binary, verdict.status) for record, verdict in fleet.services)
    for binary in {binary for binary, _ in found} | {labels[0] for labels, _ in metrics.verdicts}:
        for status in get_args(Status):
            metrics.verdicts.at(binary, status).value = found[binary, status]
    metrics.outages.at().value = len(describe_outages(fleet.outages))
    metrics.fleet_read.at().value = time.time()


def forget_counts() -> None:
    """Export the numbers no longer: another process counts from now on. The time of the last read stays."""
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
