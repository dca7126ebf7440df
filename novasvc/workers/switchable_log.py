"""The log of workers: one observer, made in the forkserver, that each worker switches to its own log."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO, cast

from twisted.logger import ILogObserver, LogEvent, globalLogBeginner
from zope.interface import implementer

from novasvc.telemetry.logfiles import LogFile
from novasvc.telemetry.logs import NO_NODE, make_observer

STANDARD_OUTPUT = 1
"""The descriptor of the log file, if there is one; see :class:`~novasvc.workers.forkserver_client.ForkserverClient`."""


@implementer(ILogObserver)
class SwitchableObserver:
    """A log observer whose target changes: warnings to stderr in a forkserver, the configured log in a worker."""

    def __init__(self) -> None:
        self.observer: Callable[[LogEvent], None] = make_observer(sys.stderr, level="warn")
        # Twisted allows beginLoggingTo once per process, and a worker learns its log only after the fork.
        globalLogBeginner.beginLoggingTo([self], discardBuffer=True)

    def __call__(self, event: LogEvent) -> None:
        """Pass an event to the current target."""
        self.observer(event)

    def switch(self, parameters: Mapping[str, Any], reactor: Any) -> None:
        """Switch to the log of a worker."""
        log = parameters["log"]
        file: TextIO | None = sys.__stdout__
        if log["file"]:
            log_file = LogFile(log["file"], STANDARD_OUTPUT)
            log_file.watch(reactor)
            file = cast(TextIO, log_file)
        assert file is not None
        default = {**NO_NODE, "worker_number": parameters["number"]}
        self.observer = make_observer(file, as_json=log["json"], level=log["level"], default=default)
