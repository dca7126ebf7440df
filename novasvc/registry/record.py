"""A row of the ``services`` table, as the rest of the program sees it."""

from datetime import datetime

import attrs


@attrs.frozen(kw_only=True)
class ServiceRecord:
    """One node, as it is registered.

    :param id: the row's number.
    :param uuid: lower-case, dashed.
    :param topic: None for a service that serves no topic.
    :param disabled: an operator took it out of service; it still runs.
    :param forced_down: an operator declared it down, whatever it says itself.
    :param report_count: heartbeats since the row was made.
    :param last_seen_up: of the last heartbeat, UTC without a zone, the database's clock.
    :param version: the code's service version.
    :param age: seconds since last_seen_up, or since created_at before the first heartbeat, both
        by the database's clock; negative if the stamp lies in the future.
    Source: Nova's table ``services``.
    """

    id: int
    uuid: str
    host: str
    binary: str
    topic: str | None
    disabled: bool
    disabled_reason: str | None
    forced_down: bool
    report_count: int
    created_at: datetime | None
    updated_at: datetime | None
    last_seen_up: datetime | None
    version: int
    age: float


Records = list[ServiceRecord]
"""A type of its own, because IServiceRegistry and its providers have a method named ``list``."""


@attrs.frozen(kw_only=True)
class ServiceChanges:
    """What an operator changes of a row; None leaves it as it is.

    :param disabled: True may come with ``disabled_reason``; False clears the reason.
    :param disabled_reason: 1 to 255 characters.
    :param forced_down: see ServiceRecord.
    """

    disabled: bool | None = None
    disabled_reason: str | None = None
    forced_down: bool | None = None
