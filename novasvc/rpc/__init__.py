"""RPC: expose methods, collect them as endpoints, serve them with a server, and call them with a client.

The wire format is that of oslo.messaging: see :mod:`novasvc.rpc.message`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from novasvc.rpc.baseapi import BaseAPI
    from novasvc.rpc.client import Client
    from novasvc.rpc.contracts.stub import stub
    from novasvc.rpc.endpoint import Endpoints
    from novasvc.rpc.events.declare import event
    from novasvc.rpc.events.emitter import EventEmitter
    from novasvc.rpc.events.listener import EventListener
    from novasvc.rpc.events.notification import Notification, Notifier
    from novasvc.rpc.events.notification_listener import NotificationListener
    from novasvc.rpc.exposure import expose
    from novasvc.rpc.failures.error_classes import error
    from novasvc.rpc.failures.origin import Origin, origin_of
    from novasvc.rpc.gather import Gathered, Gathering, HostReply
    from novasvc.rpc.retry import Retry
    from novasvc.rpc.server.server import Server

__all__ = [
    "BaseAPI",
    "Client",
    "Endpoints",
    "EventEmitter",
    "EventListener",
    "Gathered",
    "Gathering",
    "HostReply",
    "Notification",
    "NotificationListener",
    "Notifier",
    "Origin",
    "Retry",
    "Server",
    "error",
    "event",
    "expose",
    "origin_of",
    "stub",
]

_MODULES = {
    "BaseAPI": "novasvc.rpc.baseapi",
    "Client": "novasvc.rpc.client",
    "Endpoints": "novasvc.rpc.endpoint",
    "EventEmitter": "novasvc.rpc.events.emitter",
    "EventListener": "novasvc.rpc.events.listener",
    "Gathered": "novasvc.rpc.gather",
    "Gathering": "novasvc.rpc.gather",
    "HostReply": "novasvc.rpc.gather",
    "Notification": "novasvc.rpc.events.notification",
    "NotificationListener": "novasvc.rpc.events.notification_listener",
    "Notifier": "novasvc.rpc.events.notification",
    "Origin": "novasvc.rpc.failures.origin",
    "Retry": "novasvc.rpc.retry",
    "Server": "novasvc.rpc.server.server",
    "error": "novasvc.rpc.failures.error_classes",
    "event": "novasvc.rpc.events.declare",
    "expose": "novasvc.rpc.exposure",
    "origin_of": "novasvc.rpc.failures.origin",
    "stub": "novasvc.rpc.contracts.stub",
}


def __getattr__(name: str) -> Any:
    # Imported when it is used: a command that only reads the registry, or only needs the errors, starts sooner.
    if name in _MODULES:
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value
    try:
        return import_module(f"{__name__}.{name}")  # as it was when all modules of the package were imported with it
    except ModuleNotFoundError as missing:
        if missing.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
