"""Services that run on hosts: RPC, periodic tasks, liveness and supervision on Twisted.

What a manager's author needs is here; the nova.service names are in :mod:`novasvc.service`.
Importing the package installs no reactor.
"""

from novasvc import _moved, rpc
from novasvc._version import __version__
from novasvc.context import RequestContext
from novasvc.manager import Manager
from novasvc.node.tree import ServiceTree
from novasvc.periodic import periodic_task

__all__ = ["Manager", "RequestContext", "ServiceTree", "__version__", "periodic_task", "rpc"]

_moved.install()
