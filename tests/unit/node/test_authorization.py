"""Nodes with methods that not everybody may call, on a Clock and in memory."""

import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.errors import NotAllowedError, StartError
from novasvc.service import Service
from novasvc.testing import memory_runtime
from tests.support.keys import KeyRing


class Stock(Manager):
    @rpc.expose(allow="shop")
    def drop(self, context: RequestContext) -> str:
        return "dropped"


class NodeAuthorizationTests(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.ring = KeyRing(self.directory, time.time)
        self.key = self.ring.add("shop")
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def start(self, **settings: Any) -> Deferred[None]:
        self.runtime = memory_runtime(**settings)
        self.service = Service("h1", "novasvc-stock", "stock", Stock, 10, False, runtime=self.runtime)
        starting = self.service.start()
        self.runtime.reactor.pump([0] * 10)
        self.addCleanup(self.service.stop)
        return starting

    def drop(self) -> Deferred[Any]:
        """Call the method as the manager itself would."""
        client = self.service.node.client
        assert client is not None
        calling = client.prepare(topic="stock").call(RequestContext(is_admin=True), "drop")
        self.runtime.reactor.pump([0] * 10)
        return calling

    def warnings(self) -> int:
        return len([event for event in self.events if "nobody can call" in str(event.get("log_format"))])

    def test_keys(self) -> None:
        """A node signs with its key, and knows the callers of the file; without a key it is refused."""
        files = {"rpc_callers_file": self.ring.callers_file, "rpc_signing_key_file": self.key}
        self.successResultOf(self.start(**files))
        self.assertEqual(self.successResultOf(self.drop()), "dropped")
        self.successResultOf(self.start(rpc_callers_file=self.ring.callers_file))
        self.failureResultOf(self.drop(), NotAllowedError)
        self.assertEqual(self.warnings(), 0)

    def test_without_a_file(self) -> None:
        """Without a file of callers, everybody may call if messages stay on the host; over a broker nobody may."""
        self.successResultOf(self.start())
        self.assertEqual(self.successResultOf(self.drop()), "dropped")
        self.assertEqual(self.warnings(), 0)
        self.successResultOf(self.start(transport_url="amqp://broker.invalid/"))
        self.failureResultOf(self.drop(), NotAllowedError)
        self.assertEqual(self.warnings(), 1)

    def test_files_that_cannot_be_used(self) -> None:
        """A file that others can write, or that is not there, fails the start with a line that names it."""
        self.ring.callers_file.chmod(0o666)
        for files, problem in (
            ({"rpc_callers_file": self.ring.callers_file}, "users other than its owner can write it"),
            ({"rpc_signing_key_file": self.directory / "nothing"}, "it cannot be read"),
        ):
            error = self.failureResultOf(self.start(**files), StartError).value
            self.assertIn(problem, str(error))
