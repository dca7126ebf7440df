"""Rows of the services table, as the registry returns them."""

from datetime import datetime

import attrs

from novasvc.registry.record import ServiceRecord


def record(**changes: object) -> ServiceRecord:
    """Return the row of a service that has just registered, with these columns changed."""
    fresh = ServiceRecord(
        id=1,
        uuid="u",
        host="h1",
        binary="novasvc-agent",
        topic="agent",
        disabled=False,
        disabled_reason=None,
        forced_down=False,
        report_count=0,
        created_at=datetime(2026, 1, 1),  # noqa: DTZ001 - the table's form
        updated_at=None,
        last_seen_up=None,
        version=7,
        age=0.0,
    )
    return attrs.evolve(fresh, **changes)
