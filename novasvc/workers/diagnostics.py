"""Post-mortem data of a worker in shared memory: flight recorder, heartbeat and stacks."""

import os
import signal

from novasvc.telemetry.flight import SIZE, FlightRecorder

DUMP = signal.SIGRTMIN
"""The signal at which a worker writes the stacks of all threads, and continues."""

_MAX_STACKS_LENGTH = 256 * 1024
"""Bytes of stacks that are read; faulthandler writes at most 100 frames of 100 threads."""


class DiagnosticsFile:
    """An anonymous file (memfd) shared by a worker and its supervisor; it survives the worker's death.

    Both map its first part, the flight recorder with the heartbeat. faulthandler appends stacks behind
    it from a C signal handler, so even a blocked worker writes them.

    :param descriptor: of an existing file, owned by this object from now on; None creates one.
    :raises OSError: out of file descriptors or memory.
    :raises ValueError: the file is too short.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("novasvc-record")
            os.ftruncate(descriptor, SIZE)
            os.lseek(descriptor, SIZE, os.SEEK_SET)
        self.descriptor = descriptor
        try:
            self.recorder = FlightRecorder.from_descriptor(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def stacks(self) -> str:
        """The stacks that faulthandler has written so far."""
        return os.pread(self.descriptor, _MAX_STACKS_LENGTH, SIZE).decode("utf-8", "replace")

    def clear_stacks(self) -> None:
        """Discard the stacks, before new ones are written."""
        os.ftruncate(self.descriptor, SIZE)
        os.lseek(self.descriptor, SIZE, os.SEEK_SET)

    def close(self) -> None:
        """Unmap and close the file."""
        self.recorder.close()
        os.close(self.descriptor)
