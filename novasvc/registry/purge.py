"""Rows of the ``services`` table that are of no use any more, as values."""

from collections.abc import Mapping
from typing import Literal

import attrs

from novasvc.registry.outages import VerdictRule
from novasvc.registry.verdict import OutageKey

MAX_BATCH = 500
"""Rows that one transaction deletes."""


@attrs.frozen(kw_only=True)
class PurgeRequest:
    """Which rows may be deleted for good.

    :param seconds: rows that were deleted, or whose service has been down without a sign of life, for longer than this.
        Must not be less than service_down_time: a service that is up is never purged.
    :param rule: when a service is down. One that is suspect is not purged, however long it has been silent.
    :param include_nova: also rows of services that have never told an incarnation: Nova's own, and those of novasvc
        before incarnations.
    """

    seconds: float = attrs.field(validator=attrs.validators.gt(0))
    rule: VerdictRule
    include_nova: bool = False


@attrs.frozen(kw_only=True)
class PurgedRow:
    """A row that was purged, or would be.

    :param why: "deleted" if an operator or its service deleted the row; "silent" if nothing was heard of the service.
    :param age: seconds since then, by the database's clock.
    """

    id: int
    host: str
    binary: str
    why: Literal["deleted", "silent"]
    age: float

    @property
    def name(self) -> str:
        """The display name, "binary@host"."""
        return f"{self.binary}@{self.host}"


@attrs.frozen(kw_only=True)
class PurgeBatch:
    """What one transaction of a purge deletes, or would delete.

    :param rows: in the order of their ids.
    :param suspect: display names of services that are silent for long enough, but suspect, so their rows stay.
    :param outages: what makes services suspect; see :func:`novasvc.registry.verdict.describe_outages`.
    :param last: the greatest id that was looked at, after which the next batch begins; None: there are no more rows.
    """

    rows: list[PurgedRow] = attrs.field(factory=list)
    suspect: list[str] = attrs.field(factory=list)
    outages: Mapping[OutageKey, str] = attrs.field(factory=dict)
    last: int | None = None
