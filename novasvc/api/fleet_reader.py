"""The periodic read of the fleet for the page: rows, and the outages that concern many of their services."""

from novasvc.api.backend import Backend
from novasvc.api.watch import SLICE
from novasvc.reactor.turns import in_slices
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Judge, Verdict, describe_outages
from novasvc.registry.verdicts import FleetVerdicts, OutageLog, count_verdicts, may_be_heard, read_all, read_outages


class FleetReader:
    """Reads all rows. If it does so all the time, it also logs outages and exports the verdicts as metrics.

    A process that reads only while somebody looks at its page would not notice when an outage ends.

    :ivar outages: those of the latest read.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rule = VerdictRule.of(backend.settings)
        self._log = OutageLog()
        self._judge = Judge(self._rule, Outages())
        self.outages = Outages()

    async def read(self) -> list[ServiceRecord]:
        """Read the rows, page by page, then the outages.

        :raises DatabaseError: the registry cannot be read.
        :raises APIError: it is not connected.
        """
        backend = self._backend
        records = await read_all(backend.registry)
        outages = await read_outages(backend.registry, records, self._rule)
        judge = Judge(self._rule, outages)
        if backend.settings.api_watch_interval:
            judged = []
            async for some in in_slices(records, SLICE, backend.reactor):
                judged += [(record, judge(record)) for record in some if may_be_heard(record)]
            self._log.note(outages)
            count_verdicts(FleetVerdicts(judged, outages))
        self.outages, self._judge = outages, judge
        return records

    def verdict(self, record: ServiceRecord) -> Verdict:
        """Judge a row of the latest read."""
        return self._judge(record)

    def problems(self) -> list[str]:
        """Return a sentence for each outage of the latest read."""
        return list(describe_outages(self.outages).values())
