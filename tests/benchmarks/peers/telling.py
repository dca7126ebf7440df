"""How a worker process tells who measures that it is up. It needs nothing but Python."""

import os
import time

VARIABLE = "BENCHMARK_TOLD"
"""Of the environment: path of the FIFO in which it is told."""


def tell_up() -> None:
    """Tell that the service of this process is being started now."""
    line = f"{os.getpid()} {time.monotonic()!r}\n"
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY)
    os.write(descriptor, line.encode())  # so few octets are written at once, whoever else writes
    os.close(descriptor)
