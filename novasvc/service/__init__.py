"""The names of nova.service, on Twisted."""

from novasvc.service.launcher import Launcher, ServiceLauncher, SignalExit
from novasvc.service.prefork import ProcessLauncher
from novasvc.service.script import serve, wait
from novasvc.service.service import Service
from novasvc.service.tree import ServiceTree
from novasvc.service.wsgi import WSGIService
from novasvc.supervision.supervisor import ServerWrapper

__all__ = [
    "Launcher",
    "ProcessLauncher",
    "ServerWrapper",
    "Service",
    "ServiceLauncher",
    "ServiceTree",
    "SignalExit",
    "WSGIService",
    "serve",
    "wait",
]
