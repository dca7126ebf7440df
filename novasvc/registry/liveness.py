"""The rule that decides whether a service is up.

Every reader of the ``services`` table applies this one rule to a row. The age in a row is computed
by the database, so the clocks of hosts play no part.

A service that says that it has stopped is down at once. Nova's own readers do not see that: they wait for its age.
"""

from novasvc.registry.record import ServiceRecord


def is_up(record: ServiceRecord, service_down_time: float) -> bool:
    """Return whether a service is up.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    Source: Nova's servicegroup.drivers.db. Unlike there, a time stamp in the future counts as fresh, and a
        service that has stopped is down.
    """
    if record.forced_down or (record.incarnation is not None and record.incarnation.has_ended):
        return False
    return record.age <= service_down_time
