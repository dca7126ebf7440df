import json
from typing import Any
from unittest import TestCase

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from novasvc import Manager, RequestContext, rpc
from novasvc.api.gateway import gateway_error
from novasvc.errors import UnconfirmedError
from novasvc.registry.record import ServiceChanges
from novasvc.service import Service
from tests.support.api_rig import ADMINS, TOKENS, APIRig


class Greeter(Manager):
    """A manager that answers, waits and fails."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.contexts: list[RequestContext] = []
        self.waiting: list[Deferred[str]] = []

    @rpc.expose
    def greet(self, context: RequestContext, name: str = "you") -> str:
        self.contexts.append(context)
        return f"hello {name}"

    @rpc.expose
    def pass_on(self, context: RequestContext) -> Any:
        return self.attachments.rpc.prepare(topic="greeter").call(RequestContext(), "greet", name="from me")

    @rpc.expose
    def wait(self, context: RequestContext) -> Deferred[str]:
        self.contexts.append(context)
        self.waiting.append(Deferred())
        return self.waiting[-1]

    @rpc.expose
    def fail(self, context: RequestContext, kind: str) -> Any:
        if kind == "within":
            return self.attachments.rpc.prepare(topic="greeter").call(context, "greet", nme="x")
        if kind == "unreached":
            return self.attachments.rpc.prepare(topic="nobody").call(context, "greet")
        raise {"key": KeyError, "own": Broken}[kind]("the disk is on fire")

    @rpc.expose
    def odd(self, context: RequestContext) -> object:
        return object()

    def hidden(self, context: RequestContext) -> str:
        return "secret"


class Broken(Exception):  # noqa: N818 - a manager's own
    """An exception that is not a known error."""


class GatewayTests(TestCase):
    """Tests for POST /v1/rpc/{topic}/{method}."""

    def setUp(self) -> None:
        self.rig = APIRig(self, TOKENS)
        self.manager = Greeter("h1")
        self.node = Service("h1", "greeter", "greeter", lambda host: self.manager, runtime=self.rig.runtime)
        self.node.startService()
        self.rig.clock.pump([0.1] * 10)
        self.assertEqual(self.node.state, "running")

    def call(self, method: str, body: Any = None, topic: str = "greeter", **headers: str) -> Any:
        """Call a method; return the status and the document."""
        given = {"X_Auth_Token": ADMINS, **headers}
        answer = self.rig.ask("POST", f"/v1/rpc/{topic}/{method}", {} if body is None else body, **given)
        return answer.status, answer.document

    def refused(self, status: int, method: str, body: Any = None, **where: str) -> str:
        """Make a call that fails with this status; return the message."""
        found, document = self.call(method, body, **where)
        self.assertEqual(found, status, document)
        self.assertNotIn("Traceback", json.dumps(document))
        message: str = document["error"]["message"]
        return message

    def test_result(self) -> None:
        """A call's result comes back; the node sees an administrator's context with the request's own id."""
        self.assertEqual(self.call("greet", {"args": {"name": "ada"}}), (200, {"result": "hello ada"}))
        answer = self.rig.ask("POST", "/v1/rpc/greeter/greet", {"host": "h1"}, X_Auth_Token=ADMINS)
        self.assertEqual(answer.document, {"result": "hello you"})
        context = self.manager.contexts[-1]
        self.assertTrue(context.is_admin)
        self.assertEqual(context.request_id, answer.headers["X-Openstack-Request-Id"])

    def test_cast(self) -> None:
        """A cast and a fanout are answered before they are done."""
        for body in ({"cast": True}, {"fanout": True}, {"cast": True, "host": "h1"}):
            self.assertEqual(self.call("greet", body), (202, {"result": None}))
        self.rig.clock.pump([0.1] * 5)
        self.assertEqual(len(self.manager.contexts), 3)

    def test_not_exposed(self) -> None:
        """A method that is not exposed is 404."""
        for method in ("hidden", "init_host", "periodic_tasks", "__class__", "nothing"):
            self.assertIn("exposes no method", self.refused(404, method))

    def test_nobody(self) -> None:
        """A topic or host without a node is 404."""
        self.assertIn("no server for", self.refused(404, "greet", topic="nobody"))
        self.assertIn("no server for", self.refused(404, "greet", {"host": "h2"}))

    def test_unreachable(self) -> None:
        """A service that the registry lists as up, but that has no queue, is 503."""
        self.rig.add("h2", "greeter", "greeter")
        self.assertIn("although 1 of 1 such services are up", self.refused(503, "greet", {"host": "h2"}))

    def test_down(self) -> None:
        """The error of a call to a host that is down names the field of the request, not an argument in Python."""
        record = self.rig.add("h2", "greeter", "greeter")
        self.rig.registry.update(record.id, ServiceChanges(forced_down=True))
        message = self.refused(503, "greet", {"host": "h2"})
        self.assertIn("h2 is down, and the call was not sent: forced down by an operator", message)
        self.assertTrue(message.endswith(' all the same with "check_liveness": false'), message)

    def test_idempotent(self) -> None:
        """A call can be marked as idempotent."""
        self.assertEqual(self.call("greet", {"idempotent": True}), (200, {"result": "hello you"}))
        self.assertIn("idempotent must be true or false", self.refused(400, "greet", {"idempotent": 1}))

    def test_may_run(self) -> None:
        """An unconfirmed call is not a 503, which would invite a retry."""
        error = gateway_error(UnconfirmedError("greeter", "the connection was lost"))
        self.assertEqual((error.status, error.headers), (504, {}))

    def test_wrong(self) -> None:
        """An invalid body, or invalid arguments, get 400 with the reason."""
        for body, said in (
            ([], "an object"),
            ({"arg": {}}, "'arg'"),
            ({"args": []}, "args must be an object"),
            ({"timeout": 0}, "timeout"),
            ({"timeout": True}, "timeout"),
            ({"timeout": "1"}, "timeout"),
            ({"version": "1"}, "version"),
            ({"version": 1}, "version"),
            ({"host": ""}, "host"),
            ({"cast": 1}, "cast"),
            ({"fanout": True, "host": "h1"}, "fanout"),
            ({"args": {"nme": "x"}}, "unknown: nme"),
            ({"version": "9.0"}, "9.0"),
        ):
            self.assertIn(said, self.refused(400, "greet", body), body)
        self.assertIn("not valid JSON", self.refused(400, "greet", b"{"))
        self.assertEqual(self.call("greet", b"{}", Content_Type="text/plain")[0], 415)

    def test_names_that_no_queue_has(self) -> None:
        """A topic or host that cannot name a queue is 400."""
        self.assertIn("octets", self.refused(400, "greet", topic="t" * 300))
        for host in ("h" * 300, "\ud800"):
            self.refused(400, "greet", {"host": host})

    def test_failed(self) -> None:
        """An exception of the method is 502 with its class and text only."""
        self.assertIn("KeyError", self.refused(502, "fail", {"args": {"kind": "key"}}))
        self.assertIn("the disk is on fire", self.refused(502, "fail", {"args": {"kind": "own"}}))
        self.assertIn("odd", self.refused(502, "odd"))

    def test_origin(self) -> None:
        """An error says where it was raised: in its message, and in fields for programs."""
        for method, args, exception in (
            ("fail", {"kind": "key"}, "KeyError"),
            ("fail", {"kind": "own"}, "Broken"),
            ("greet", {"nme": "x"}, "InvalidArgumentsError"),
        ):
            answer = self.rig.ask("POST", f"/v1/rpc/greeter/{method}", {"args": args}, X_Auth_Token=ADMINS)
            error = answer.document["error"]
            request_id = answer.headers["X-Openstack-Request-Id"]
            origin = {"topic": "greeter", "method": method, "host": "h1", "request_id": request_id, "through": []}
            self.assertEqual((error["exception"], error["origin"]), (exception, origin))
            self.assertTrue(error["message"].endswith(f" (from greeter.{method} on h1; request {request_id})"))

    def test_no_origin(self) -> None:
        """An error of the API itself has none of these fields."""
        _, document = self.call("greet", topic="nobody")
        self.assertEqual(document["error"].keys(), {"code", "title", "message"})

    def test_within(self) -> None:
        """An error of a call that the method made is the method's, not the client's."""
        for kind in ("within", "unreached"):
            message = self.refused(502, "fail", {"args": {"kind": kind}})
            self.assertIn("the method raised", message)
            self.assertIn("(from greeter.", message)

    def test_deadline(self) -> None:
        """A call that times out is 504; the node gets its deadline."""
        began = self.rig.clock.seconds()
        self.refused(504, "wait", {"timeout": 3})
        self.assertAlmostEqual(self.rig.clock.seconds() - began, 3, delta=0.5)
        self.assertAlmostEqual(self.manager.contexts[0].deadline or 0, began + 3, delta=0.5)

    def test_deadline_passes_on(self) -> None:
        """The timeout is the deadline of the calls that the method makes, too, whatever context it gives them."""
        began = self.rig.clock.seconds()
        self.assertEqual(self.call("pass_on", {"timeout": 3}), (200, {"result": "hello from me"}))
        self.assertAlmostEqual(self.manager.contexts[-1].deadline or 0, began + 3, delta=0.5)

    def test_cancelled(self) -> None:
        """A client that disconnects cancels the method. That is audited, and is no error."""
        asking = self.rig.send("POST", "/v1/rpc/greeter/wait", {}, X_Auth_Token=ADMINS)
        self.rig.clock.pump([0.1] * 5)
        with capturedLogs() as events:
            asking.protocol.connectionLost(Failure(ConnectionDone()))
            self.rig.clock.pump([0.1] * 5)
        (waiting,) = self.manager.waiting
        self.assertTrue(waiting.called)
        (line,) = [str(formatEvent(event)) for event in events if event.get("audit")]
        self.assertIn("call greeter.wait: cancelled by the client", line)
        self.assertEqual([formatEvent(event) for event in events if "log_failure" in event], [])

    def test_given_up(self) -> None:
        """A call whose client disconnects is cancelled, and no longer counts."""
        asking = self.rig.send("POST", "/v1/rpc/greeter/wait", {}, X_Auth_Token=ADMINS)
        self.rig.clock.pump([0.1] * 5)
        self.assertEqual((asking.answered, self.rig.backend.client.pending), (False, 1))
        asking.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.rig.backend.client.pending, 0)
