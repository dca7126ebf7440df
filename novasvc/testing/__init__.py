"""Helpers for tests of your own managers: no server, no file, no thread, no waiting.

:class:`Fleet` runs managers together, in memory and on a clock that the test advances. docs/testing.md is the guide.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from novasvc.registry.memory import MemoryRegistry
    from novasvc.testing.clock import SteppedClock
    from novasvc.testing.faults import Fault, Faults
    from novasvc.testing.fleet import Fleet
    from novasvc.testing.node import FleetNode
    from novasvc.testing.runtime import memory_runtime
    from novasvc.testing.servers import temporary_database, temporary_virtual_host
    from novasvc.testing.traffic import SentMessage
    from novasvc.testing.trial import FleetMixin
    from novasvc.testing.waiting import Answer

__all__ = [
    "Answer",
    "Fault",
    "Faults",
    "Fleet",
    "FleetMixin",
    "FleetNode",
    "MemoryRegistry",
    "SentMessage",
    "SteppedClock",
    "memory_runtime",
    "temporary_database",
    "temporary_virtual_host",
]

_MODULES = {
    "Answer": "waiting",
    "Fault": "faults",
    "Faults": "faults",
    "Fleet": "fleet",
    "FleetMixin": "trial",
    "FleetNode": "node",
    "SentMessage": "traffic",
    "SteppedClock": "clock",
    "memory_runtime": "runtime",
    "temporary_database": "servers",
    "temporary_virtual_host": "servers",
}


def __getattr__(name: str) -> Any:
    # Imported when it is used: pytest imports this package in every project that has novasvc installed.
    if name == "MemoryRegistry":
        return import_module("novasvc.registry.memory").MemoryRegistry
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
