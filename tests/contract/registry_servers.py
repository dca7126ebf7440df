"""The registry in PostgreSQL and MariaDB: a fixture for its contract, and tests of what a file cannot do."""

import atexit
from contextlib import ExitStack
from functools import cache
from typing import Any

import attrs
import sqlalchemy
from sqlalchemy import Connection, literal, select, update
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from novasvc.errors import DatabaseError, DatabaseLockedError, DatabaseServerReadOnlyError, ServiceTwinError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.lease import LeaseRequest
from novasvc.registry.outages import VerdictRule
from novasvc.registry.purge import PurgeRequest
from novasvc.registry.record import ServiceRecord
from novasvc.registry.sql import leases, migrate
from novasvc.registry.sql.engine import SERVER_WORKERS, Engine
from novasvc.registry.sql.schema import database_ago, incarnations, metadata, revision, services
from novasvc.registry.sql.services import ServiceRegistry, connect_registry
from novasvc.testing.servers import database
from tests.contract.incarnation_contract import START
from tests.contract.registry_contract import Fixture
from tests.contract.verdict_contract import DOWN_TIME
from tests.servers import shared_database
from tests.servers.databases import DatabaseServer


@cache
def _empty_database(kind: type[DatabaseServer]) -> str:
    """Return the URL of a database with our tables, one for each server that the tests of a run share."""
    server = shared_database(kind)
    stack = ExitStack()
    url = stack.enter_context(database(server.url(server.system)))
    atexit.register(stack.close)
    migrate.create(url)
    return url


def on_server(kind: type[DatabaseServer], **query: str) -> Fixture:
    """Make a fixture whose database is empty at the start of each test.

    The tables stay: to create a database and them takes as long as five tests.

    :param query: what the URL says of each connection.
    """

    async def fixture(test: TestCase) -> ServiceRegistry:
        address = sqlalchemy.make_url(_empty_database(kind))
        registry = connect_registry(
            address.update_query_dict(query).render_as_string(hide_password=False),
            reactor=reactor,
            service_down_time=DOWN_TIME,
        )
        test.addCleanup(registry.close)
        await registry.open()
        await registry._engine.run(_empty)
        return registry

    return fixture


def _empty(connection: Connection) -> None:
    for table in reversed(metadata.sorted_tables):
        if table is not revision:
            connection.execute(table.delete())


