"""Servers and clients of oslo.messaging on a topic whose queues are replaced meanwhile."""

from collections import Counter
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.transport.amqp import BrokerAddress, BrokerOptions
from novasvc.transport.amqp.migration.migration import Migration
from novasvc.transport.amqp.migration.request import Request
from novasvc.transport.errors import UnknownConsumersError
from tests.interop.peer import PATIENCE, InteropCase, Peer

CONTEXT = RequestContext()


class Ours:
    """Counts what it is called with."""

    def __init__(self) -> None:
        self.runs: Counter[int] = Counter()

    @rpc.expose
    def note(self, context: RequestContext, what: int) -> int:
        self.runs[what] += 1
        return what


class MigrationTests(InteropCase):
    """The queues of a topic of ours and theirs become quorum queues."""

    fleet = None

    def migrate(self, **given: Any) -> Deferred[None]:
        request = Request(
            kind="quorum",
            exchange="nova",
            hosts={self.topic: ["ours"]},
            timeout=PATIENCE,
            pause=0.1,
            census=0.5,
            **given,
        )
        options = BrokerOptions(quorum_queue=True)
        migration = Migration(BrokerAddress.parse(self.url), options, request, reactor, lambda _: None)
        return Deferred.fromCoroutine(migration.run())

    async def call_on(self, peer: Peer, going: list[bool], numbers: list[int]) -> None:
        """Call one after the other until the list is empty."""
        while going:
            number = len(numbers)
            numbers.append(number)
            self.assertEqual(await peer.call("note", what=number), number)

    async def test_their_clients(self) -> None:
        """A client of theirs, with its usual options, calls on; each call is answered, and has run once."""
        ours, going, numbers = Ours(), [True], []
        peer = await self.peer()
        await self.we_serve(ours)
        callers = [Deferred.fromCoroutine(self.call_on(peer, going, numbers)) for _ in range(4)]
        await self.until(lambda: len(numbers) > 10)
        await self.migrate()
        before = len(numbers)
        await self.until(lambda: len(numbers) > before + 10)
        going.clear()
        for success, failure in await DeferredList(callers, consumeErrors=True):
            self.assertTrue(success, failure)
        self.assertEqual(ours.runs, Counter(numbers))

    async def test_their_servers(self) -> None:
        """A server of theirs is refused first, then cut off, and serves again with its new option."""
        durable = {"amqp_durable_queues": "true"}
        client = await self.peer(**durable)
        await self.we_serve(Ours(), transport=await self.connect(durable_queues=True))
        url = f"{self.url.replace('amqp:', 'rabbit:')}?amqp_durable_queues=true"
        await self.process.ask("open", transport="cut off", url=url, modules=[])
        await self.process.ask("serve", transport="cut off", name="cut off", topic=self.topic)
        error = await self.assertFailure(self.migrate(), UnknownConsumersError)
        self.assertEqual((error.consumers, error.durable), (1, True))
        self.assertEqual(await self.answers(client), {"ours", "theirs"})
        await self.migrate(cut_off_others=True)
        self.assertEqual(await self.answers(client), {"ours"})
        await self.process.ask("close", transport="cut off")
        theirs = await self.peer_serves(await self.peer(rabbit_quorum_queue="true"))
        self.assertEqual(await client.call("note", target={"server": theirs}, what=1), theirs)
        self.assertEqual(await client.call("note", target={"server": "ours"}, what=2), 2)
        self.assertEqual(await self.answers(client), {"ours", "theirs"})

    async def answers(self, peer: Peer) -> set[str]:
        """Call the topic several times; return who answered."""
        return {"ours" if await peer.call("note", what=3) == 3 else "theirs" for _ in range(8)}
