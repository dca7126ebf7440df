import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, NotAllowedError
from novasvc.rpc.contracts.description import describe_methods
from novasvc.rpc.identity import authorization
from novasvc.rpc.identity.allowed import OPERATORS
from novasvc.rpc.identity.authorization import Authorizer, current_caller
from novasvc.rpc.server.ledger import SeenWindow
from novasvc.telemetry import metrics
from tests.support.keys import KeyRing
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase


def owns(identity: str, invocation: Any) -> bool:
    """Allow callers their own items."""
    if invocation.args["item"] == "broken":
        raise ZeroDivisionError
    return bool(invocation.args["item"].startswith(f"{identity}-"))


class Stock(Diary):
    @rpc.expose(allow="admin")
    def drop(self, context: RequestContext) -> Any:
        self.calls.append("drop")
        return current_caller.get()

    @rpc.expose(allow={"shop", "admin"}, idempotent=True)
    async def reserve(self, context: RequestContext, item: str = "tea") -> Any:
        self.calls.append(item)
        return current_caller.get()

    @rpc.expose(allow=OPERATORS)
    def stop(self, context: RequestContext) -> Any:
        return current_caller.get()

    @rpc.expose(allow=owns)
    def edit(self, context: RequestContext, item: str) -> Any:
        return current_caller.get()

    @rpc.expose
    def look(self, context: RequestContext) -> Any:
        return current_caller.get()


