"""What a heartbeat tells its node of, written down."""

from collections.abc import Awaitable, Callable

import attrs
from twisted.internet.defer import Deferred, fail, succeed

from novasvc.errors import NovasvcError, ServiceForcedDownError, ServiceNotFoundError
from novasvc.registry.record import ServiceRecord


@attrs.define(eq=False)
class Owner:
    """An IncarnationOwner that does nothing.

    :ivar refusals: the errors of heartbeats that were refused.
    :ivar found: the row that begin_again() returns; None if the row was deleted.
    """

    is_fenced: bool = False
    awaits_let_up: bool = False
    final: bool = False
    refusals: list[NovasvcError] = attrs.field(factory=list)
    found: ServiceRecord | None = None
    entries: int = 0

    def refused(self, error: NovasvcError) -> None:
        self.refusals.append(error)
        self.is_fenced = True
        self.final = not isinstance(error, ServiceForcedDownError)

    def enter_service(self, beat: Callable[[], Awaitable[None]]) -> Deferred[None]:
        return Deferred.fromCoroutine(self._enter_service(beat))

    async def _enter_service(self, beat: Callable[[], Awaitable[None]]) -> None:
        await beat()
        self.is_fenced = self.awaits_let_up = False
        self.entries += 1

    def begin_again(self) -> Deferred[ServiceRecord]:
        return fail(ServiceNotFoundError("1")) if self.found is None else succeed(self.found)
