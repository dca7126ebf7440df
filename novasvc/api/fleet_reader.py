"""The periodic read of the fleet for the page: rows, and the outages that concern many of their services."""

from novasvc.api.backend import Backend
from novasvc.api.watch import SLICE
from novasvc.reactor.turns import in_slices
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Judge, Verdict, describe_outages, needs_outages
from novasvc.registry.verdicts import FleetVerdicts, OutageLog, count_verdicts, may_be_heard, read_all, read_outages


class FleetReader:
    """Reads all rows. If it does so all the time, it also logs outages and exports the verdicts as metrics.

    A process that reads only while somebody looks at its page would not notice when an outage ends.

    :ivar outages: those of the latest read.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rule = VerdictRule.of(backend.settings)
        self._counts = bool(backend.settings.api_watch_interval)
        self._log = OutageLog()
        self._judge = Judge(self._rule, Outages())
        self.outages = Outages()

    async def read(self) -> list[ServiceRecord]:
        """Read the rows, page by page, then the outages, then again the rows of services that would be down.

        :raises DatabaseError: the registry cannot be read.
        :raises APIError: it is not connected.
        """
        backend = self._backend
        records = await read_all(backend.registry)
        silent: list[ServiceRecord] = []
        judged: list[tuple[ServiceRecord, Verdict]] = []  # in no order: they are only counted
        judge = Judge(self._rule, Outages())  # of services that are heard: outages do not matter for them
        async for some in in_slices(records, SLICE, backend.reactor):
            for record in some:
                if needs_outages(record, self._rule):
                    silent.append(record)
                elif self._counts and may_be_heard(record):
                    judged.append((record, judge(record)))
        outages, again = await read_outages(backend.registry, silent, self._rule)
        judge = Judge(self._rule, outages)
        if again:
            records = [again.get(record.id, record) for record in records]
        if self._counts:
            async for some in in_slices(silent, SLICE, backend.reactor):
                latest = (again.get(record.id, record) for record in some if may_be_heard(record))
                judged += ((record, judge(record)) for record in latest)
            self._log.note(outages)
            count_verdicts(FleetVerdicts(judged, outages), self)
        self.outages, self._judge = outages, judge
        return records

    def verdict(self, record: ServiceRecord) -> Verdict:
        """Judge a row of the latest read."""
        return self._judge(record)

    def problems(self) -> list[str]:
        """Return a sentence for each outage of the latest read."""
        return list(describe_outages(self.outages).values())
