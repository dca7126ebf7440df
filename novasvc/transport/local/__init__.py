"""Transport between the processes of one user on one host, for ``memory:`` URLs.

Each process keeps its messages in memory, and listens on a unix socket in the state directory. A message for which no
server listens in its own process is sent over the socket of a process that has one. There is no broker: the messages
of a process end with it.
"""

from novasvc.transport.local.sockets import HostSockets
from novasvc.transport.local.transport import LocalTransport

__all__ = ["HostSockets", "LocalTransport"]
