"""The names of nova.service, on Twisted."""

import warnings
from typing import Any

from novasvc.node.service import Service
from novasvc.node.tree import ServiceTree as _ServiceTree
from novasvc.node.wsgi import WSGIService
from novasvc.run.launcher import Launcher, ServiceLauncher
from novasvc.run.process_launcher import ProcessLauncher
from novasvc.run.script import serve, wait
from novasvc.run.waiting import SignalExit
from novasvc.workers.servers import ServerWrapper

__all__ = [
    "Launcher",
    "ProcessLauncher",
    "ServerWrapper",
    "Service",
    "ServiceLauncher",
    "SignalExit",
    "WSGIService",
    "serve",
    "wait",
]


def __getattr__(name: str) -> Any:
    if name == "ServiceTree":  # it was here before 0.2; nova.service has none
        warnings.warn("import ServiceTree from novasvc", DeprecationWarning, stacklevel=2)
        return _ServiceTree
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
