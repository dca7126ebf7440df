"""The checks of an incarnation: a start that was superseded, or that is forced down, may not write."""

from novasvc.registry.errors import ServiceForcedDownError, ServiceSupersededError
from novasvc.registry.incarnation import Incarnation
from novasvc.registry.record import ServiceRecord


def check_current(record: ServiceRecord, number: int) -> Incarnation:
    """Return the incarnation of a row.

    :raises ServiceSupersededError: it is another one than ``number``.
    """
    incarnation = record.incarnation
    if incarnation is not None and incarnation.number == number:
        return incarnation
    raise superseded(record, number)


def check_beat(record: ServiceRecord, number: int | None) -> None:
    """Check that an incarnation may write a heartbeat.

    :param number: of the incarnation; None for a service without one.
    :raises ServiceSupersededError: there is another one.
    :raises ServiceForcedDownError: the service is forced down.
    """
    if number is not None:
        check_current(record, number)
    if record.forced_down:
        raise ServiceForcedDownError(record.name)


def superseded(record: ServiceRecord, number: int) -> ServiceSupersededError:
    """Return the error that says which incarnation has superseded another one."""
    latest = record.incarnation
    if latest is None:  # never seen by this registry: another database, or one restored from a backup
        return ServiceSupersededError(record.name, number, 0, "", 0, "")
    since = f"{latest.started_at:%Y-%m-%d %H:%M:%S}"
    return ServiceSupersededError(record.name, number, latest.number, latest.machine, latest.pid, since)
