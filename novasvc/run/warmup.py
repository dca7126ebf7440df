"""Warm-up of the forkserver: run a node once before the first fork, so that workers share its caches."""

# Note [Warming up the forkserver]
#
# The first start of a node in a process fills caches of SQLAlchemy, Twisted and this package, and runs lazy imports.
# The forkserver does that once, and its workers inherit the result: it runs a node on the memory transport, with an
# SQLite file in a temporary directory, on a temporary reactor. All threads have ended when it returns, so forking
# is safe.

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

_TIMEOUT = 10.0
"""Seconds for the whole warm-up; it usually takes 0.1."""


class _PingManager(Manager):
    @rpc.expose
    def ping(self, context: RequestContext, value: int) -> int:
        return value


def warm_up() -> None:
    """Start a node, call it, run its tasks, stop it."""
    reactor = SelectReactor()
    with _installed(reactor), tempfile.TemporaryDirectory(prefix="novasvc-warmup-") as folder:
        options = {"state-dir": folder, "host": "warmup", "periodic-fuzzy-delay": 0}
        runtime = Runtime.from_settings(load((), {}, options).settings, reactor)
        ended = Deferred.fromCoroutine(_run_node(runtime)).addTimeout(_TIMEOUT, reactor)
        ended.addErrback(lambda failure: _log.failure("warm-up failed; workers will start more slowly", failure))
        ended.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
        reactor.run(installSignalHandlers=False)


@contextmanager
def _installed(reactor: SelectReactor) -> Iterator[None]:
    """Make this the global reactor in this context: LoopingCall imports it, even when it is given a clock."""
    sys.modules["twisted.internet.reactor"] = twisted.internet.reactor = reactor
    try:
        yield
    finally:
        del sys.modules["twisted.internet.reactor"], twisted.internet.reactor


async def _run_node(runtime: Runtime) -> None:
    tree = ServiceTree("warmup")
    node = Service("warmup", "novasvc-warmup", "warmup", _PingManager, runtime=runtime)
    node.setServiceParent(tree)
    tree.startService()
    await tree.when_started()
    await node.rpc.prepare(topic="warmup", timeout=_TIMEOUT).call(RequestContext(), "ping", value=1)
    await node.periodic_tasks()
    await node.health()
    metrics.documents()
    await tree.stopService()
