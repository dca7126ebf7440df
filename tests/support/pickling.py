"""The way of a server into a worker, without a worker."""

from typing import Any

from novasvc.workers.specification import pickle_server, unpickle_server


def carried(server: Any, reactor: Any = None) -> Any:
    """Return what a worker with this reactor makes of a server."""
    return unpickle_server(pickle_server(server).data, reactor)
