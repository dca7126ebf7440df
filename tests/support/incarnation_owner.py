"""What a heartbeat tells its node of, written down."""

import attrs
from twisted.internet.defer import Deferred, fail, succeed

from novasvc.errors import NovasvcError, ServiceNotFoundError
from novasvc.registry.record import ServiceRecord


@attrs.define(eq=False)
class Owner:
    """An IncarnationOwner that does nothing.

    :ivar refusals: the errors of heartbeats that were refused.
    :ivar found: the row that begin_again() returns; None if the row was deleted.
    """

    is_fenced: bool = False
    awaits_let_up: bool = False
    refusals: list[NovasvcError] = attrs.field(factory=list)
    found: ServiceRecord | None = None
    writes: int = 0

    def refused(self, error: NovasvcError) -> None:
        self.refusals.append(error)
        self.is_fenced = True

    def let_up(self) -> Deferred[None]:
        self.is_fenced = self.awaits_let_up = False
        return succeed(None)

    def written(self) -> Deferred[None]:
        self.writes += 1
        return succeed(None)

    def begin_again(self) -> Deferred[ServiceRecord]:
        return fail(ServiceNotFoundError("1")) if self.found is None else succeed(self.found)
