"""Select the nodes of an operation."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import attrs

from novasvc.registry.record import ServiceRecord


@attrs.frozen(kw_only=True)
class Selection:
    """An operator's selection. A filter of None matches every service.

    :param binary: exactly this binary.
    :param topic: exactly this topic.
    :param host: a pattern of host names, as a shell has it: "compute-*", "rack[12]-?".
    :param zone: exactly this zone.
    :param tag: a service that has this tag.
    """

    binary: str | None = None
    topic: str | None = None
    host: str | None = None
    zone: str | None = None
    tag: str | None = None

    def matches(self, record: ServiceRecord) -> bool:
        """Return whether a service is selected."""
        return (
            self.binary in {None, record.binary}
            and self.topic in {None, record.topic}
            and (self.host is None or fnmatchcase(record.host, self.host))
            and self.zone in {None, record.zone}
            and (self.tag is None or self.tag in record.tags)
        )

    def choose(self, records: Sequence[ServiceRecord]) -> list[ServiceRecord]:
        """Return the selected services in the order of an operation: zone by zone, so that zones change in turn."""
        chosen = [record for record in records if self.matches(record)]
        return sorted(chosen, key=lambda record: (record.zone or "", record.host, record.binary, record.id))

    def __str__(self) -> str:
        given = attrs.asdict(self, filter=lambda _, value: value is not None)
        return ", ".join(f"{name} {value}" for name, value in given.items()) or "all services"


Process = tuple[str, int]
"""Name of the machine, and number of the process, or of the supervisor, that runs a service."""


def process_of(record: ServiceRecord) -> Process | None:
    """Return the process that runs a service; None if that is not known, or it does not run."""
    incarnation = record.incarnation
    if incarnation is None or incarnation.has_ended or not incarnation.pid:
        return None
    return incarnation.machine, incarnation.pid


def others_in_process(chosen: Sequence[ServiceRecord], records: Sequence[ServiceRecord]) -> list[ServiceRecord]:
    """Return the services that were not chosen, but run in the process of one that was."""
    ids, processes = {record.id for record in chosen}, {process_of(record) for record in chosen} - {None}
    return [record for record in records if record.id not in ids and process_of(record) in processes]
