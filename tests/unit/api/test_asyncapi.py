from typing import Any
from unittest import TestCase

from twisted.internet.defer import Deferred

from novasvc import Manager, RequestContext, rpc
from novasvc.service import Service
from tests.support.api_rig import READERS, TOKENS, APIRig
from tests.support.asyncapi_schema import check_asyncapi


class Greeter(Manager):
    @rpc.expose
    def greet(self, context: RequestContext, name: str) -> str:
        """Greet somebody."""
        return f"hello {name}"


class Silent:
    """Describes itself never."""

    def __init__(self) -> None:
        self.calls = 0

    @rpc.expose(namespace="node", version="1.1")
    def interface(self, context: RequestContext) -> Any:
        self.calls += 1
        return Deferred()


class AsyncAPITests(TestCase):
    """Tests for /asyncapi.json."""

    def serve(self, rig: APIRig) -> None:
        node = Service("h1", "greeter", "greeter", Greeter, runtime=rig.runtime)
        node.startService()
        rig.clock.pump([0.1] * 10)
        self.assertEqual(node.state, "running")

    def test_services(self) -> None:
        """It has the methods of every topic of the registry, as a live node describes them, and is valid."""
        rig = APIRig(self)
        self.serve(rig)
        document = rig.get("/asyncapi.json").document
        check_asyncapi(self, document)
        self.assertEqual([*document["operations"]], ["greeter.greet"])
        self.assertNotIn("x-novasvc-unanswered", document["info"])

    def test_unanswered(self) -> None:
        """A topic that nobody serves, or whose node does not answer in time, is named, and delays nothing further."""
        rig = APIRig(self)
        self.serve(rig)
        rig.add("h2", topic="gone")
        rig.add("h3", topic="silent")
        silent = Silent()
        transport = rig.runtime.broker._resource
        assert transport is not None
        server = rpc.Server(
            transport, rpc.client.Target("silent", "h3"), rpc.Endpoints(silent), clock=rig.clock, concurrency=1,
            run_blocking=rig.runtime.run_blocking,
        )  # fmt: skip
        server.start()
        before = rig.clock.seconds()
        document = rig.get("/asyncapi.json").document
        self.assertLess(rig.clock.seconds() - before, 4)
        check_asyncapi(self, document)
        self.assertEqual([*document["operations"]], ["greeter.greet"])
        unanswered = document["info"]["x-novasvc-unanswered"]
        self.assertIn("gone is unreachable: no queue is bound", unanswered["gone"])
        self.assertIn("no reply from silent to 'interface' within 3 s", unanswered["silent"])
        # Cached for a moment, and then made again.
        rig.get("/asyncapi.json")
        self.assertEqual(silent.calls, 1)
        rig.clock.advance(10)
        rig.get("/asyncapi.json")
        self.assertEqual(silent.calls, 2)

    def test_access(self) -> None:
        """It tells what the services offer, so it needs the scope read."""
        rig = APIRig(self, TOKENS)
        self.assertEqual(rig.get("/asyncapi.json").status, 401)
        self.assertEqual(rig.get("/asyncapi.json", X_Auth_Token=READERS).status, 200)
