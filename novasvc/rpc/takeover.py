"""Requests that a dead worker had received and not begun: whether this one may take them over."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.interfaces import IDelivery
from novasvc.rpc.backlog import Backlog, Fate
from novasvc.rpc.call import Call
from novasvc.rpc.message import Request

LOOKS = 40
LOOK_INTERVAL = 0.05
"""Times that the fate of a request is looked up while its holder may be dying, and seconds between two looks."""


class Takeover:
    """One server's use of the record that it shares with the other workers; see novasvc.rpc.backlog.

    It concerns requests of methods that are not idempotent. Idempotent ones run again anyway.

    :param backlog: this process's record; None in a process without siblings, where nothing is ever known.
    :param clock: measures the time between two looks.
    :ivar records: there is a record.
    """

    def __init__(self, backlog: Backlog | None, clock: IReactorTime) -> None:
        self._backlog = backlog
        self._clock = clock
        self.records = backlog is not None
        self._undecided: dict[IDelivery, IDelayedCall] = {}

    def __len__(self) -> int:
        """Return how many requests wait for a decision."""
        return len(self._undecided)

    def may_run(self, request: Request) -> bool:
        """Tell whether a request that is delivered again is known not to have begun anywhere."""
        return self._fate(request) is Fate.NEVER_BEGAN

    def decide_later(self, delivery: IDelivery, request: Request, looks: int, then: Callable[[int], None]) -> bool:
        """Wait a moment if a process that may be dying has a request.

        :param looks: how often that was tried before.
        :param then: called after the moment with one more.
        :return: whether there is something to wait for; False when there were LOOKS looks already.
        """
        if looks >= LOOKS or self._fate(request) is not Fate.HELD:
            return False

        def look() -> None:
            del self._undecided[delivery]
            then(looks + 1)

        self._undecided[delivery] = self._clock.callLater(LOOK_INTERVAL, look)
        return True

    def give_back(self) -> None:
        """Have what waits for a decision delivered again: another server may know more of it."""
        undecided, self._undecided = self._undecided, {}
        for delivery, later in undecided.items():
            later.cancel()
            delivery.requeue(delivery.deliveries)

    def record(self, call: Call) -> None:
        """Record a call that has to wait, or that was taken over, so that it is known what became of it here.

        A sibling may run it if this process dies before it begins. One that was taken over has to be recorded even
        if it begins at once: the record of its first holder says that it never began.
        """
        unique_id = call.request.unique_id
        if self._backlog is None or unique_id is None or call.method.exposure.idempotent:
            return
        if call.backlog_slot is None:
            call.backlog_slot = self._backlog.add(unique_id)

    def forget(self, call: Call) -> None:
        """Record that a call begins or is given back, before it is."""
        if call.backlog_slot is not None and self._backlog is not None:
            self._backlog.remove(call.backlog_slot)
            call.backlog_slot = None

    def _fate(self, request: Request) -> Fate:
        if self._backlog is None or request.unique_id is None:
            return Fate.UNKNOWN
        return self._backlog.fate(request.unique_id)
