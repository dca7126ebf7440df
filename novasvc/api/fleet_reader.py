"""The periodic read of the fleet for the page: rows, and the outages that concern many of their services."""

from novasvc.api.backend import Backend
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Judge, Verdict, describe_outages
from novasvc.registry.verdicts import FleetVerdicts, OutageLog, count_verdicts, may_be_heard, read_outages


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
        """Read the rows, then the outages.

        :raises DatabaseError: the registry cannot be read.
        :raises APIError: it is not connected.
        """
        registry = self._backend.registry
        records: list[ServiceRecord] = await registry.list(None, None, None)
        self.outages = await read_outages(registry, records, self._rule)
        self._judge = Judge(self._rule, self.outages)
        if self._backend.settings.api_watch_interval:
            self._log.note(self.outages)
            judged = [(record, self._judge(record)) for record in records if may_be_heard(record)]
            count_verdicts(FleetVerdicts(judged, self.outages))
        return records

    def verdict(self, record: ServiceRecord) -> Verdict:
        """Judge a row of the latest read."""
        return self._judge(record)

    def problems(self) -> list[str]:
        """Return a sentence for each outage of the latest read."""
        return list(describe_outages(self.outages).values())
