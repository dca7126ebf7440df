"""A cache of recent replies, for duplicates of requests that were answered already."""

from collections import OrderedDict

import attrs

from novasvc.rpc.message import ReplyTo

MAX_REPLIES = 1000
"""The most replies in the cache."""
MAX_BYTES = 4 * 2**20
"""The most bytes of their bodies together; a longer reply is not cached."""


@attrs.define(eq=False)
class RecentReplies:
    """Cache a server's latest replies to calls of idempotent methods, by the unique id of the request.

    A broker that dies may lose a reply that it has confirmed. If the caller's request was not confirmed,
    the caller sends it again with the same unique id: see Note [A message that was not confirmed] in
    novasvc.rpc.replies. Deduplication keeps the method from running again, but the caller still needs
    the reply.
    """

    _replies: OrderedDict[str, tuple[ReplyTo, bytes]] = attrs.field(factory=OrderedDict, init=False)
    _bytes: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, unique_id: str, reply_to: ReplyTo, body: bytes) -> None:
        """Cache a reply as the newest, unless it is too long; evict the oldest beyond the bounds."""
        self._remove(unique_id)
        if len(body) > MAX_BYTES:
            return
        self._replies[unique_id] = (reply_to, body)
        self._bytes += len(body)
        while len(self._replies) > MAX_REPLIES or self._bytes > MAX_BYTES:
            self._remove(next(iter(self._replies)))

    def get(self, unique_id: str | None) -> tuple[ReplyTo, bytes] | None:
        """Return the reply address and body of a request, or None if the reply is not cached."""
        return None if unique_id is None else self._replies.get(unique_id)

    def _remove(self, unique_id: str) -> None:
        _, body = self._replies.pop(unique_id, (None, b""))
        self._bytes -= len(body)
