"""Deduplication: a server's record of its unsettled calls and of the messages that it has settled."""

from collections import OrderedDict
from collections.abc import Iterator

import attrs
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IDelivery, ISession
from novasvc.rpc.server.awaiting_redelivery import AwaitingRedelivery
from novasvc.rpc.server.call import Call


@attrs.define(eq=False)
class SeenWindow:
    """Remember the unique ids of settled messages, within bounds.

    The window drops an id after ``count`` newer ids or after ``seconds``, whichever is first. There are
    three exceptions, because the message may still be delivered at any time: the id's session has ended,
    so the acknowledgement may have been lost with it; a copy of the message is expected; or it may be
    copied by others. The window keeps such an id until ``count`` newer ids of the same kind push it out.
    The window lives in memory: a new process starts with an empty one.

    :param clock: measures ``seconds``.
    :param count: the most ids to remember of each kind, > 0. Use more than the prefetch: then every id
        whose acknowledgement a session could not deliver is remembered.
    :param seconds: how long to remember an id, > 0.
    :ivar seen: by id: when it was settled, on which session, whether a copy of the message is expected, and whether it
        may be copied by others.
    :ivar overflow: ids kept beyond ``seen``: their acknowledgement may not have been read, or a copy is expected; and
        whether it may be copied by others.
    """

    _clock: IReactorTime
    _count: int = 10_000
    _seconds: float = 600.0
    seen: OrderedDict[str, tuple[float, ISession, bool, bool]] = attrs.field(factory=OrderedDict, init=False)
    overflow: OrderedDict[str, bool] = attrs.field(factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self.seen) + len(self.overflow)

    def __contains__(self, unique_id: str) -> bool:
        """Return whether an id is remembered; an expired one is dropped."""
        entry = self.seen.get(unique_id)
        if entry is None:
            return unique_id in self.overflow
        then, session, expected, copied = entry
        if expected or copied or session.ended or self._clock.seconds() - then < self._seconds:
            return True
        del self.seen[unique_id]
        return False

    def add(self, unique_id: str, session: ISession, *, expected: bool = False, copied: bool = False) -> None:
        """Remember an id as the newest.

        :param session: the session on which the message was acknowledged.
        :param expected: another copy of the message will be delivered to this process.
        :param copied: others may copy the message at any time; so it stays, if it was said once.
        """
        seen = self.seen
        if unique_id in seen:
            copied = seen.pop(unique_id)[3] or copied
        elif self.overflow:
            copied = self.overflow.pop(unique_id, False) or copied
        seen[unique_id] = (self._clock.seconds(), session, expected, copied)
        # Invariant: ``seen`` has at most ``count`` ids, in the order of their addition, and ``overflow`` as many.
        if len(seen) > self._count:
            oldest, (_, session, expected, copied) = seen.popitem(last=False)
            if expected or copied or session.ended:
                self.overflow[oldest] = copied
                if len(self.overflow) > self._count:
                    self.overflow.popitem(last=False)


