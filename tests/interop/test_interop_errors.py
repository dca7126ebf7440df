from typing import Any

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import RemoteError
from tests.interop.peer import InteropCase, PeerError
from tests.interop.shared_errors import OutOfStock, SoldOut

CONTEXT = RequestContext(request_id="req-1")
SHARED = "shared_errors"
"""The name that the module has in the peer's process."""
REMOTE_ERROR = "oslo_messaging.rpc.client.RemoteError"

for error_class in (OutOfStock, SoldOut):
    rpc.error(error_class, name=f"{SHARED}.{error_class.__name__}")


class OwnError(Exception):
    """An error that is not registered."""


class Stock:
    def __init__(self, client: rpc.Client | None = None) -> None:
        self.client = client

    @rpc.expose(expected=(OutOfStock, SoldOut, OwnError))
    def fail(self, context: RequestContext, kind: str) -> None:
        raise {"shared": OutOfStock("tea", 2), "sentence": SoldOut("tea", since=7), "own": OwnError("é", 7)}[kind]

    @rpc.expose(expected=(Exception,))
    def confirm(self, context: RequestContext, what: Any) -> None:
        """Fail; called by the peer's method "receive"."""
        self.fail(context, what)

    @rpc.expose(expected=(Exception,))
    def pass_on(self, context: RequestContext, topic: str, kind: str = "", what: str = "fail") -> Any:
        """Call the peer's server, and let its errors through."""
        assert self.client is not None
        return self.client.prepare(topic=topic).call(context, what, **({"kind": kind} if kind else {}))


class ErrorsForPeerTests(InteropCase):
    """Errors of our server, at a client written with oslo.messaging."""

    async def test_allowed(self) -> None:
        """A registered error is raised there as itself, if its module is allowed, with its attributes."""
        await self.we_serve(Stock())
        peer = await self.peer([SHARED])
        for kind, name, attributes in (
            ("shared", "OutOfStock", {"item": "tea", "left": 2}),
            ("sentence", "SoldOut", {"item": "tea", "since": 7}),
        ):
            error = await self.assertFailure(peer.call("fail", kind=kind), PeerError)
            self.assertEqual(error.kind, f"{SHARED}_Remote.{name}_Remote")
            self.assertIn(f"{SHARED}.{name}", error.bases)
            self.assertEqual(error.attributes, attributes)

    async def test_not_allowed(self) -> None:
        """Otherwise it is a RemoteError there, as what is not registered."""
        await self.we_serve(Stock())
        peer = await self.peer()
        for kind, name, value in (
            ("shared", "OutOfStock", "('tea', 2)"),
            ("sentence", "SoldOut", "tea is sold out since 7"),
            ("own", "OwnError", "('é', 7)"),
        ):
            error = await self.assertFailure(peer.call("fail", kind=kind), PeerError)
            self.assertEqual((error.kind, error.exc_type, error.value), (REMOTE_ERROR, name, value))

    async def test_passed_on(self) -> None:
        """An error of an error has one name there, and its text says where it was raised."""
        server = await self.peer_serves(topic=f"{self.topic}_peers")
        await self.we_serve(Stock(await self.our_client()))
        peer = await self.peer()
        error = await self.assertFailure(peer.call("pass_on", topic=f"{self.topic}_peers", kind="own"), PeerError)
        self.assertEqual((error.kind, error.exc_type, error.value), (REMOTE_ERROR, "PeerError", "('ours alone', 7)"))
        self.assertIn(f"Raised by {self.topic}_peers.fail, through {self.topic}.pass_on on ours", error.text)
        self.assertNotEqual(server, "ours")

    async def test_refusal_within(self) -> None:
        """A refusal of a call that our method made is not taken for a refusal of the peer's own call."""
        await self.peer_serves(topic=f"{self.topic}_peers")
        await self.we_serve(Stock(await self.our_client()))
        peer = await self.peer(["oslo_messaging.rpc.dispatcher", "novasvc.errors"])
        calling = peer.call("pass_on", topic=f"{self.topic}_peers", what="nothing")
        error = await self.assertFailure(calling, PeerError)
        self.assertEqual((error.kind, error.exc_type), (REMOTE_ERROR, "NoSuchMethodError"))
        self.assertIn(f"through {self.topic}.pass_on on ours", error.text)


class ErrorsOfPeerTests(InteropCase):
    """Errors of a server written with oslo.messaging, at our client."""

    async def test_registered(self) -> None:
        """A registered error is raised here as itself, with its attributes."""
        await self.peer_serves()
        client = await self.our_client()
        error = await self.assertFailure(client.call(CONTEXT, "fail", kind="shared"), OutOfStock)
        self.assertEqual((type(error), error.item, error.left, error.args), (OutOfStock, "tea", 2, ("tea", 2)))
        self.assertEqual(str(rpc.origin_of(error)), f"{self.topic}.fail; request req-1")

    async def test_args_of_a_sentence(self) -> None:
        """An error whose args are not those of its constructor becomes what the constructor makes of them.

        As at the clients of oslo.messaging: its servers send nothing else.
        """
        await self.peer_serves()
        client = await self.our_client()
        error = await self.assertFailure(client.call(CONTEXT, "fail", kind="sentence"), SoldOut)
        self.assertEqual(error.item, "tea is sold out since 7")

    async def test_through_peer(self) -> None:
        """An error of ours that a server of the peer's lets through keeps its name."""
        name = await self.peer_serves(topic=f"{self.topic}_peers")
        await self.we_serve(Stock())
        client = (await self.our_client()).prepare(topic=f"{self.topic}_peers", server=name)
        calling = client.call(CONTEXT, "receive", what="own", topic=self.topic, server="ours", seconds=0)
        error = await self.assertFailure(calling, RemoteError)
        self.assertEqual((error.exc_type, error.value), ("OwnError", "('é', 7)"))
