"""What a change of the queues' type does to calls that go on meanwhile."""

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.transport.amqp import AMQPTransport, BrokerAddress, BrokerOptions
from novasvc.transport.amqp.migration.migration import Migration, Request, Step
from tests.faults.amqp_rig import TOPIC, AMQPCase
from tests.faults.ledger import Ledger, Worker


class MigrationCase(AMQPCase):
    """A topic with two hosts, and an operator who replaces its queues."""

    steps: list[Step]

    def migration(self, kind: str = "quorum", **given: Any) -> Migration:
        self.steps = []
        request = Request(kind=kind, exchange="nova", **{"hosts": {TOPIC: ["h1", "h2"]}, "timeout": 30.0, **given})
        options = BrokerOptions(quorum_queue=kind == "quorum", operation_timeout=10.0)
        return Migration(BrokerAddress.parse(self.url), options, request, reactor, self.steps.append)

    def migrate(self, kind: str = "quorum", **given: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(self.migration(kind, **given).run())

    def types(self) -> dict[str, str]:
        """Return the type of each shared queue, and of the interim ones."""
        listed = self.broker.eval(
            "lists:flatten([begin {resource, _, queue, Name} = amqqueue:get_name(Queue),"
            ' io_lib:format("~s=~s ", [Name, amqqueue:get_type(Queue)]) end'
            f' || Queue <- rabbit_amqqueue:list(<<"{self.vhost}">>)]).'
        )
        pairs = (pair.partition("=") for pair in listed.strip('" ').split())
        return {
            name: "quorum" if "quorum" in kind else "classic"
            for name, _, kind in pairs
            if name.startswith(TOPIC) and "_fanout_" not in name
        }


class LiveMigrationTests(MigrationCase):
    """Calls go on, and the queues change."""

    async def test_calls_go_on(self) -> None:
        """Each call that is made meanwhile is answered, and none runs twice."""
        worker = Worker()
        for host in ("h1", "h2"):
            await self.serve(server=host, diary=worker)
        client = await self.client()
        ledger = Ledger(client, worker)
        ledger.begin(8)
        await self.migrate()
        self.assertEqual(self.types(), dict.fromkeys([TOPIC, f"{TOPIC}.h1", f"{TOPIC}.h2"], "quorum"))
        await self.migrate("classic")
        await ledger.end()
        print(ledger.totals())
        print([step.step for step in self.steps])
        self.assertEqual(self.types(), dict.fromkeys([TOPIC, f"{TOPIC}.h1", f"{TOPIC}.h2"], "classic"))
        self.assertEqual([entry.outcome for entry in ledger.entries if entry.outcome], [])
        self.assertEqual((ledger.run_twice, ledger.answered_without_a_run), ([], []))
        self.assertEqual(set(worker.runs.values()), {1})
