"""Rows of the ``services`` table, and changes to them, as values."""

from datetime import datetime

import attrs

from novasvc.registry.incarnation import Incarnation, ServiceState


@attrs.frozen(kw_only=True)
class ServiceRecord:
    """One registered service.

    :param id: the row's number.
    :param uuid: lower-case, with dashes.
    :param topic: None for a service without a topic.
    :param disabled: an operator took it out of service; it still runs.
    :param forced_down: an operator declared it down, regardless of its heartbeats.
    :param report_count: heartbeats since the row was created.
    :param last_seen_up: time of the last heartbeat by the database's clock, UTC without a time zone.
    :param version: the code's service version.
    :param age: seconds since last_seen_up, or since created_at before the first heartbeat, both
        by the database's clock; negative if the time stamp is in the future.
    :param incarnation: the latest start of the service; None if it did not tell: a service of Nova's own or of an older
        version, or a database without our tables.
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
    incarnation: Incarnation | None = None

    @property
    def name(self) -> str:
        """The display name, "binary@host"."""
        return f"{self.binary}@{self.host}"

    @property
    def incarnation_number(self) -> int | None:
        """The number of the incarnation; None without one."""
        return None if self.incarnation is None else self.incarnation.number

    @property
    def state(self) -> ServiceState | None:
        """The state of the incarnation; None without one."""
        return None if self.incarnation is None else self.incarnation.state

    @property
    def zone(self) -> str | None:
        """The zone that the service was started in; None without one, or without an incarnation."""
        return None if self.incarnation is None else self.incarnation.zone

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that the service was started with."""
        return () if self.incarnation is None else self.incarnation.tags


Records = list[ServiceRecord]
"""An alias, because IServiceRegistry and its providers have a method named ``list``."""


@attrs.frozen(kw_only=True)
class ServiceChanges:
    """An operator's changes to a row; None leaves a column as it is.

    :param disabled: True may come with ``disabled_reason``; False clears the reason.
    :param disabled_reason: 1 to 255 characters.
    :param forced_down: see :class:`ServiceRecord`.
    """

    disabled: bool | None = None
    disabled_reason: str | None = None
    forced_down: bool | None = None
