"""What a change of the queues' type does to calls that go on meanwhile."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from novasvc.errors import BrokerRefusedError, BrokerUnavailableError
from novasvc.interfaces import IDelivery
from novasvc.rpc.errors import RPCError
from novasvc.transport.amqp import BrokerAddress, BrokerOptions
from novasvc.transport.amqp.migration.migration import Migration
from novasvc.transport.amqp.migration.request import Request, Step
from novasvc.transport.errors import (
    MigrationLockedError,
    MigrationStalledError,
    NothingToMigrateError,
    OtherArgumentsError,
    UnknownConsumersError,
)
from tests.faults.amqp_rig import CONTEXT, PATIENCE, TOPIC, AMQPCase
from tests.faults.ledger import Ledger, Worker

OWN = f"{TOPIC}.h1"


class EndedError(Exception):
    """The operator's command was ended at a step."""


class MigrationCase(AMQPCase):
    """A topic, and an operator who replaces its queues."""

    def setUp(self) -> None:
        super().setUp()
        self.steps: list[str] = []
        self.end_at = ""

    def migration(
        self, kind: str = "quorum", url: str = "", quorum: dict[str, Any] | None = None, **given: Any
    ) -> Migration:
        request = Request(
            kind=kind,
            exchange="nova",
            **{"hosts": {TOPIC: ["h1"]}, "timeout": PATIENCE, "pause": 0.05, "census": 0.3, **given},
        )
        options = BrokerOptions(quorum_queue=kind == "quorum", operation_timeout=10.0, **(quorum or {}))
        return Migration(BrokerAddress.parse(url or self.url), options, request, reactor, self.note)

    def note(self, step: Step) -> None:
        self.steps.append(step.step)
        if step.step == self.end_at:
            raise EndedError(step.step)

    def migrate(self, kind: str = "quorum", **given: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(self.migration(kind, **given).run())

    def types(self) -> dict[str, str]:
        """Return the type of each queue of the topic, except those of fanouts."""
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

    def exchanges(self) -> list[str]:
        """Return the exchanges of ours that are left, beside the marker."""
        listed = self.broker.eval(
            'lists:flatten([begin {resource, _, exchange, Name} = element(2, Exchange), io_lib:format("~s ", [Name])'
            f' end || Exchange <- rabbit_exchange:list(<<"{self.vhost}">>)]).'
        )
        return [name for name in listed.strip('" ').split() if name.startswith("novasvc.") and ".queues." not in name]

    def assert_replaced(self, kind: str = "quorum", *queues: str) -> None:
        """See that the queues have their type, and that nothing is left of the replacement."""
        self.assertEqual(self.types(), dict.fromkeys(queues or (TOPIC, OWN), kind))
        self.assertEqual(self.exchanges(), [])

    async def ledger(self, *hosts: str, callers: int = 6) -> Ledger:
        """Serve, and begin to call."""
        worker = Worker()
        for host in hosts or ("h1",):
            await self.serve(server=host, diary=worker)
        ledger = Ledger(await self.client(), worker)
        ledger.begin(callers)
        await self.until(lambda: len(ledger.entries) > callers)
        return ledger

    async def assert_balanced(self, ledger: Ledger) -> None:
        """See that each call was answered, and has run once."""
        await ledger.end()
        self.assertEqual([entry.outcome for entry in ledger.entries if entry.outcome], [])
        self.assertEqual((ledger.run_twice, ledger.answered_without_a_run), ([], []))
        self.assertEqual(set(ledger.worker.runs.values()), {1})


class LiveMigrationTests(MigrationCase):
    """Calls go on, and the queues change."""

    async def test_there_and_back(self) -> None:
        """Each call that is made meanwhile is answered, and has run once; in both directions."""
        ledger = await self.ledger("h1", "h2")
        await self.migrate(hosts={TOPIC: ["h1", "h2"]})
        self.assert_replaced("quorum", TOPIC, OWN, f"{TOPIC}.h2")
        await self.migrate("classic", hosts={TOPIC: []})
        self.assert_replaced("classic", TOPIC, OWN, f"{TOPIC}.h2")
        await self.assert_balanced(ledger)

    async def test_ended_at_each_step(self) -> None:
        """A command that is ended at a step is run again, and goes on; no call is lost, and none runs twice."""
        ledger = await self.ledger()
        await self.migrate(dry_run=True)
        for step in (
            "declaring the interim queues",
            "having the nodes consume from the interim queues, too",
            "diverting new messages to the interim queues",
            "emptying the old queues",
            "replacing the old queues",
            "having the nodes consume from the new queues",
            "leading new messages to the new queues",
            "emptying the interim queues",
            "replaced",
        ):
            self.end_at = step
            migration = self.migration()
            with self.assertRaises(EndedError):
                await migration.run()
            self.assertEqual(migration.in_progress, True)
        self.end_at = ""
        migration = self.migration()
        await migration.run()
        self.assertEqual(migration.in_progress, False)
        self.assert_replaced()
        await self.migrate()
        await self.assert_balanced(ledger)

    @pytest.mark.slow
    @pytest.mark.long
    @pytest.mark.timeout(300)
    async def test_ended_anywhere(self) -> None:
        """The same at any time, in both directions."""
        ledger, chance = await self.ledger("h1", "h2"), random.Random(7)
        for round_ in range(12):
            kind = ("quorum", "classic")[round_ % 2]
            migrating = self.migrate(kind, hosts={TOPIC: ["h1", "h2"]})
            reactor.callLater(chance.uniform(0.3, 2.5), migrating.cancel)
            try:
                await migrating
            except CancelledError:
                await self.migrate(kind, hosts={TOPIC: ["h1", "h2"]})
            self.assert_replaced(kind, TOPIC, OWN, f"{TOPIC}.h2")
        await self.assert_balanced(ledger)

    @pytest.mark.long
    async def test_events(self) -> None:
        """The queue of a topic's events is replaced with its routing keys; each event arrives once."""
        transport, events, received = await self.connect(), f"{TOPIC}_events", []

        def receive(delivery: IDelivery) -> None:
            received.append(delivery.body)
            delivery.ack()

        await self.serve(transport)
        await transport.subscribe(events, ["notifications.info"], receive, 10)
        sent: list[bytes] = []

        async def emit(until: Callable[[], bool]) -> None:
            while not until():
                sent.append(b"%d" % len(sent))
                await transport.publish("notifications.info", sent[-1])

        migrating = self.migrate()
        await emit(lambda: migrating.called)
        await migrating
        last = len(sent) + 10
        await emit(lambda: len(sent) == last)
        self.assert_replaced("quorum", TOPIC, OWN, events)
        await self.until(lambda: len(received) >= len(sent))
        self.assertEqual(sorted(received), sorted(sent))

    async def test_requests_in_progress(self) -> None:
        """A queue whose request runs is not deleted; the command says what it waits for, and goes on when run again."""
        await self.serve()
        running = await self.hang()
        error = await self.assertFailure(self.migrate(timeout=0.5), MigrationStalledError)
        await self.assert_serves(await self.client())
        await self.assert_waits_for(running, error)
        self.assertEqual(self.diary.calls.count("long"), 1)

    async def test_draining(self) -> None:
        """A draining server takes part: its queues are replaced when it has settled what it got from them."""
        server, running = await self.serve(), await self.hang()
        await server.drain()
        error = await self.assertFailure(self.migrate(timeout=0.5), MigrationStalledError)
        await self.assert_waits_for(running, error)

    async def test_drained_meanwhile(self) -> None:
        """So does one that begins to drain while its queues are replaced."""
        server, running = await self.serve(), await self.hang()
        migrating = self.migrate(timeout=1.0)
        await self.until(lambda: "emptying the old queues" in self.steps)
        await server.drain()
        await self.assert_waits_for(running, await self.assertFailure(migrating, MigrationStalledError))

    async def hang(self) -> Deferred[Any]:
        """Make an idempotent call that runs until the test lets it go."""
        client = await self.client()
        running = client.prepare(idempotent=True).call(CONTEXT, "hang_again", what="long")
        await self.until(lambda: bool(self.diary.hanging))
        return running

    async def assert_waits_for(self, running: Deferred[Any], error: Exception) -> None:
        """See that the command has ended because of a call, and goes on when run again at its end."""
        self.assertIn("requests in progress: 1 ", str(error))
        self.assertEqual(self.types()[TOPIC], "classic")
        migrating = self.migrate()
        self.diary.let_go()
        self.assertEqual(await running, "long")
        await migrating
        self.assert_replaced()

    async def test_messages_of_a_host_that_is_down(self) -> None:
        """What waits for a host that is down waits in the new queue, and is run once when the host is back."""
        server = await self.serve()
        await server.close()
        client = await self.client()
        for number in range(3):
            await client.prepare(server="h1").cast(CONTEXT, "note", what=number)
        await self.migrate()
        self.assert_replaced()
        await self.serve()
        await self.until(lambda: len(self.diary.calls) == 3)
        self.assertEqual(self.diary.calls, [0, 1, 2])


class SettingsTests(MigrationCase):
    """Nodes whose settings say another type than the queues have."""

    async def test_restarted_in_any_order(self) -> None:
        """Nodes with the old settings and with the new ones start before and after the queues are replaced."""
        client = await self.client()
        await self.serve(await self.connect(), server="h1")
        await self.migrate()
        old = await self.serve(await self.connect(), server="h2")
        await self.serve(await self.connect(quorum_queue=True), server="h3")
        for host in ("h1", "h2", "h3"):
            self.assertEqual(await client.prepare(server=host).call(CONTEXT, "note", what=host), host)
        h2, h3 = f"{TOPIC}.h2", f"{TOPIC}.h3"
        self.assertEqual(self.types(), {TOPIC: "quorum", OWN: "quorum", h2: "classic", h3: "quorum"})
        self.assertEqual((await old.verify(PATIENCE)).problem, None)
        await self.migrate(hosts={TOPIC: []})
        self.assertEqual(set(self.types().values()), {"quorum"})

    async def test_refused_without_a_migration(self) -> None:
        """Where nobody replaces queues, wrong settings are an error as before."""
        await self.serve(await self.connect(), server="h1")
        with self.assertRaises(RPCError) as raised:
            await self.connect(quorum_queue=True)
        self.assertIn("durable", str(raised.exception))

    @pytest.mark.slow
    @pytest.mark.long
    async def test_reconnected_meanwhile(self) -> None:
        """A node that loses its connection while the queues are replaced consumes what it has to."""
        ledger = await self.ledger()
        self.end_at = "replacing the old queues"
        with self.assertRaises(EndedError):
            await self.migrate()
        self.end_at = ""
        self.broker.close_connections(self.vhost)
        before = len(ledger.entries)
        await self.until(lambda: len(ledger.select(lambda entry: entry.outcome is None)) > before + 20)
        await self.migrate()
        self.assert_replaced()
        await ledger.end()
        self.assertEqual((ledger.run_twice, ledger.answered_without_a_run), ([], []))

    @pytest.mark.long
    async def test_missed_the_end(self) -> None:
        """A node that was released, and missed the rest, finds out by itself that the replacement is over."""
        transport, events = await self.connect(), f"{TOPIC}_events"
        server = await self.serve(transport)
        await transport.subscribe(events, ["notifications.info"], lambda delivery: delivery.ack(), 10)
        self.end_at = "replacing the old queues"
        with self.assertRaises(EndedError):
            await self.migrate()
        for queue in (TOPIC, OWN, events):
            self.broker.delete_queue(self.vhost, f"{queue}_interim")
        client = await self.client(patience=1.0)
        await self.until(lambda: not self.broker.consumers(self.vhost)[TOPIC])
        for _ in range(3):
            self.assertEqual((await server.verify(PATIENCE)).problem, None)
        await self.until(lambda: bool(self.broker.consumers(self.vhost)[events]))
        await self.assert_serves(client)
        await self.assert_serves(client.prepare(server="h1"))


class RefusalTests(MigrationCase):
    """What the command refuses, and what is refused to it."""

    async def test_others_consume(self) -> None:
        """A consumer that does not take part is named before anything is changed for its topic."""
        await self.serve()
        channel = await self.foreign_consumer(TOPIC)
        error = await self.assertFailure(self.migrate(), UnknownConsumersError)
        self.assertEqual((error.queue, error.consumers, error.durable), (TOPIC, 1, False))
        self.assertIn("--cut-off-others", str(error))
        self.assertEqual(set(self.types().values()), {"classic"})
        await self.migrate(dry_run=True)
        self.assertIn("1 of which do not take part", self.steps[0])
        self.assertFalse(channel.closed)

    async def foreign_consumer(self, queue: str) -> Any:
        """Consume from a queue as a program that knows nothing of all this does."""
        transport = await self.connect()
        protocol = transport.connections[0].protocol
        assert protocol is not None
        channel = await protocol.open_channel()
        await channel.basic_consume(queue=queue, consumer_tag="foreign")
        return channel

    async def test_two_operators(self) -> None:
        """While one command runs, another one is refused."""
        await self.serve()
        first = self.migrate()
        await self.until(lambda: bool(self.steps))
        error = await self.assertFailure(self.migrate(), MigrationLockedError)
        self.assertIn("wait until it has ended", str(error))
        await first
        self.assert_replaced()

    async def test_turned_back_too_early(self) -> None:
        """An interrupted command has to be finished before the queues get their old type again."""
        await self.serve()
        for step in ("emptying the old queues", "leading new messages to the new queues"):
            self.end_at = step
            with self.assertRaises(EndedError):
                await self.migrate()
            self.end_at, types = "", self.types()
            for dry_run in (True, False):
                error = await self.assertFailure(self.migrate("classic", dry_run=dry_run), NothingToMigrateError)
                self.assertIn("--to quorum", str(error))
            self.assertEqual(self.types(), types)
            await self.migrate()
            self.assert_replaced()
            await self.migrate("classic")
            self.assert_replaced("classic")

    async def test_turned_back_with_others(self) -> None:
        """Until then queues of other topics are not replaced, either."""
        await self.serve(topic="another")
        await self.migrate(hosts={"another": ["h1"]})
        await self.serve()
        self.end_at = "emptying the old queues"
        with self.assertRaises(EndedError):
            await self.migrate()
        self.end_at, self.steps = "", []
        migrating = self.migrate("classic", hosts={"another": ["h1"], TOPIC: ["h1"]})
        error = await self.assertFailure(migrating, NothingToMigrateError)
        self.assertIn("--to quorum", str(error))
        self.assertEqual(self.steps, [])

    @pytest.mark.long
    async def test_connection_lost(self) -> None:
        """A command that loses its connection ends; run again, it goes on."""
        await self.serve()
        migrating = self.migrate()
        await self.until(lambda: "diverting new messages to the interim queues" in self.steps)
        self.broker.close_connections(self.vhost)
        await self.assertFailure(migrating, BrokerUnavailableError)
        await self.migrate()
        self.assert_replaced()
        await self.assert_serves(await self.client())

    async def test_permission(self) -> None:
        """What the user may not do is named, and calls go on."""
        self.broker.add_user("operator", "secret")
        self.broker.permit("operator", self.vhost, configure="^(novasvc.migration|novasvc.queues|reply_).*")
        await self.serve()
        url = self.broker.url(self.vhost, ("operator", "secret"))
        error = await self.assertFailure(self.migrate(url=url), BrokerRefusedError)
        self.assertIn("access to queue 'compute", str(error))
        self.assertIn("permissions", str(error))
        self.assertEqual(set(self.types().values()), {"classic"})
        await self.assert_serves(await self.client())

    async def test_other_arguments(self) -> None:
        """A quorum queue with another limit is not replaced: the command has other settings than the services."""
        await self.serve(await self.connect(quorum_queue=True))
        error = await self.assertFailure(self.migrate(quorum={"quorum_delivery_limit": 7}), OtherArgumentsError)
        self.assertEqual((error.queue, error.argument), (TOPIC, "x-delivery-limit"))

    async def test_auto_delete(self) -> None:
        """Queues that end with their consumers are left alone."""
        await self.serve(await self.connect(auto_delete=True))
        error = await self.assertFailure(self.migrate(), NothingToMigrateError, OtherArgumentsError)
        self.assertIn("auto", str(error))

    async def test_nothing_there(self) -> None:
        """An exchange that does not exist, and a registry without topics, are errors."""
        self.assertIn("exchange nova", str(await self.assertFailure(self.migrate(), NothingToMigrateError)))
        self.assertIn("--topic", str(await self.assertFailure(self.migrate(hosts={}), NothingToMigrateError)))
        await self.serve()
        too_long = self.migrate(hosts={TOPIC: ["h" * 240]})
        self.assertIn("too long", str(await self.assertFailure(too_long, NothingToMigrateError)))