class ServerTests:
    """Tests of what a file cannot do."""

    async def test_locked_row(self: Any) -> None:
        """A row that another transaction has locked keeps no other heartbeat waiting; its own waits for the lock."""
        records = [await self.register(host=f"h{number}") for number in range(5)]
        engine = sqlalchemy.create_engine(self.registry._engine.address.render())
        self.addCleanup(engine.dispose)
        with engine.connect() as other:
            other.execute(select(services.c.id).where(services.c.id == records[2].id).with_for_update())
            beats = [self.registry.beat(record.id) for record in records]
            locked = beats.pop(2)
            await gatherResults(beats)
            self.assertFalse(locked.called)
            other.rollback()
        await locked
        self.assertEqual([row.report_count for row in await self.registry.list(None, None, None)], [1] * 5)

    async def test_kept_lock(self: Any) -> None:
        """A wait for a lock that is kept ends in the server, too: its transaction keeps no locks of other rows."""
        held, wanted = [await self.register(host=host) for host in ("h1", "h2")]
        address = self.registry._engine.address
        engine = Engine(address, reactor=reactor, wait_timeout=2.0)
        self.addCleanup(engine.close)
        lock = select(services.c.id).with_for_update()
        other = sqlalchemy.create_engine(address.render())
        self.addCleanup(other.dispose)

        def lock_both(connection: Connection) -> None:
            for record in (held, wanted):
                connection.execute(lock.where(services.c.id == record.id))

        with other.connect() as connection:
            connection.execute(lock.where(services.c.id == wanted.id))
            await self.assertFailure(engine.run(lock_both), DatabaseLockedError)
            began = reactor.seconds()
            await self.registry.beat(held.id)
            self.assertLess(reactor.seconds() - began, 1.0)

    async def test_read_only(self: Any) -> None:
        """Once a write finds that its connection is read-only, all connections are made again."""
        record = await self.register()
        engine = self.registry._engine

        def become_read_only(connection: Connection) -> None:
            scope = "SESSION CHARACTERISTICS AS" if connection.dialect.name == "postgresql" else "SESSION"
            connection.exec_driver_sql(f"SET {scope} TRANSACTION READ ONLY")

        await gatherResults([engine.run(become_read_only) for _ in range(SERVER_WORKERS)])
        await engine.run_statements(become_read_only)
        await self.assertFailure(self.registry.beat(record.id), DatabaseServerReadOnlyError)
        await gatherResults([self.registry.prove_writable() for _ in range(SERVER_WORKERS)])
        with self.assertRaises(DatabaseServerReadOnlyError):
            await self.hold("nightly")
        await self.hold("nightly")

    async def test_race_of_processes(self: Any) -> None:
        """Of starts through several registries, as in several conductors, one wins; those of other services all do."""
        url = self.registry._engine.address.render()
        registries = [connect_registry(url, reactor=reactor) for _ in range(4)]
        for each in registries:
            self.addCleanup(each.close)
            await each.open()

        def begin(registry: ServiceRegistry, number: int, host: str) -> Deferred[ServiceRecord]:
            return registry.begin(attrs.evolve(START, owner=f"owner {number}", machine=f"m{number}", host=host))

        for turn in (1, 2):
            racing, others = [], []
            for number in range(40):
                racing.append(begin(registries[number % 4], 1000 * turn + number, "h1"))
                others.append(begin(registries[number % 4], 1000 * turn + number, f"other {turn} {number}"))
            self.assertEqual({record.incarnation.number for record in await gatherResults(others)}, {1})
            outcomes = await DeferredList(racing, consumeErrors=True)
            won = [outcome for done, outcome in outcomes if done]
            self.assertEqual([record.incarnation.number for record in won], [turn])
            self.assertEqual({type(outcome.value) for done, outcome in outcomes if not done}, {ServiceTwinError})
            await self.registry.enter(won[0].id, turn, "stopped")

    async def test_refused_start(self: Any) -> None:
        """A start with a value that the database refuses fails alone, also if others come at the same time."""
        starts = [attrs.evolve(START, host=host, owner=host) for host in ("h1", "h2", "h3")]
        starts[1] = attrs.evolve(starts[1], version=2**31)
        outcomes = await DeferredList([self.registry.begin(start) for start in starts], consumeErrors=True)
        self.assertEqual([done for done, _ in outcomes], [True, False, True])
        self.assertIs(type(outcomes[1][1].value), DatabaseError)

    async def test_purge(self: Any) -> None:
        """Rows that were deleted, or are silent, for long are deleted for good; others stay."""
        start = ServiceStart(host="", binary="b", topic="t", version=0, owner="a", machine="m")
        records = [await self.registry.begin(attrs.evolve(start, host=host)) for host in ("deleted", "silent", "up")]
        for record in records:
            await self.registry.beat(record.id)
        await self.registry.delete(records[0].id)
        long_ago = database_ago(literal(4000.0))
        moved = {"created_at": long_ago, "last_seen_up": long_ago}

        def change(connection: Connection) -> None:
            connection.execute(update(incarnations).values(since=long_ago, started_at=long_ago))
            connection.execute(update(services).where(services.c.host == "silent").values(**moved))
            connection.execute(update(services).where(services.c.deleted != 0).values(deleted_at=long_ago))

        await self.registry._engine.run(change)
        request = PurgeRequest(seconds=3600, rule=VerdictRule())
        found = (await self.registry.find_purgeable(request, 0)).rows
        self.assertEqual([(row.host, row.why) for row in found], [("deleted", "deleted"), ("silent", "silent")])
        self.assertTrue(all(3990 < row.age < 4100 for row in found), found)
        self.assertEqual(len((await self.registry.purge(request, 0)).rows), 2)
        self.assertEqual([row.host for row in await self.registry.list(None, None, None)], ["up"])

    async def test_purge_of_suspect(self: Any) -> None:
        """Rows of services that are all silent since an outage of the database began stay."""
        start = ServiceStart(host="", binary="b", topic="t", version=0, owner="a", machine="m")
        records = [await self.registry.begin(attrs.evolve(start, host=f"h{number}")) for number in range(6)]
        for record in records:
            await self.registry.beat(record.id)
        long_ago = database_ago(literal(4000.0))

        def change(connection: Connection) -> None:
            connection.execute(update(incarnations).values(since=long_ago, started_at=long_ago))
            connection.execute(update(services).values(created_at=long_ago, last_seen_up=long_ago))

        await self.registry._engine.run(change)
        purged = await self.registry.purge(PurgeRequest(seconds=3600, rule=VerdictRule()), 0)
        self.assertEqual((purged.rows, len(purged.suspect), len(purged.outages)), ([], 6, 1))
        self.assertEqual(len(await self.registry.list(None, None, None)), 6)

    async def test_lease_taken_meanwhile(self: Any) -> None:
        """Of two contenders that have seen that a lease is free the second does not take it from the first."""
        engine = sqlalchemy.create_engine(self.registry._engine.address.render(), isolation_level="AUTOCOMMIT")
        self.addCleanup(engine.dispose)
        await self.hold("gone", seconds=0.1)
        while not (await self.registry.list_leases())[0].is_free:
            await deferLater(reactor, 0.02)
        second = LeaseRequest(topic="shop", holder="h", owner="second", seconds=30.0, tasks=("nightly",))
        read = leases._of_tasks

        def read_and_lose(connection: Connection, request: LeaseRequest) -> Any:
            found = read(connection, request)
            leases._of_tasks = read
            with engine.connect() as other:
                leases.hold(other, attrs.evolve(second, owner="first"))
            return found

        self.patch(leases, "_of_tasks", read_and_lose)
        (found,) = await self.registry.hold_leases(second)
        self.assertEqual((found.owner, found.fencing), ("first", 2))