class Ledger:
    """Track one server's calls by the unique ids of their messages, and settle their deliveries.

    A message without a unique id is tracked until it is settled, but a redelivery of it is not recognised.

    :param clock: measures how long ids are remembered.
    :param awaiting: keeps the calls whose deliveries became void before they began.
    :param remembered: the least number of settled ids to remember; see :class:`SeenWindow`.
    """

    # Note [Deduplication of redeliveries]
    #
    # A message is redelivered when its channel, its connection or the broker is lost, or when a
    # process dies. It is duplicated when its sender sends it again, or when a server requeues or
    # holds a copy. A process that received the message before, and still lives, knows what it did
    # with it. That decides, whatever the count of deliveries says:
    #
    # - Unsettled (waiting, running, or its reply is being published): the new delivery replaces the
    #   old one, which is void or is acknowledged.
    # - Settled (answered, refused, or begun at-most-once): the new delivery is acknowledged. If the
    #   message was held, its copy will certainly be delivered, so its id is kept until then.
    # - Quarantined or requeued: the process treats the message as one it has never seen. A quarantined
    #   one comes again when an operator moves it back into its queue. It may then come from another
    #   process that has died with it, and acknowledging it would lose it.
    # - Awaiting redelivery (it waited, and its delivery became void): the call waits again, with the new
    #   delivery. See Note [Void deliveries] in novasvc.rpc.server.awaiting_redelivery.

    def __init__(self, clock: IReactorTime, awaiting: AwaitingRedelivery, remembered: int = 0) -> None:
        self._clock = clock
        self._awaiting = awaiting
        self._unsettled: dict[object, Call] = {}
        self._settled = SeenWindow(clock, count=max(10_000, remembered))

    def __iter__(self) -> Iterator[Call]:
        """Iterate over a snapshot of the unsettled calls."""
        return iter(list(self._unsettled.values()))

    def add(self, call: Call) -> None:
        """Record an unsettled call."""
        self._unsettled[call.request.unique_id or call] = call

    def add_new(self, call: Call) -> bool:
        """Record an unsettled call, unless its message may be one received before; return whether it was recorded."""
        unique_id = call.request.unique_id
        settled = self._settled
        if unique_id is not None and (
            unique_id in settled.seen
            or unique_id in self._unsettled
            or unique_id in self._awaiting.calls
            or unique_id in settled.overflow
        ):
            return False
        self._unsettled[unique_id or call] = call
        return True

    def get(self, unique_id: str | None) -> Call | None:
        """Return the call of a message that is unsettled or awaits its redelivery, or None."""
        if unique_id is None:
            return None
        return self._unsettled.get(unique_id) or self._awaiting.get(unique_id)

    def replace_delivery(self, call: Call, delivery: IDelivery) -> bool:
        """Replace a call's delivery by a new one; return whether the call awaited it, and has to be queued again."""
        # Has no effect on a void delivery. If the new delivery is a duplicate message, both must be acknowledged.
        call.delivery.ack()
        call.delivery, call.delivered, call.held = delivery, self._clock.seconds(), False
        unique_id = call.request.unique_id
        if unique_id is None or not self._awaiting.remove(unique_id):
            return False
        self.add(call)
        return True

    def await_redelivery(self, call: Call) -> None:
        """Let a call that has not begun wait for its redelivery, because its delivery is void."""
        self._unsettled.pop(call.request.unique_id or call, None)
        self._awaiting.add(call)

    def release(self, call: Call) -> None:
        """Forget an unsettled call that has not begun; the caller then settles its delivery, or adds it again."""
        self._unsettled.pop(call.request.unique_id or call, None)

    def hold(self, call: Call) -> None:
        """Extend the time to settle a call's message; see :meth:`novasvc.interfaces.IDelivery.hold`."""
        call.held = True
        call.delivery.hold()

    def settle(self, call: Call) -> None:
        """Acknowledge a call's delivery, forget the call, and remember its unique id."""
        unique_id = call.request.unique_id
        self._unsettled.pop(unique_id or call, None)
        if unique_id is not None:
            # A held message has a copy in this process's own queue, which is certain to be delivered. A signed one may
            # be copied by whoever reads it, and requests that need no key must not push its id out.
            copied = call.method.exposure.allow is not None
            self._settled.add(unique_id, call.delivery.session, expected=call.held, copied=copied)
        call.delivery.ack()

    def acknowledge(self, delivery: IDelivery, unique_id: str | None) -> None:
        """Acknowledge the delivery of a message that became no call, or that was settled before."""
        delivery.ack()
        if unique_id is not None:
            self._settled.add(unique_id, delivery.session)

    def acknowledge_duplicate(self, delivery: IDelivery, unique_id: str | None) -> bool:
        """Acknowledge a delivery of a message that this server is known to have settled.

        :return: whether it was acknowledged; False for a message that is not remembered.
        """
        if unique_id is None or unique_id not in self._settled:
            return False
        self.acknowledge(delivery, unique_id)
        return True

    def requeue(self, call: Call, *, here: bool = False) -> None:
        """Requeue a call's message with its delivery count, and forget the call.

        :param here: requeue it to this process, so that the transport counts the next delivery; see
            :meth:`novasvc.interfaces.IDelivery.requeue_here`.
        """
        self._unsettled.pop(call.request.unique_id or call, None)
        requeue = call.delivery.requeue_here if here else call.delivery.requeue
        requeue(call.deliveries)
