"""RPC: expose methods, collect them as endpoints, serve them with a server, and call them with a client.

The wire format is that of oslo.messaging: see :mod:`novasvc.rpc.message`.
"""

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
