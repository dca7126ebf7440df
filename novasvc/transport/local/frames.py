"""Frames between two processes: a header in JSON, and a body.

A frame is a length in four octets, big-endian, then the header, a newline, and the body. Headers of the process that
connects:

===================================================================  ================================================
``{"do": "send", "id": int, "topic": str, "server": str or null,``   Deliver the body, a request; answered with a
``"fanout": bool, "exchange": str, "ttl": seconds or null,``          header that has this id.
``"internal": bool}``
``{"do": "open", "address": str}``                                   Replies to this address go to this connection.
``{"do": "close", "address": str}``                                  They no longer do.
===================================================================  ================================================

Headers of the process that listens:

===================================================================  ================================================
``{"queues": [[exchange, topic, server or null]],``                  What it consumes. Sent first, and again whenever
``"fanouts": [topic], "bindings": [[exchange, key, queue]]}``         it changes.
``{"id": int, "result": "taken", "unbound" or "full",``              The answer to "send"; ``bound`` is the capacity
``"bound": int}``                                                     of the queue.
``{"address": str}``                                                 The body is a reply.
===================================================================  ================================================
"""

import json
from struct import Struct
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from novasvc.rpc.message import BODY_LIMIT

LONGEST = BODY_LIMIT + 65_536
"""Octets in a frame: the largest message, and a header."""

UNREAD = 32 * 1024 * 1024
"""Octets that a peer may leave unread before no further request is sent to it."""

UNREAD_LIMIT = 8 * UNREAD
"""Octets that a peer may leave unread before its connection is aborted."""

LENGTH = Struct("!I")


class FrameProtocol(Protocol):
    """Sends and receives frames. A peer that sends no frames, or does not read, is disconnected.

    :ivar gone: fires when the connection is lost.
    """

    transport: Any

    def __init__(self) -> None:
        self.gone: Deferred[None] = Deferred()
        self._received = bytearray()
        self._paused = False
        self._unread = 0
        self._aborted = False

    @property
    def usable(self) -> bool:
        """Whether a frame that is sent now may arrive."""
        return bool(self.connected) and not self._aborted

    @property
    def congested(self) -> bool:
        """Whether the peer does not read what it was sent."""
        return self._unread > UNREAD

    def connectionMade(self) -> None:
        """Have the transport say when its buffer is full and when it is empty."""
        self.transport.registerProducer(self, True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire ``gone``."""
        self.connected = 0
        self._received.clear()
        self.gone.callback(None)

    def abort(self) -> None:
        """Close the connection at once, and ignore what is still received."""
        if self.usable:
            self._aborted = True
            self.transport.abortConnection()

    def send_frame(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame; without effect once the connection is lost."""
        if not self.usable:
            return
        text = json.dumps(header).encode()
        if self._paused:
            self._unread += len(text) + len(body)
            if self._unread > UNREAD_LIMIT:
                self.abort()
                return
        self.transport.writeSequence((LENGTH.pack(len(text) + 1 + len(body)), text, b"\n", body))

    def dataReceived(self, data: bytes) -> None:
        """Receive some octets; handle the frames that are complete."""
        received = self._received
        received += data
        while self.usable and len(received) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(received)
            end = LENGTH.size + length
            if length > LONGEST:
                self.abort()
            elif len(received) < end:
                return
            else:
                frame = bytes(received[LENGTH.size : end])
                del received[:end]
                self._handle(frame)

    def _handle(self, frame: bytes) -> None:
        text, _, body = frame.partition(b"\n")
        try:
            header = json.loads(text)
            if not isinstance(header, dict):
                raise TypeError(text)  # noqa: TRY301 - handled as any other malformed frame
            self.frame_received(header, body)
        except (ValueError, KeyError, TypeError, RecursionError):
            self.abort()

    def frame_received(self, header: dict[str, Any], body: bytes) -> None:
        """Handle a frame.

        :raises ValueError, KeyError, TypeError: the header is malformed; the connection is aborted.
        """
        raise NotImplementedError

    # -- IPushProducer: the transport's buffer ---------------------------------------------------

    def pauseProducing(self) -> None:
        """Count from now on what the peer has not read. Called at each write that finds the buffer full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Stop counting: the buffer is empty."""
        self._paused = False
        self._unread = 0

    def stopProducing(self) -> None:
        """Do nothing: connectionLost follows."""
