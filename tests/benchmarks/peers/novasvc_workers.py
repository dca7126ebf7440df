"""A script that serves in novasvc's worker processes, at default options: ``... novasvc_workers ROLE WORKERS``.

A worker is ready when its service has started. The supervisor says so, and much else, at its
control socket. Roles:

- ``idle``: a service that tells that it is up, and does nothing.
- ``node``: a whole node, with the host agent; memory transport and SQLite unless the environment says otherwise.
- ``echo``: a node that echoes, at the broker that the environment names.
- ``http PORT``: a web site; each answer takes :data:`THINKING` seconds.
"""

import sys
from collections.abc import Callable
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.protocols.policies import WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from novasvc.node.stream_server import StreamServer
from novasvc.service import Service, serve, wait
from tests.benchmarks.peers.command import TOPIC
from tests.benchmarks.peers.telling import tell_up

THINKING = 0.02
"""Seconds: there are always requests that are being answered, so a drain has something to wait for."""


class Idle(service.Service):
    """Tells that it is up, and does nothing."""

    def startService(self) -> None:
        """Tell."""
        tell_up()
        super().startService()


class Node(Service):
    """Tells that it is up when its start begins."""

    def startService(self) -> None:
        """Tell, and begin to start."""
        tell_up()
        super().startService()


class Page(Resource):
    """Says which process answers."""

    isLeaf = True

    def render_GET(self, request: Any) -> int:
        """Answer in a while."""
        from twisted.internet import reactor  # noqa: PLC0415 - which one, is known in the worker

        def answer(_: None) -> None:
            if not request.finished and request.channel is not None:
                request.finish()

        request.write(b"this is a page\n")
        deferLater(reactor, THINKING).addCallback(answer)
        return NOT_DONE_YET


class Connections(WrappingFactory):
    """A site that can wait for the end of its connections."""

    noisy = False

    def __init__(self) -> None:
        super().__init__(Site(Page()))
        self._waiting: list[Deferred[None]] = []

    def unregisterProtocol(self, protocol: Any) -> None:
        """Count one less."""
        super().unregisterProtocol(protocol)
        while self._waiting and not self.protocols:
            self._waiting.pop().callback(None)

    def all_closed(self) -> Deferred[None]:
        """Wait until no connection is open."""
        closed: Deferred[None] = Deferred()
        if self.protocols:
            self._waiting.append(closed)
        else:
            closed.callback(None)
        return closed


class WebServer(StreamServer):
    """Finishes what it has accepted before it has stopped."""

    def startService(self) -> None:
        """Accept connections."""
        self.factory = Connections()
        super().startService()
        tell_up()

    def stopService(self) -> Deferred[None]:
        """Accept no more, and wait for those that are open."""
        connections = self.factory
        return super().stopService().addCallback(lambda _: connections.all_closed())


def main(role: str, workers: str, *words: str) -> None:
    """Run that many workers until SIGTERM."""
    servers: dict[str, Callable[..., service.Service]] = {
        "idle": Idle,
        "node": lambda: Node("benchmark", "novasvc-agent", "agent", "novasvc.host_agent.HostAgent"),
        "echo": lambda: Node("benchmark", "echo", TOPIC, "tests.benchmarks.peers.novasvc.EchoManager"),
        "http": lambda port: WebServer(f"tcp:{port}:interface=127.0.0.1", Connections),
    }
    serve(servers[role](*words), workers=int(workers))
    wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
