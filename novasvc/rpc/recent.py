"""Replies that were sent a moment ago, for callers who send their request again."""

from collections import OrderedDict

import attrs

from novasvc.rpc.message import WayBack

REMEMBERED = 1000
"""Replies that are remembered, at most."""
REMEMBERED_BYTES = 4 * 2**20
"""Bytes of their bodies together, at most; a longer one is not remembered."""


@attrs.define(eq=False)
class RecentReplies:
    """The last replies of one server to calls of idempotent methods, by the unique id of the request.

    A broker that dies may take a reply along that it has confirmed. If the caller was not told that the
    broker had its request, it sends that again, under the same id: see Note [A message that was not
    confirmed] in novasvc.rpc.replies. The method does not run again, but the caller needs the reply.
    """

    _replies: OrderedDict[str, tuple[WayBack, bytes]] = attrs.field(factory=OrderedDict, init=False)
    _bytes: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, unique_id: str, back: WayBack, body: bytes) -> None:
        """Remember a reply, as the newest."""
        self._remove(unique_id)
        self._replies[unique_id] = (back, body)
        self._bytes += len(body)
        while len(self._replies) > REMEMBERED or self._bytes > REMEMBERED_BYTES:
            self._remove(next(iter(self._replies)))

    def get(self, unique_id: str | None) -> tuple[WayBack, bytes] | None:
        """Return the reply to a request; None if there was none, or it is not remembered any more."""
        return None if unique_id is None else self._replies.get(unique_id)

    def _remove(self, unique_id: str) -> None:
        _, body = self._replies.pop(unique_id, (None, b""))
        self._bytes -= len(body)
