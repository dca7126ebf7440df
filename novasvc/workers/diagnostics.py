"""What a worker leaves behind, however it ends: its flight recorder, its last heartbeat, its stacks."""

import os
import signal

from novasvc.telemetry.flight import SIZE, FlightRecorder

DUMP = signal.SIGRTMIN
"""At this signal a worker writes down the stacks of all its threads, and goes on."""

_LONGEST = 256 * 1024
"""Octets of stacks that are read; faulthandler itself writes 100 frames of 100 threads at the most."""


class DiagnosticsFile:
    """A file in memory that a worker and its supervisor share; it goes with the last of them.

    The flight recorder and the heartbeat are its first part, which both map. What faulthandler
    writes is appended behind it: by a handler in C, so it comes from a worker that hangs, too.

    :param descriptor: of the file, which is the record's from now on; None makes one.
    :raises OSError: there is no descriptor or no memory left.
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
        """What faulthandler has written so far."""
        return os.pread(self.descriptor, _LONGEST, SIZE).decode("utf-8", "replace")

    def clear_stacks(self) -> None:
        """Make room for those that come next."""
        os.ftruncate(self.descriptor, SIZE)
        os.lseek(self.descriptor, SIZE, os.SEEK_SET)

    def close(self) -> None:
        """Let go of it."""
        self.recorder.close()
        os.close(self.descriptor)
