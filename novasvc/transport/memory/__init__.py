"""Messages within one process: the transport of ``memory:``.

For a node on its own, for several nodes in one process, and for tests. It keeps the promises of
a broker (queues, prefetch, redelivery, expiry), and what it delivers it delivers later: never
from within the call that sent it.
"""

from novasvc.transport.memory.broker import QUEUE_BOUND, MemoryBroker
from novasvc.transport.memory.transport import MemoryTransport

__all__ = ["QUEUE_BOUND", "MemoryBroker", "MemoryTransport"]
