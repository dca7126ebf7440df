from typing import Any, ClassVar

from twisted.internet.defer import Deferred, DeferredList

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationMismatchError
from tests.interop.peer import InteropCase, Peer, PeerError

CONTEXT = RequestContext()


class Ours:
    """Notes what it is called with, and says who was called."""

    def __init__(self) -> None:
        self.noted: list[Any] = []

    @rpc.expose
    def note(self, context: RequestContext, what: Any = None) -> str:
        self.noted.append(what)
        return "ours"


class SharingTests(InteropCase):
    """A server of ours and one of theirs on the same topic.

    :param theirs: their options.
    :param own: the same ones, by our names.
    """

    theirs: ClassVar[dict[str, str]] = {}
    own: ClassVar[dict[str, Any]] = {}

    async def share(self, *, we_begin: bool) -> None:
        """Start both servers and both clients, and see that every kind of call gets to both servers."""
        transport, peer = await self.connect(**self.own), await self.peer(**self.theirs)
        ours = Ours()
        if we_begin:
            await self.we_serve(ours, transport=transport)
            theirs = await self.peer_serves(peer)
        else:
            theirs = await self.peer_serves(peer)
            await self.we_serve(ours, transport=transport)
        client = await self.our_client(transport)

        # Each is addressed by its name, and both take of what is for any.
        for server in (theirs, "ours"):
            self.assertEqual(await client.prepare(server=server).call(CONTEXT, "note"), server)
            self.assertEqual(await peer.call("note", target={"server": server}), server)
        calls = [client.call(CONTEXT, "note") if number % 2 else peer.call("note") for number in range(16)]
        answers = [answer for _, answer in await DeferredList(calls)]
        self.assertEqual(set(answers), {"ours", theirs})
        for _ in range(answers.count(theirs) + 2):
            await self.process.report(theirs)

        # What is for all gets to both, once, whoever sends it.
        ours.noted.clear()
        await client.fanout(CONTEXT, "note", what="from us")
        await peer.cast("note", target={"fanout": True}, what="from the peer")
        reports = [(await self.process.report(theirs))["what"] for _ in range(2)]
        await self.until(lambda: len(ours.noted) == 2)
        self.assertEqual(sorted(reports), ["from the peer", "from us"])
        self.assertEqual(sorted(ours.noted), ["from the peer", "from us"])

    async def test_we_begin(self) -> None:
        """They share the work when ours has declared what they share."""
        await self.share(we_begin=True)

    async def test_they_begin(self) -> None:
        """They share the work when theirs has declared what they share."""
        await self.share(we_begin=False)


class DurableSharingTests(SharingTests):
    """The same with durable queues."""

    fleet = "durable"
    theirs: ClassVar[dict[str, str]] = {"amqp_durable_queues": "true"}
    own: ClassVar[dict[str, Any]] = {"durable_queues": True}


class QuorumSharingTests(SharingTests):
    """The same with queues that are all replicated."""

    fleet = "quorum"
    theirs: ClassVar[dict[str, str]] = {
        "rabbit_quorum_queue": "true",
        "rabbit_transient_quorum_queue": "true",
        "rabbit_quorum_delivery_limit": "5",
    }
    own: ClassVar[dict[str, Any]] = {"quorum_queue": True, "transient_quorum_queue": True, "quorum_delivery_limit": 5}


class AutoDeleteSharingTests(SharingTests):
    """The same with queues that go with their last server, as does what a fleet shares."""

    fleet = None
    theirs: ClassVar[dict[str, str]] = {"amqp_auto_delete": "true"}
    own: ClassVar[dict[str, Any]] = {"auto_delete": True}


class MismatchTests(InteropCase):
    """Settings that only one side has."""

    fleet = None

    async def assert_refused(self, peer: Peer, inequivalent: str, **options: Any) -> None:
        """See that we cannot serve what the peer serves, and say which values differ."""
        await self.peer_serves(peer)

        async def serve() -> None:
            await self.we_serve(Ours(), transport=await self.connect(**options))

        with self.assertRaises(DeclarationMismatchError) as caught:
            await serve()
        self.assertRegex(str(caught.exception), inequivalent)

    async def test_only_theirs_durable(self) -> None:
        """Our default is refused where they are durable, with both values."""
        peer = await self.peer(amqp_durable_queues="true")
        await self.assert_refused(peer, "durable.*exchange 'nova'.*received 'false' but current is 'true'")

    async def test_only_ours_durable(self) -> None:
        """Our durable queues are refused where theirs are not, with both values."""
        peer = await self.peer()
        await self.assert_refused(
            peer, "durable.*exchange 'nova'.*received 'true' but current is 'false'", durable_queues=True
        )

    async def test_only_theirs_quorum(self) -> None:
        """Our durable queues are refused where theirs are quorum queues."""
        peer = await self.peer(rabbit_quorum_queue="true")
        await self.assert_refused(peer, "x-queue-type.*quorum", durable_queues=True)

    async def test_only_theirs_transient_quorum(self) -> None:
        """Our default is refused where their fanouts are durable, with both values."""
        peer = await self.peer(rabbit_transient_quorum_queue="true")
        await self.assert_refused(peer, f"durable.*{self.topic}_fanout.*received 'false' but current is 'true'")

    async def test_they_are_refused(self) -> None:
        """Their default is refused where ours are durable."""
        transport = await self.connect(durable_queues=True)
        await self.we_serve(Ours(), transport=transport)
        error = await self.assertFailure(Deferred.fromCoroutine(self.peer_serves()), PeerError)
        self.assertEqual(error.kind, "oslo_messaging.exceptions.MessageDeliveryFailure")

    async def test_they_adapt(self) -> None:
        """Where only theirs are to be durable, they take ours as they are, and are served."""
        await self.we_serve(Ours())
        peer = await self.peer(amqp_durable_queues="true")
        self.assertEqual(await peer.call("note"), "ours")
