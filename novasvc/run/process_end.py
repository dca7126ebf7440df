"""The end of a process: stop the reactor, and exit with a status."""

import atexit
import os
import sys
from contextlib import suppress
from typing import Any

from twisted.internet.error import ReactorNotRunning


def end_process(reactor: Any, status: int) -> None:
    """Stop the reactor, and make the process exit with this status.

    twistd exits with 0 whatever its services did, and catches SystemExit in the reactor. An atexit handler is
    the only place left: it runs after twistd has removed its pid file.
    """

    @atexit.register
    def leave() -> None:
        flush_output()
        os._exit(status)

    reactor.callWhenRunning(stop_reactor, reactor)


def is_only_service(service: Any) -> bool:
    """Return whether a service is the only one of its application, as in a .tac file of its own.

    The collections that contain it, such as the service tree of ``twistd novasvc``, do not count.
    """
    parent = service.parent
    if parent is None or list(parent) != [service]:
        return False
    return getattr(parent, "parent", None) is None or is_only_service(parent)


def stop_reactor(reactor: Any) -> None:
    """Stop a reactor, unless it is stopped."""
    with suppress(ReactorNotRunning):
        reactor.stop()


def flush_output() -> None:
    """Write what standard output and standard error hold back: neither ``os._exit`` nor ``os.execv`` does."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
