"""Claims: of a host's processes that receive a gather, one answers."""

import errno
import socket
from hashlib import blake2b
from typing import Any

from twisted.internet.interfaces import IReactorTime

from novasvc.rpc.message import Request
from novasvc.rpc.server.call import Call
from novasvc.rpc.server.deadline import Deadlines
from novasvc.rpc.target import Target

MAX_CLAIMS = 256
"""Claims that the servers of one process hold; the oldest is released first. Each has a descriptor."""
HELD_FOR = 60.0
"""Seconds for which the claim of a call is held that never expires."""

# Note [One answer a host]
#
# Each worker of a node has its own queue for fanouts, so each receives a gather. The first of them that has a slot for
# it answers; so a worker that is busy, hangs or drains does not keep its node from answering. To claim the call it
# binds a UNIX socket to a name in the abstract namespace (unix(7)), made of topic, host and the call's random id. That
# is atomic for all processes of a network namespace, leaves no file, and ends with the process. Where no socket can be
# bound, each worker answers, and the caller keeps the first answer of each host.
#
# A worker that gets a slot later must still find the call claimed, so a claim is held until the call expires. If it was
# released before, because its process has ended or for MAX_CLAIMS others, such a worker runs the method again.


class GatherClaims:
    """Claim the gathers that one server answers; see Note [One answer a host].

    :param target: the server's target.
    :param clock: measures how long claims are held.
    """

    def __init__(self, target: Target, clock: IReactorTime) -> None:
        self._target = target
        self._clock = clock
        self._deadlines = Deadlines[str](clock, self.release)

    def claim(self, call: Call) -> bool:
        """Return whether a call may run here: it is no gather, or no other process of this host has claimed it."""
        if not _is_gather(call.request) or call.request.reply_to is None:
            return True
        name = f"{self._target.topic}\n{self._target.server}\n{call.request.reply_to.msg_id}"
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        if (self, digest) in _held:
            return True  # It comes again, because its reply could not be sent.
        try:
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError:
            return True  # out of descriptors
        try:
            claim.bind(f"\0novasvc-gather-{digest}")
        except OSError as error:
            claim.close()
            return not _is_taken(error)
        if len(_held) >= MAX_CLAIMS:
            holder, oldest = next(iter(_held))
            holder.release(oldest)
        _held[self, digest] = claim
        self._deadlines.add(digest, self._clock.seconds() + HELD_FOR if call.expires_at is None else call.expires_at)
        return True

    def reply_extra(self, request: Request) -> dict[str, Any] | None:
        """Return what a reply to a request holds beside the result: for a gather, the host."""
        return {"host": self._target.server} if _is_gather(request) else None

    def close(self) -> None:
        """Release all claims."""
        for digest in list(self._deadlines.live):
            self.release(digest)
        self._deadlines.close()

    def release(self, digest: str) -> None:
        """Release one claim: it has expired, or is the oldest of too many."""
        self._deadlines.live.pop(digest, None)
        _held.pop((self, digest)).close()


_held: dict[tuple[GatherClaims, str], socket.socket] = {}
"""The claims of all servers of this process, oldest first: the descriptors are the process's."""


def _is_gather(request: Request) -> bool:
    return request.options is not None and request.options.get("gather") is True


def _is_taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE
