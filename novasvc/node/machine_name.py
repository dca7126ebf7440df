"""The name of the machine that a process runs on."""

import socket
from pathlib import Path

_FIRST_NAMESPACE = "pid:[4026531836]"
"""The pid namespace of a Linux machine itself. Source: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h."""


def name_machine(namespace: Path = Path("/proc/self/ns/pid")) -> str:
    """Return the host name; in a container also its pid namespace, as "box, pid:[4026532345]".

    Process numbers are told apart by it. Containers in the network of their machine have one host name, and in each the
    service may be process 1; so two of them would be taken for services of one process.

    :param namespace: link that names the namespace of this process; there is none but on Linux.
    """
    name = socket.gethostname()
    try:
        own = str(namespace.readlink())
    except OSError:
        return name
    return name if own == _FIRST_NAMESPACE else f"{name}, {own}"
