"""What observers of a fleet were told, as values; see :class:`novasvc.registry.observer.FleetObserver`."""

from datetime import datetime

import attrs

from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Status, Verdict

LONGEST_NAME = 100
"""Characters of the name of an observer."""


@attrs.frozen(kw_only=True)
class Observation:
    """The latest verdict on a service that an observer was told, or is to be told.

    :param service_id: id of the row.
    :param host: of the service, as for ``binary``: the row may have been deleted.
    :param status: "alive", "suspect" or "down"; None deletes the observation.
    :param number: 1, 2, 3 ... for each service and observer.
    :param told: whether the observer has handled it.
    :param since: see :class:`novasvc.registry.verdict.Verdict`.
    """

    service_id: int
    host: str
    binary: str
    status: Status | None
    number: int
    told: bool
    since: datetime | None = None


Observations = list[Observation]


@attrs.frozen(kw_only=True)
class StatusChange:
    """A change of the verdict on a service, as an observer is told of it.

    :param name: "binary@host".
    :param record: the row; None if it was deleted.
    :param before: the status that the observer was told before; None for a service that it did not know.
    :param verdict: the verdict now, with reason and since.
    :param key: names this change of this service for this observer: the same text if it is told again.
    :param number: see :class:`Observation`.
    :param repeated: it may have been told before: whoever was told did not live to record it, or has failed.
    :param fencing: fencing number of the process that tells it. It grows when another process takes over, so a resource
        that remembers the greatest one can refuse a process that was stopped meanwhile.
    """

    service_id: int
    host: str
    binary: str
    record: ServiceRecord | None
    before: Status | None
    verdict: Verdict
    key: str
    number: int
    repeated: bool
    fencing: int

    @property
    def name(self) -> str:
        """The display name, "binary@host"."""
        return f"{self.binary}@{self.host}"
