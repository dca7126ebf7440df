"""Make `twistd novasvc` known; this directory is no package, so there is no __init__.py."""

from twisted.application.service import ServiceMaker

# Never rename it: plugin caches of installed systems remember the name.
novasvc = ServiceMaker(
    "novasvc", "novasvc.run.plugin", "Run services: RPC, periodic tasks, heartbeats, HTTP.", "novasvc"
)