class AuthorizationTests(RPCCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.now = 1_000_000.0
        self.ring = KeyRing(Path(temporary.name), lambda: self.now, "shop", "admin")
        super().setUp()

    def make_endpoint(self) -> Any:
        return Stock()

    def serve(self, **given: Any) -> rpc.Server:
        return super().serve(**{"authorizer": self.ring.authorizer(), **given})

    def sign_as(self, name: str | None) -> None:
        signer = None if name is None else self.ring.signer(name)
        self.client = rpc.Client(self.make_transport(), clock=self.clock, target=TARGET, signer=signer)

    def result(self, calling: Deferred[Any]) -> Any:
        self.clock.pump([0] * 5)
        return self.successResultOf(calling)

    def refused(self, method: str, **args: Any) -> NotAllowedError:
        calling = self.call(method, **args)
        self.clock.pump([0] * 5)
        error = self.failureResultOf(calling, NotAllowedError).value
        assert isinstance(error, NotAllowedError)
        return error

    def test_allowed(self) -> None:
        """A method runs for the callers that it allows, and knows which one called; prepared clients sign too."""
        self.sign_as("admin")
        self.assertEqual(self.result(self.call("drop")), "admin")
        prepared = self.client.prepare(server=None)
        self.assertEqual(self.result(prepared.call(CONTEXT, "reserve")), "admin")
        self.sign_as("shop")
        self.assertEqual(self.result(self.call("reserve")), "shop")
        self.assertIsNone(current_caller.get())

    def test_not_allowed(self) -> None:
        """Another caller is refused with its identity, the method, and what that needs."""
        self.sign_as("shop")
        self.assertEqual(str(self.refused("drop")), "'shop' may not call 'drop', which needs the identity admin")
        self.assertEqual((self.diary.calls, self.count("refused")), ([], 1))
        counted = {values: one.value for values, one in metrics.not_allowed}
        self.assertEqual(counted, {("compute", "drop"): 1})

    def test_unsigned(self) -> None:
        """A caller that does not sign is refused, whatever its context says of itself."""
        self.sign_as(None)
        calling = self.client.call(RequestContext(is_admin=True, user_id="admin"), "drop")
        self.clock.pump([0] * 5)
        error = str(self.failureResultOf(calling, NotAllowedError).value)
        self.assertIn("the caller of 'drop' is unknown: it is not signed; set rpc_signing_key_file", error)
        self.assertIn("needs the identity admin", error)

    def test_function(self) -> None:
        """A function decides by identity and arguments; one that raises refuses."""
        self.sign_as("shop")
        self.assertEqual(self.result(self.call("edit", item="shop-7")), "shop")
        self.assertIn("the consent of owns", str(self.refused("edit", item="admin-7")))
        self.refused("edit", item="broken")
        # Looked at twice: as a new request, and as one that may be a duplicate.
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_casts(self) -> None:
        """Casts and fanouts are checked as well."""
        for name, expected in (("shop", []), ("admin", ["drop", "drop"])):
            self.sign_as(name)
            self.result(self.client.cast(CONTEXT, "drop"))
            self.result(self.client.fanout(CONTEXT, "drop"))
            self.assertEqual(self.diary.calls, expected)

    def test_others(self) -> None:
        """Methods without ``allow`` are open to all, and know no caller."""
        for name in (None, "shop"):
            self.sign_as(name)
            self.assertIsNone(self.result(self.call("look")))

    def test_replayed(self) -> None:
        """A copy of a signed message does not run again here, nor later in another process."""
        bodies: list[bytes] = []
        transport = self.make_transport()
        send = transport.send
        self.patch(transport, "send", lambda *given: (bodies.append(given[1]), send(*given))[1])
        self.client = rpc.Client(transport, clock=self.clock, target=TARGET, signer=self.ring.signer("admin"))
        self.result(self.call("drop"))
        self.send(bodies[0])
        self.assertEqual((self.diary.calls, self.count("duplicates")), (["drop"], 1))
        self.now += 301
        self.successResultOf(self.server.close())
        self.server = self.serve()
        self.send(bodies[0])
        self.assertEqual((self.diary.calls, self.count("refused")), (["drop"], 1))

    def test_replayed_among_others(self) -> None:
        """A copy does not run either when many other requests have passed, and some time, nor a second one."""
        self.server._dispatcher._ledger._settled = SeenWindow(self.clock, count=3)
        bodies: list[bytes] = []
        transport = self.make_transport()
        send = transport.send
        self.patch(transport, "send", lambda *given: (bodies.append(given[1]), send(*given))[1])
        self.client = rpc.Client(transport, clock=self.clock, target=TARGET, signer=self.ring.signer("admin"))
        self.result(self.call("drop"))
        for copies in (1, 2):
            for _ in range(10):
                self.result(self.call("look"))
            self.clock.advance(601)
            self.send(bodies[0])
            self.assertEqual((self.diary.calls, self.count("duplicates")), (["drop"], copies))

    def test_no_keys(self) -> None:
        """Without keys, a server refuses; it allows all if the transport admits only its own user."""
        self.successResultOf(self.server.close())
        self.server = self.serve(authorizer=None)
        self.sign_as("admin")
        self.assertIn("this server knows no callers' keys; set rpc_callers_file", str(self.refused("drop")))
        self.successResultOf(self.server.close())
        self.server = self.serve(authorizer=Authorizer(trust_unsigned=True))
        self.sign_as(None)
        self.assertIsNone(self.result(self.call("drop")))

    def test_operators(self) -> None:
        """A method for operators: everybody without keys, every known identity with keys, or those that are named."""
        self.sign_as(None)
        self.assertIn("not signed", str(self.refused("stop")))
        self.sign_as("shop")
        self.assertEqual(self.result(self.call("stop")), "shop")
        self.successResultOf(self.server.close())
        self.server = self.serve(authorizer=Authorizer(self.ring.verifier(), operators=frozenset({"admin"})))
        self.assertIn("needs an identity of rpc_operators", str(self.refused("stop")))
        self.sign_as("admin")
        self.assertEqual(self.result(self.call("stop")), "admin")
        self.successResultOf(self.server.close())
        self.server = self.serve(authorizer=None)
        self.sign_as(None)
        self.assertIsNone(self.result(self.call("stop")))

    def test_log(self) -> None:
        """Refusals are logged, at most once in ten seconds, with their number."""
        lines: list[Any] = []
        self.patch(authorization, "_log", _Log(lines))
        self.sign_as("shop")
        for _ in range(5):
            self.refused("drop")
        self.assertEqual(lines, [""])
        self.clock.advance(10)
        self.refused("drop")
        self.assertEqual(lines, ["", " (4 more since the last such line)"])

    def test_described(self) -> None:
        """A description of the methods says who may call them."""
        rows = {row["method"]: row["allow"] for row in describe_methods(rpc.Endpoints(Stock()))}
        self.assertEqual(rows["drop"], "the identity admin")
        self.assertEqual((rows["reserve"], rows["look"]), ("the identity admin or shop", None))

    def test_declaration(self) -> None:
        """An option that says nobody is refused where it stands."""

        def method(self: Any, context: Any) -> None: ...

        async def check(identity: str, invocation: Any) -> bool:
            return True

        for allow in ("", set(), [], "the shop", {"a", 7}, 7, check, {"admin": 1}):
            error = self.assertRaises(DeclarationError, rpc.expose(allow=allow), method)  # type: ignore[arg-type]
            self.assertIn("says nobody who could call", str(error))


class _Log:
    """Records what is added to each line."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def warn(self, text: str, *, more: str, **fields: Any) -> None:
        self._lines.append(more)
