"""Transport within one process, for ``memory:`` URLs.

For a single node, for several nodes in one process, and for tests. It provides what a broker
does: queues, prefetch, redelivery and TTL. A message is never delivered from within the call
that sent it, but in a later turn of the reactor.
"""

from novasvc.transport.memory.broker import QUEUE_BOUND, MemoryBroker
from novasvc.transport.memory.transport import MemoryTransport

__all__ = ["QUEUE_BOUND", "MemoryBroker", "MemoryTransport"]
