"""Which messages were settled already."""

from collections import OrderedDict

import attrs
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import ISession


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
    """

    _clock: IReactorTime
    _count: int = 10_000
    _seconds: float = 600.0
    _seen: OrderedDict[str, tuple[float, ISession, bool]] = attrs.field(factory=OrderedDict, init=False)
    _unread: OrderedDict[str, None] = attrs.field(factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self._seen) + len(self._unread)

    def __contains__(self, unique_id: str) -> bool:
        """Tell whether an id is known."""
        entry = self._seen.get(unique_id)
        if entry is None:
            return unique_id in self._unread
        then, session, expected = entry
        if expected or session.ended or self._clock.seconds() - then < self._seconds:
            return True
        del self._seen[unique_id]
        return False

    def add(self, unique_id: str, session: ISession, *, expected: bool = False) -> None:
        """Remember an id as the newest.

        :param session: by which it was acknowledged.
        :param expected: a copy of its message is on its way to this process.
        """
        seen = self._seen
        if unique_id in seen:
            del seen[unique_id]
        elif self._unread:
            self._unread.pop(unique_id, None)
        seen[unique_id] = (self._clock.seconds(), session, expected)
        if len(seen) > self._count:
            oldest, (_, session, expected) = seen.popitem(last=False)
            if expected or session.ended:
                self._unread[oldest] = None
                if len(self._unread) > self._count:
                    self._unread.popitem(last=False)
