"""Which messages were seen already."""

from collections import OrderedDict

import attrs
from twisted.internet.interfaces import IReactorTime


@attrs.define(eq=False)
class SeenWindow:
    """Remembers ids, within bounds.

    An id is known until ``count`` others came after it, or until ``seconds`` have passed,
    whichever is first: a window of 10,000 messages and 10 minutes, unless another is given.
    It is this process's own, and begins empty. What is given back is forgotten, as it is to come again.

    :param clock: measures the seconds.
    :param count: ids that are remembered at the most, > 0.
    :param seconds: how long one is remembered at the most, > 0.
    """

    _clock: IReactorTime
    _count: int = 10_000
    _seconds: float = 600.0
    _seen: OrderedDict[str, float] = attrs.field(factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, unique_id: str) -> bool:
        """Remember an id.

        :return: whether it was there already; it then keeps its age.
        """
        seen, now = self._seen, self._clock.seconds()
        then = seen.get(unique_id)
        if then is not None:
            if now - then < self._seconds:
                return True
            del seen[unique_id]  # to come again as the newest
        seen[unique_id] = now
        if len(seen) > self._count:
            seen.popitem(last=False)
        return False

    def knows(self, unique_id: str) -> bool:
        """Tell whether an id is remembered."""
        then = self._seen.get(unique_id)
        return then is not None and self._clock.seconds() - then < self._seconds

    def forget(self, unique_id: str) -> None:
        """Forget an id whose message is given back; one that is not there is no error."""
        self._seen.pop(unique_id, None)
