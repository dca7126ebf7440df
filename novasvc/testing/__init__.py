"""Parts for tests of your own managers: no server, no file, no thread, no waiting.

``runtime = memory_runtime()`` gives a node all it stands on, in memory and on a Clock.
"""

from novasvc.registry.memory import MemoryRegistry
from novasvc.testing.runtime import memory_runtime

__all__ = ["MemoryRegistry", "memory_runtime"]
