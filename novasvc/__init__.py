"""Services that run on hosts: RPC, periodic tasks, liveness and supervision on Twisted.

What a manager's author needs is here; the nova.service names are in :mod:`novasvc.service`.
Importing the package installs no reactor.
"""

from typing import TYPE_CHECKING, Any

from novasvc import _moved, rpc
from novasvc._version import __version__
from novasvc.context import RequestContext
from novasvc.manager import Manager
from novasvc.periodic import periodic_task

if TYPE_CHECKING:
    from novasvc.node.tree import ServiceTree

__all__ = ["Manager", "RequestContext", "ServiceTree", "__version__", "periodic_task", "rpc"]

_moved.install()


def __getattr__(name: str) -> Any:
    # Imported when it is used: it brings Automat along, which the novasvc command does not need to print its help.
    if name == "ServiceTree":
        from novasvc.node.tree import ServiceTree  # noqa: PLC0415

        return ServiceTree
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
