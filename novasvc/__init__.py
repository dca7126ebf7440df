"""Services that run on hosts: RPC, periodic tasks, liveness and supervision on Twisted."""
