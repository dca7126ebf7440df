"""Tests for novasvc.registry.sql.purge, in an SQLite file."""

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.sql import literal
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.registry import verdicts
from novasvc.registry.errors import ServiceNotFoundError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.outages import VerdictRule
from novasvc.registry.purge import MAX_BATCH, PurgeBatch, PurgeRequest
from novasvc.registry.query import ServicePage, ServiceQuery
from novasvc.registry.sql import migrate, purge
from novasvc.registry.sql import services as services_module
from novasvc.registry.sql.rows import BEAT
from novasvc.registry.sql.schema import database_ago, database_now, incarnations, services
from novasvc.registry.sql.services import connect_registry

DAY = 86400.0


class PurgeTests(TestCase):
    """What is deleted for good, and what is kept."""

    async def setUp(self) -> None:
        url = f"sqlite:///{self.mktemp()}.sqlite"
        migrate.upgrade(url)
        self.registry = connect_registry(url, reactor=reactor)
        self.addCleanup(self.registry.close)
        await self.registry.open()

    async def begin(self, host: str, *, beats: int = 1, owner: str = "a") -> int:
        start = ServiceStart(
            host=host, binary="novasvc-agent", topic="agent", version=0, owner=owner, machine="m", lock="l"
        )
        record = await self.registry.begin(start)
        for _ in range(beats):
            await self.registry.beat(record.id)
        return record.id

    async def move(self, service_id: int, days: float, *columns: str) -> None:
        """Let a service be as it was, some days ago."""
        ago = database_ago(literal(days * DAY))

        def change(connection: Any) -> None:
            values = dict.fromkeys(columns or ("created_at", "last_seen_up", "updated_at"), ago)
            connection.execute(update(services).where(services.c.id == service_id).values(**values))
            connection.execute(
                update(incarnations).where(incarnations.c.service_id == service_id).values(since=ago, started_at=ago)
            )

        await self.registry._engine.run(change)

    async def purge(self, days: float = 30, **given: Any) -> list[tuple[str, str]]:
        request = PurgeRequest(seconds=days * DAY, rule=VerdictRule(), **given)
        found: list[tuple[str, str]] = [
            (row.host, row.why) for row in (await self.registry.find_purgeable(request, 0)).rows
        ]
        self.assertEqual([(row.host, row.why) for row in (await self.registry.purge(request, 0)).rows], found)
        self.assertEqual((await self.registry.purge(request, 0)).rows, [])
        return found

    async def hosts(self) -> list[str]:
        return [record.host for record in await self.registry.list(None, None, None)]

    async def test_silent(self) -> None:
        """A row whose service has been silent for longer than the age is deleted; younger ones, and those up, stay."""
        for host, days in (("old", 31.0), ("young", 29.0), ("up", 0.0)):
            await self.move(await self.begin(host), days)
        self.assertEqual(await self.purge(), [("old", "silent")])
        self.assertEqual(await self.hosts(), ["up", "young"])

    async def test_deleted(self) -> None:
        """A row that was deleted long ago goes for good."""
        old, young = await self.begin("h1"), await self.begin("h2")
        for each in (old, young):
            await self.registry.delete(each)
        await self.move(old, 31, "deleted_at")
        self.assertEqual(await self.purge(), [("h1", "deleted")])

    async def test_up_again(self) -> None:
        """A service that was silent for long and has begun again, or beats again, stays."""
        beating, beginning = await self.begin("h1"), await self.begin("h2")
        for each in (beating, beginning):
            await self.move(each, 40)
        await self.registry.beat(beating)
        await self.begin("h2", beats=0, owner="b")
        self.assertEqual(await self.purge(), [])

    async def test_starting(self) -> None:
        """A service that tells that it still starts stays, however long ago its start began; one that is lost goes."""
        starting, lost = await self.begin("h1"), await self.begin("h2")
        for each in (starting, lost):
            await self.move(each, 40)
        await self.registry.enter(starting, 1, "starting", until=0.0)
        await self.registry.enter(lost, 1, "starting", until=-35 * DAY)
        # One that was heard all the time: without it, no heartbeat would have arrived since the lost one was heard.
        await self.move(await self.begin("up"), 50, "created_at")
        self.assertEqual(await self.purge(), [("h2", "silent")])

    async def fall_silent(self, days: float) -> None:
        """Have six services whose heartbeats have not arrived since some days ago, and one that stopped before."""
        stopped = await self.begin("stopped")
        await self.registry.enter(stopped, 1, "stopped")
        for service_id in (stopped, *[await self.begin(f"h{number}") for number in range(6)]):
            await self.move(service_id, days)

    async def test_suspect(self) -> None:
        """Services that are silent because no heartbeat arrives stay, however long it takes, and are told with why."""
        await self.fall_silent(40)
        request = PurgeRequest(seconds=30 * DAY, rule=VerdictRule())
        found = await self.registry.find_purgeable(request, 0)
        self.assertEqual(await self.purge(), [("stopped", "silent")])
        self.assertEqual(await self.hosts(), [f"h{number}" for number in range(6)])
        self.assertEqual(found.suspect, [f"novasvc-agent@h{number}" for number in range(6)])
        (problem,) = found.outages.values()
        self.assertIn("no heartbeat of novasvc-agent has arrived since", problem)

    async def test_suspect_on_a_page(self) -> None:
        """The next batch begins after the rows of suspect services that stayed."""
        self.patch(services_module, "MAX_BATCH", 2)
        await self.fall_silent(40)
        deleted = await self.begin("deleted")
        await self.registry.delete(deleted)
        await self.move(deleted, 40, "deleted_at")
        request = PurgeRequest(seconds=30 * DAY, rule=VerdictRule())
        purged: list[str] = []
        after: int | None = 0
        while after is not None:
            batch = await self.registry.purge(request, after)
            purged += [row.host for row in batch.rows]
            after = batch.last
        self.assertEqual(purged, ["stopped", "deleted"])

    async def test_heard_meanwhile(self) -> None:
        """A service that was heard after it was judged stays, even if it is silent again for longer than the age."""
        old = await self.begin("h1")
        await self.move(old, 40)
        request, judged = PurgeRequest(seconds=0.05, rule=VerdictRule(service_down_time=0.05)), purge._find

        def beat_and_fall_silent(connection: Any, *given: Any) -> PurgeBatch:
            found = judged(connection, *given)
            connection.execute(BEAT.where(services.c.id == old))
            began = connection.execute(select(database_ago(literal(-0.1)))).scalar_one()
            while connection.execute(select(database_now())).scalar_one() < began:
                pass
            return found

        self.patch(purge, "_find", beat_and_fall_silent)
        self.assertEqual((await self.registry.purge(request, 0)).rows, [])
        self.assertEqual(await self.hosts(), ["h1"])

    async def test_never_beat(self) -> None:
        """A service that never sent a heartbeat stays, unless its start has failed, or it has stopped, long ago."""
        silent, failed = await self.begin("h1", beats=0), await self.begin("h2", beats=0)
        await self.registry.enter(failed, 1, "failed", reason="no disk")
        for each in (silent, failed):
            await self.move(each, 40, "created_at")
        self.assertEqual(await self.purge(), [("h2", "silent")])

    async def test_nova(self) -> None:
        """A row of a service that has never told an incarnation stays, unless it is asked for."""
        record = await self.registry.register("h1", "nova-compute", "compute", 60)
        await self.registry.beat(record.id)
        await self.move(record.id, 400)
        self.assertEqual(await self.purge(), [])
        self.assertEqual(await self.purge(include_nova=True), [("h1", "silent")])

    async def test_number_is_kept(self) -> None:
        """A purged service that starts again goes on counting its incarnations."""
        await self.move(await self.begin("h1"), 40)
        self.assertEqual(await self.purge(), [("h1", "silent")])
        await self.begin("h1", owner="b")
        (record,) = await self.registry.list("h1", None, None)
        assert record.incarnation is not None
        self.assertEqual(record.incarnation.number, 2)

    async def test_id_is_not_used_again(self) -> None:
        """A new service gets no id of a purged row, so a node that comes back late does not beat for it."""
        old = await self.begin("h1")
        await self.move(old, 40)
        self.assertEqual(await self.purge(), [("h1", "silent")])
        self.assertEqual(await self.begin("h2"), old + 1)
        record = await self.registry.register("h3", "nova-compute", "compute", 60)
        self.assertEqual(record.id, old + 2)
        await self.assertFailure(self.registry.beat(old, 1), ServiceNotFoundError)

    async def test_batches(self) -> None:
        """At most so many rows are deleted at a time."""

        def fill(connection: Any) -> None:
            long_ago = database_ago(literal(40 * DAY))
            for number in range(MAX_BATCH + 10):
                connection.execute(
                    services.insert().values(
                        host=f"h{number}", binary="b", topic=None, report_count=1, deleted=0, disabled=False,
                        created_at=long_ago, last_seen_up=long_ago, uuid=str(number),
                    )
                )  # fmt: skip

        await self.registry._engine.run(fill)
        await self.begin("up")
        request = PurgeRequest(seconds=30 * DAY, rule=VerdictRule(), include_nova=True)
        found = await self.registry.find_purgeable(request, 0)
        self.assertEqual((len(found.rows), found.last), (MAX_BATCH, found.rows[-1].id))
        purged = [await self.registry.purge(request, 0) for _ in range(3)]
        self.assertEqual([len(batch.rows) for batch in purged], [MAX_BATCH, 10, 0])
        self.assertIsNone(purged[-1].last)

    async def test_between_two_pages(self) -> None:
        """A reader of all services goes on if the last row of its page is purged."""
        self.patch(verdicts, "PAGE", 1)
        old, _, _ = [await self.begin(host) for host in ("h1", "h2", "h3")]
        await self.move(old, 40)
        page = self.registry.page

        async def read(query: ServiceQuery) -> ServicePage:
            found: ServicePage = await page(query)
            await self.registry.purge(PurgeRequest(seconds=30 * DAY, rule=VerdictRule()), 0)
            return found

        self.patch(self.registry, "page", read)
        fleet = await verdicts.judge_all(self.registry, VerdictRule())
        self.assertEqual([record.host for record, _ in fleet.services], ["h1", "h2", "h3"])

    def test_age(self) -> None:
        """An age is above 0."""
        self.assertRaises(ValueError, PurgeRequest, seconds=0, rule=VerdictRule())
