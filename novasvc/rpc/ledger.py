"""What a server has in hand, and what it has settled: whatever comes again is recognised by it."""

from collections.abc import Iterator

from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IDelivery
from novasvc.rpc.call import Call
from novasvc.rpc.dedup import SeenWindow
from novasvc.rpc.parking import Parking


class Ledger:
    """The calls of one server, by the ids of their messages.

    :param clock: measures how long ids are remembered.
    :param parking: takes the calls that are not to be begun now.
    :param remembered: ids of settled messages to remember, at the least; see SeenWindow.
    """

    # Note [What comes again]
    #
    # A message comes again when the channel is lost by which it came, or the connection, or the
    # broker; when a copy of it was sent, by its sender or by a server; and when a process died.
    # This process did not die, so it knows what became of the message here, and does not ask how
    # often it was delivered:
    #
    # - In hand: it waits, runs, or its reply is being published. The new delivery takes the place
    #   of the old one, which has become void or is acknowledged.
    # - Settled: answered, refused, or begun and at most once. The new delivery is acknowledged. If the
    #   message was held, its copy comes again for certain, so it is not forgotten before.
    # - Quarantined: another copy of the message is acknowledged, too. But one that was never delivered
    #   before is new: an operator has put it back.
    # - Given back: as if it had never been here.
    # - Parked: it waited, and its delivery became void. If it comes again, it waits again. See Note
    #   [Void deliveries] in novasvc.rpc.parking.

    def __init__(self, clock: IReactorTime, parking: Parking, remembered: int = 0) -> None:
        self._clock = clock
        self._parking = parking
        self._in_hand: dict[object, Call] = {}
        self._settled = SeenWindow(clock, count=max(10_000, remembered))
        self._quarantined = SeenWindow(clock, count=1_000)

    def __iter__(self) -> Iterator[Call]:
        """Return the calls in hand."""
        return iter(list(self._in_hand.values()))

    def take(self, call: Call) -> None:
        """Note that a call is in hand."""
        self._in_hand[call.request.unique_id or call] = call

    def find(self, unique_id: str | None) -> Call | None:
        """Return the call that a message has become here, if it is in hand or parked."""
        if unique_id is None:
            return None
        return self._in_hand.get(unique_id) or self._parking.find(unique_id)

    def take_over(self, call: Call, delivery: IDelivery) -> bool:
        """Let a delivery take the place of the one by which a call came; return whether it was parked."""
        call.delivery.ack()  # It may be a second message with the same id.
        call.delivery, call.delivered, call.held = delivery, self._clock.seconds(), False
        unique_id = call.request.unique_id
        if unique_id is None or not self._parking.take(unique_id):
            return False
        self.take(call)
        return True

    def park(self, call: Call) -> None:
        """Keep a call whose delivery is void, and which was not begun."""
        self._in_hand.pop(call.request.unique_id or call, None)
        self._parking.add(call)

    def release(self, call: Call) -> None:
        """Forget a call that is in hand and has not begun; :meth:`take` or :meth:`give_back` follows."""
        self._in_hand.pop(call.request.unique_id or call, None)

    def hold(self, call: Call) -> None:
        """Have a call's message kept for this process, and delivered to it again; see IDelivery."""
        call.held = True
        call.delivery.hold()

    def settle(self, call: Call) -> None:
        """Acknowledge a call's delivery."""
        self._in_hand.pop(call.request.unique_id or call, None)
        self.acknowledge(call.delivery, call.request.unique_id, expected=call.held)

    def acknowledge(self, delivery: IDelivery, unique_id: str | None, *, expected: bool = False) -> None:
        """Acknowledge the delivery of a message that became no call, or one that is settled.

        :param expected: a copy of the message is on its way to this process.
        """
        delivery.ack()
        if unique_id is not None:
            self._settled.add(unique_id, delivery.session, expected=expected)

    def quarantine(self, delivery: IDelivery, unique_id: str | None, reason: str) -> None:
        """Move a delivery's message to the quarantine."""
        delivery.quarantine(reason)
        if unique_id is not None:
            self._quarantined.add(unique_id, delivery.session)

    def settle_again(self, delivery: IDelivery, unique_id: str | None) -> bool:
        """Acknowledge a new delivery of a message that was settled here, as far as that is remembered.

        :return: whether it was.
        """
        if unique_id is None:
            return False
        if unique_id in self._settled:
            self.acknowledge(delivery, unique_id)
        elif delivery.deliveries and unique_id in self._quarantined:
            delivery.ack()
        else:
            return False
        return True

    def give_back(self, call: Call, *, here: bool = False) -> None:
        """Have a call's message delivered again.

        :param here: to this process, if it may.
        """
        self._in_hand.pop(call.request.unique_id or call, None)
        requeue = call.delivery.requeue_here if here else call.delivery.requeue
        requeue(call.deliveries)
