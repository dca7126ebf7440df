"""What a server has in hand, and what it has settled: whatever comes again is recognised by it."""

from collections import OrderedDict
from collections.abc import Iterator

import attrs
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IDelivery, ISession
from novasvc.rpc.call import Call
from novasvc.rpc.parking import Parking


@attrs.define(eq=False)
class SeenWindow:
    """Remembers the ids of messages that were settled, within bounds.

    An id is known until ``count`` others came after it, or until ``seconds`` have passed,
    whichever is first: a window of 10,000 messages and 10 minutes, unless another is given. If its
    session has ended by then, the acknowledgement may have been lost with it, and the message may
    come again at any time; so may a message of which a copy is on its way. Such an id is known on,
    until ``count`` others of that kind came after it. What belongs to a process begins empty.

    :param clock: measures the seconds.
    :param count: ids that are remembered at the most, of either kind, > 0. More than a transport
        delivers without an acknowledgement: then those that a session did not read are among them.
    :param seconds: how long one is remembered at the most, > 0.
    :ivar seen: of each id when it was settled, by which session, and whether a copy of its message is on its way.
    :ivar unread: the ids that are known on.
    """

    _clock: IReactorTime
    _count: int = 10_000
    _seconds: float = 600.0
    seen: OrderedDict[str, tuple[float, ISession, bool]] = attrs.field(factory=OrderedDict, init=False)
    unread: OrderedDict[str, None] = attrs.field(factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self.seen) + len(self.unread)

    def __contains__(self, unique_id: str) -> bool:
        """Tell whether an id is known."""
        entry = self.seen.get(unique_id)
        if entry is None:
            return unique_id in self.unread
        then, session, expected = entry
        if expected or session.ended or self._clock.seconds() - then < self._seconds:
            return True
        del self.seen[unique_id]
        return False

    def add(self, unique_id: str, session: ISession, *, expected: bool = False) -> None:
        """Remember an id as the newest.

        :param session: by which it was acknowledged.
        :param expected: a copy of its message is on its way to this process.
        """
        seen = self.seen
        if unique_id in seen:
            del seen[unique_id]
        elif self.unread:
            self.unread.pop(unique_id, None)
        seen[unique_id] = (self._clock.seconds(), session, expected)
        if len(seen) > self._count:
            oldest, (_, session, expected) = seen.popitem(last=False)
            if expected or session.ended:
                self.unread[oldest] = None
                if len(self.unread) > self._count:
                    self.unread.popitem(last=False)


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

    def take_new(self, call: Call) -> bool:
        """Note that a call is in hand, unless its message may have been here before; return whether it was noted."""
        unique_id = call.request.unique_id
        settled, quarantined = self._settled, self._quarantined
        if unique_id is not None and (
            unique_id in settled.seen
            or unique_id in self._in_hand
            or unique_id in self._parking.calls
            or unique_id in settled.unread
            or unique_id in quarantined.seen
            or unique_id in quarantined.unread
        ):
            return False
        self._in_hand[unique_id or call] = call
        return True

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
        unique_id = call.request.unique_id
        self._in_hand.pop(unique_id or call, None)
        if unique_id is not None:
            self._settled.add(unique_id, call.delivery.session, expected=call.held)
        call.delivery.ack()

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
