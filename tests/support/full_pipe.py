"""A pipe whose reader has stopped reading, for processes that write to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def full_pipe() -> Iterator[int]:
    """Yield the end for writing, at which a write blocks."""
    reading, writing = os.pipe()
    try:
        fill(writing)
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def fill(writing: int) -> None:
    """Write to a pipe until a write blocks."""
    # Opened again, since others that write to it would share the flag.
    descriptor = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"\n")
    os.close(descriptor)
