"""Rows of the ``services`` table that are of no use any more, as values."""

from typing import Literal

import attrs

MAX_BATCH = 500
"""Rows that one transaction deletes."""


@attrs.frozen(kw_only=True)
class PurgeRequest:
    """Which rows may be deleted for good.

    :param seconds: rows that were deleted, or of whose service nothing was heard, for longer than this. Must not be
        less than service_down_time: a service that is up is never purged.
    :param include_nova: also rows of services that have never told an incarnation: Nova's own, and those of novasvc
        before incarnations.
    """

    seconds: float = attrs.field(validator=attrs.validators.gt(0))
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


PurgedRows = list[PurgedRow]
