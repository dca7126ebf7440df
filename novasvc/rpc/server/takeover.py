"""Takeover: run a redelivered request that a dead sibling received and is known not to have begun."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.interfaces import IDelivery
from novasvc.rpc.message import Request
from novasvc.rpc.server.call import Call
from novasvc.rpc.server.unstarted_record import Progress, UnstartedRecord

MAX_LOOKUPS = 40
LOOKUP_INTERVAL = 0.05
"""Number of lookups of a request while the process that received it may be dying, and seconds between two lookups."""


class Takeover:
    """Read and write the record that this server shares with its siblings; see :mod:`novasvc.rpc.server.unstarted_record`.

    Only requests for methods that are not idempotent are recorded: idempotent ones run again anyway.

    :param unstarted_record: this process's record. None without workers: every redelivered request is then UNKNOWN.
    :param clock: measures LOOKUP_INTERVAL.
    :ivar enabled: whether there is a record.
    """

    def __init__(self, unstarted_record: UnstartedRecord | None, clock: IReactorTime) -> None:
        self._record = unstarted_record
        self._clock = clock
        self.enabled = unstarted_record is not None
        self._undecided: dict[IDelivery, IDelayedCall] = {}

    def __len__(self) -> int:
        """Return the number of requests that wait for a decision."""
        return len(self._undecided)

    def may_run(self, request: Request) -> bool:
        """Return whether a redelivered request is known not to have begun in any process."""
        return self._progress(request) is Progress.NEVER_BEGAN

    def decide_later(
        self,
        delivery: IDelivery,
        request: Request,
        lookups: int,
        decide: Callable[[IDelivery, Request, int], None],
    ) -> bool:
        """Wait LOOKUP_INTERVAL before deciding about a request, if the process that received it may be dying.

        A broker may redeliver a request before the process that lost its connection has ended. Until then the progress
        is PENDING; if it still is after MAX_LOOKUPS lookups, the process lives on.

        :param lookups: earlier lookups for this delivery.
        :param decide: called after LOOKUP_INTERVAL with the delivery, the request and ``lookups + 1``.
        :return: whether to wait; False if no living process may begin the request, or after MAX_LOOKUPS lookups.
        """
        if lookups >= MAX_LOOKUPS or self._progress(request) is not Progress.PENDING:
            return False

        def decide_now() -> None:
            del self._undecided[delivery]
            decide(delivery, request, lookups + 1)

        self._undecided[delivery] = self._clock.callLater(LOOKUP_INTERVAL, decide_now)
        return True

    def requeue(self) -> None:
        """Requeue the requests that wait for a decision, delivery counts unchanged; called on forced shutdown."""
        undecided, self._undecided = self._undecided, {}
        for delivery, timer in undecided.items():
            timer.cancel()
            delivery.requeue(delivery.deliveries)

    def record(self, call: Call) -> None:
        """Record a call that has to wait, or that was taken over, as received and not begun.

        If this process dies before the call begins, a sibling may run it. A call that was taken over must be
        recorded even if it begins at once, because the first receiver's entry says that it never began.
        Has no effect for idempotent methods and for messages without a unique id.
        """
        unique_id = call.request.unique_id
        if self._record is None or unique_id is None or call.method.exposure.idempotent:
            return
        if call.record_slot is None:
            call.record_slot = self._record.add(unique_id)

    def remove(self, call: Call) -> None:
        """Mark a call's entry as removed. Called before the call begins or is requeued, never after."""
        if call.record_slot is not None and self._record is not None:
            self._record.remove(call.record_slot)
            call.record_slot = None

    def _progress(self, request: Request) -> Progress:
        if self._record is None or request.unique_id is None:
            return Progress.UNKNOWN
        return self._record.progress(request.unique_id)
