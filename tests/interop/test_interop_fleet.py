import json
import signal
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, DeferredList

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationMismatchError
from novasvc.interfaces import Reachability
from tests.e2e.process import Process, program
from tests.interop.peer import PATIENCE, InteropCase, Peer, PeerError

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

    async def test_verified(self) -> None:
        """Ours proves that it is reached, and theirs on the same topic gets nothing of it."""
        peer = await self.peer(**self.theirs)
        theirs = await self.peer_serves(peer)
        server = await self.we_serve(Ours(), transport=await self.connect(**self.own))
        before = self.process.log().count("Attempted method: ping")
        for _ in range(4):
            self.assertEqual(await server.verify(PATIENCE), Reachability())
        await peer.call("note", target={"server": theirs}, what="the first")
        self.assertEqual(await self.process.report(theirs), {"what": "the first"})
        self.assertEqual(self.process.log().count("Attempted method: ping"), before)

    async def test_verified_on_a_host(self) -> None:
        """Where theirs has the topic and the host of ours, its answer proves it, though it knows no ping."""
        peer = await self.peer(**self.theirs)
        theirs = await self.peer_serves(peer)
        ours = Ours()
        server = await self.we_serve(ours, server=theirs, transport=await self.connect(**self.own))
        refused = server.delivery_metrics.refused
        before = refused.value
        for _ in range(6):
            self.assertEqual(await server.verify(PATIENCE), Reachability())
        self.assertEqual((ours.noted, refused.value), ([], before))  # Ours knows no ping either: none reached it.
        calls = [peer.call("note", target={"server": theirs}) for _ in range(8)]
        answers = [answer for _, answer in await DeferredList(calls)]
        self.assertEqual(set(answers), {"ours", theirs})

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


class OptionTests(InteropCase):
    """Settings of theirs that we have no need of."""

    async def assert_both_ways(self, **options: str) -> None:
        """See that calls go both ways."""
        peer = await self.peer(**options)
        await self.we_serve(Ours())
        theirs = await self.peer_serves(peer)
        client = await self.our_client()
        what = "é" * 100_000
        self.assertEqual(await client.prepare(server=theirs).call(CONTEXT, "note", what=what), theirs)
        self.assertEqual(await self.process.report(theirs), {"what": what})
        self.assertEqual(await client.prepare(server=theirs).call(CONTEXT, "echo", value=what), what)
        self.assertEqual(await peer.call("note", target={"server": "ours"}, what=what), "ours")

    async def test_compression(self) -> None:
        """What they compress is understood, be it a request or a reply."""
        await self.assert_both_ways(kombu_compression="gzip")

    async def test_prefetch(self) -> None:
        """What they prefetch makes no difference."""
        await self.assert_both_ways(rabbit_qos_prefetch_count="1")


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


class NodeTests(InteropCase):
    """What an operator starts, with nothing set but the broker's URL."""

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def begin(self, *command: str) -> Process:
        return Process(self, command, self.folder, NOVASVC_STATE_DIR="state")

    async def test_node(self) -> None:
        """A node under twistd is called by a program written with oslo.messaging."""
        node = self.begin(
            program("twistd"),
            "-n",
            "--pidfile=",
            "novasvc",
            "--transport-url",
            self.url,
            "--host",
            "h1",
            "--topic",
            self.topic,
        )
        node.wait_for("is running")
        peer = await self.peer()
        facts = await peer.call("get_host_facts", target={"server": "h1"})
        self.assertEqual(facts["host"], "h1")
        ping = await peer.call("ping", target={"namespace": "baseapi", "version": "1.0"}, arg="é")
        self.assertEqual(ping, {"service": self.topic, "arg": "é"})
        self.assertEqual(node.stop(), -signal.SIGTERM)

    async def test_command(self) -> None:
        """The operators' command calls, and casts to, a server written with oslo.messaging."""
        name = await self.peer_serves()
        call = self.begin(
            program("novasvc"), "--transport-url", self.url, "call", f"{self.topic}.{name}", "echo", "value=é", "--json"
        )
        self.assertEqual(call.wait(), 0, call.output)
        self.assertEqual(json.loads(call.output), "é")
        cast = self.begin(
            program("novasvc"), "--transport-url", self.url, "cast", f"{self.topic}.{name}", "note", "what=cast"
        )
        self.assertEqual(cast.wait(), 0, cast.output)
        self.assertEqual(await self.process.report(name), {"what": "cast"})
