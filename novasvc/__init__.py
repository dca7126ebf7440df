"""Services that run on hosts: RPC, periodic tasks, liveness and supervision on Twisted.

What a manager's author needs is here; the nova.service names are in :mod:`novasvc.service`.
Importing the package installs no reactor.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from novasvc import _moved
from novasvc._version import __version__

if TYPE_CHECKING:
    from novasvc import rpc
    from novasvc.context import RequestContext
    from novasvc.manager import Manager
    from novasvc.node.tree import ServiceTree
    from novasvc.periodic import periodic_task

__all__ = ["Manager", "RequestContext", "ServiceTree", "__version__", "periodic_task", "rpc"]

_moved.install()

_MODULES = {
    "Manager": "novasvc.manager",
    "RequestContext": "novasvc.context",
    "ServiceTree": "novasvc.node.tree",
    "periodic_task": "novasvc.periodic",
}


def __getattr__(name: str) -> Any:
    # Imported when it is used: pytest imports this package in every project that has it installed, for its plugin, and
    # the novasvc command needs little of it to print its help.
    if name == "rpc":
        return import_module("novasvc.rpc")
    if name in _MODULES:
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
