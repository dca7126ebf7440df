"""What workers run in these tests: they do what they are told, also what nobody should do.

Each worker listens at a unix socket in its working directory, ``worker-NUMBER``, for orders, one a line.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from twisted.application import service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineOnlyReceiver

from novasvc import Manager, RequestContext, rpc
from novasvc.workers.current import current_worker

# -- orders ------------------------------------------------------------------------------------------


def spin(_: int) -> None:
    """Keep Python busy."""
    while True:
        pass


def freeze(_: int) -> None:
    """Stay in C, and have no signal but SIGKILL arrive."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.PyDLL(None).pause()


def turn_deaf(_: int) -> None:
    """Take no notice of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


ORDERS: Mapping[str, Callable[[int], Any]] = MappingProxyType(
    {
        "exit": os._exit,
        "spin": spin,
        "freeze": freeze,
        "turn deaf": turn_deaf,
        "crash": ctypes.string_at,
    }
)
"""What each of them takes is the number at the end of the line; 0 if there is none."""


class Orders(LineOnlyReceiver):
    """Obeys. "pid" and "think" are answered with what they say, and the others with "ok", before they are done.

    :param think: works in a thread.
    """

    delimiter = b"\n"

    def __init__(self, think: Callable[[], Deferred[str]] | None) -> None:
        self._think = think

    def lineReceived(self, line: bytes) -> None:
        words, _, number = line.decode().rpartition(" ")
        if not number.isdecimal():
            words, number = line.decode(), "0"
        if words == "pid":
            self.sendLine(str(os.getpid()).encode())
            return
        if words == "think":
            assert self._think is not None
            self._think().addErrback(lambda failure: str(failure.value)).addCallback(
                lambda said: self.sendLine(said.encode())
            )
            return
        # To the system's buffer, now: maybe nothing is sent afterwards.
        self.transport.getHandle().send(b"ok\n")
        ORDERS[words](int(number))


def obey(reactor: Any, think: Callable[[], Deferred[str]] | None = None) -> None:
    """Listen for orders."""
    path = Path(f"worker-{current_worker(reactor).number}")
    path.unlink(missing_ok=True)
    reactor.listenUNIX(str(path), Factory.forProtocol(partial(Orders, think)))


# -- servers of scripts --------------------------------------------------------------------------------


class Obedient(service.Service):
    """Obeys, and does nothing else.

    :param name: of the server.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def startService(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415 - the worker's own

        super().startService()
        obey(reactor)


@attrs.frozen
class Dying:
    """A server that never comes to be.

    :param name: "exit 3", "kill 9", "leave 3", "raise".
    """

    name: str

    def __call__(self, reactor: Any) -> Any:
        match self.name.split():
            case ["exit", number]:
                os._exit(int(number))
            case ["kill", number]:
                os.kill(os.getpid(), int(number))
            case ["leave", number]:
                sys.exit(int(number))
            case _:
                raise LookupError("no such hypervisor")


class Echo(LineOnlyReceiver):
    """Answers each line with the process that has read it."""

    delimiter = b"\n"

    def lineReceived(self, line: bytes) -> None:
        self.sendLine(f"{os.getpid()} ".encode() + line)


def echo() -> Factory:
    return Factory.forProtocol(Echo)


# -- managers --------------------------------------------------------------------------------------------


class Node(Manager):
    """Obeys, and notes in a file what it is called with: "begun" and "done", one a line."""

    def init_host(self) -> None:
        self._reactor: Any = self.attachments.reactor
        obey(self._reactor, lambda: self.attachments.run_blocking(lambda: "thought"))

    @rpc.expose
    def work(self, context: RequestContext, what: Any, seconds: float = 0.0) -> Deferred[Any]:
        return self._work(what, seconds)

    @rpc.expose(idempotent=True)
    def work_again(self, context: RequestContext, what: Any, seconds: float = 0.0, on: str = "") -> Deferred[Any]:
        """Work; only on one host it takes time, if that is given."""
        return self._work(what, seconds if on in {"", self.host} else 0.0)

    def _work(self, what: Any, seconds: float) -> Deferred[Any]:
        self._note("begun", what)

        def done() -> Any:
            self._note("done", what)
            return what

        return deferLater(self._reactor, seconds, done)

    def _note(self, how: str, what: Any) -> None:
        with Path("journal").open("a") as journal:
            journal.write(f"{how} {what}\n")


class Unmade(Manager):
    def __init__(self, host: str) -> None:
        raise LookupError("no such hypervisor")


class FailsToInit(Manager):
    def init_host(self) -> None:
        raise LookupError("no such hypervisor")


class FailsBeforeStart(Manager):
    def pre_start_hook(self) -> None:
        raise LookupError("no such hypervisor")


class FailsAfterStart(Manager):
    def post_start_hook(self) -> None:
        raise LookupError("no such hypervisor")


class Vanishes(Manager):
    def init_host(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Waits(Manager):
    """Takes for ever to start."""

    def init_host(self) -> Deferred[None]:
        return Deferred()


class Hangs(Manager):
    """Stops its reactor where it should prepare."""

    def init_host(self) -> None:
        spin(0)
