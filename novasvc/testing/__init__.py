"""Helpers for tests of your own managers: no server, no file, no thread, no waiting.

``runtime = memory_runtime()`` makes the resources of a node, in memory and on a Clock.
"""

from novasvc.registry.memory import MemoryRegistry
from novasvc.testing.runtime import memory_runtime

__all__ = ["MemoryRegistry", "memory_runtime"]
