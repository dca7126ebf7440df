"""Frames between two processes: a header in JSON, and a body.

A frame is a length in four octets, big-endian, then the header, a newline, and the body. Headers of the process that
connects:

===================================================================  ================================================
``{"do": "send", "id": int, "topic": str, "server": str or null,``   Deliver the body, a request; answered with a
``"fanout": bool, "exchange": str, "ttl": seconds or null}``          header that has this id.
``{"do": "open", "address": str}``                                   Replies to this address go to this connection.
``{"do": "close", "address": str}``                                  They no longer do.
===================================================================  ================================================

Headers of the process that listens:

===================================================================  ================================================
``{"id": int, "result": "taken", "unbound" or "full",``              The answer to "send"; ``bound`` is the capacity
``"bound": int}``                                                     of the queue.
``{"address": str}``                                                 The body is a reply.
===================================================================  ================================================
"""

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

LONGEST = 128 * 1024 * 1024
"""Octets in a frame; as RabbitMQ's limit for a message, by default."""

UNREAD = 32 * 1024 * 1024
"""Octets that a peer may leave unread before its connection is aborted."""


class FrameProtocol(Int32StringReceiver):
    """Sends and receives frames. A peer that sends no frames, or does not read, is disconnected.

    :ivar gone: fires when the connection is lost.
    """

    MAX_LENGTH = LONGEST
    transport: Any
    _unread: int | None = None

    def __init__(self) -> None:
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Have the transport say when its buffer is full."""
        self.transport.registerProducer(self, True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire ``gone``."""
        self.connected = 0
        self.gone.callback(None)

    def send_frame(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame; without effect once the connection is lost."""
        if not self.connected:
            return
        text = json.dumps(header).encode()
        if self._unread is not None:
            self._unread += len(text) + len(body)
            if self._unread > UNREAD:
                self.transport.abortConnection()
                return
        self.sendString(b"%s\n%s" % (text, body))

    def stringReceived(self, string: bytes) -> None:  # noqa: N802 - Twisted's name
        """Receive a frame."""
        text, _, body = string.partition(b"\n")
        try:
            header = json.loads(text)
            if not isinstance(header, dict):
                raise TypeError(text)  # noqa: TRY301 - handled as any other malformed frame
            self.frame_received(header, body)
        except (ValueError, KeyError, TypeError, RecursionError):
            self.transport.abortConnection()

    def frame_received(self, header: dict[str, Any], body: bytes) -> None:
        """Handle a frame.

        :raises ValueError, KeyError, TypeError: the header is malformed; the connection is aborted.
        """
        raise NotImplementedError

    # -- IPushProducer: the transport's buffer ---------------------------------------------------

    def pauseProducing(self) -> None:
        """Count from now on what the peer has not read. The transport calls this at each write that finds it full."""
        if self._unread is None:
            self._unread = 0

    def resumeProducing(self) -> None:
        """Stop counting: the buffer is empty."""
        self._unread = None

    def stopProducing(self) -> None:
        """Do nothing: connectionLost follows."""
