"""A node's whole life in small, before workers are forked: what it builds on its way, they share."""

# Note [A rehearsal]
#
# The first start of a node in a process builds a lot that stays, of SQLAlchemy's, of Twisted's and
# of ours, and imports what is only imported when it is needed. So the forkserver lives through it
# once, and its workers do not have to: a node on the memory transport, with an SQLite file of its
# own in a temporary directory, on a reactor that nobody keeps. All its threads have ended when it
# returns.

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import twisted.internet
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import Logger

from novasvc import rpc
from novasvc.config import load
from novasvc.context import RequestContext
from novasvc.manager import Manager
from novasvc.node.runtime import Runtime
from novasvc.node.service import Service
from novasvc.node.tree import ServiceTree
from novasvc.telemetry import metrics

_log = Logger()

_PATIENCE = 10.0
"""Seconds that it may take; it takes a tenth of one."""


class _PlaceholderManager(Manager):
    @rpc.expose
    def ping(self, context: RequestContext, value: int) -> int:
        return value


def rehearse() -> None:
    """Start a node, call it, stop it."""
    reactor = SelectReactor()
    with _installed(reactor), tempfile.TemporaryDirectory(prefix="novasvc-rehearsal-") as folder:
        options = {"state-dir": folder, "host": "rehearsal", "periodic-fuzzy-delay": 0}
        runtime = Runtime.from_settings(load((), {}, options).settings, reactor)
        ended = Deferred.fromCoroutine(_live(runtime)).addTimeout(_PATIENCE, reactor)
        ended.addErrback(lambda failure: _log.failure("the rehearsal failed; workers start without it", failure))
        ended.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
        reactor.run(installSignalHandlers=False)


@contextmanager
def _installed(reactor: SelectReactor) -> Iterator[None]:
    """Have this as the global reactor for a while: Twisted's LoopingCall asks for one, whatever it is given."""
    sys.modules["twisted.internet.reactor"] = twisted.internet.reactor = reactor
    try:
        yield
    finally:
        del sys.modules["twisted.internet.reactor"], twisted.internet.reactor


async def _live(runtime: Runtime) -> None:
    tree = ServiceTree("rehearsal")
    node = Service("rehearsal", "novasvc-rehearsal", "rehearsal", _PlaceholderManager, runtime=runtime)
    node.setServiceParent(tree)
    tree.startService()
    await tree.when_started()
    await node.rpc.prepare(topic="rehearsal", timeout=_PATIENCE).call(RequestContext(), "ping", value=1)
    await node.periodic_tasks()
    await node.health()
    metrics.documents()
    await tree.stopService()
