"""The part of the contract of IServiceRegistry that is about incarnations."""

from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, gatherResults

from novasvc.errors import (
    DatabaseConflictError,
    ServiceForcedDownError,
    ServiceNotFoundError,
    ServiceSupersededError,
    ServiceTwinError,
)
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.query import ServiceQuery, ServiceTotals
from novasvc.registry.record import ServiceChanges, ServiceRecord

START = ServiceStart(
    host="h1",
    binary="novasvc-agent",
    topic="agent",
    version=7,
    owner="owner 1",
    machine="m1",
    pid=4711,
    zone="az1",
    tags=("gpu", "größe 'L'"),
)
RACERS = 300
MANY = 50


class IncarnationContract:
    registry: Any

    def begin(self, owner: str = "owner 1", **given: Any) -> Deferred[ServiceRecord]:
        begun: Deferred[ServiceRecord] = self.registry.begin(attrs.evolve(START, owner=owner, **given))
        return begun

    async def test_begin(self: Any) -> None:
        """The first start registers the row, and has number 1 and what the service said of itself."""
        record = await self.begin()
        self.assertEqual(
            (record.host, record.binary, record.topic, record.version, record.report_count, record.last_seen_up),
            ("h1", "novasvc-agent", "agent", 7, 0, None),
        )
        incarnation = record.incarnation
        self.assertEqual((incarnation.number, incarnation.state), (1, "starting"))
        self.assertEqual((incarnation.machine, incarnation.pid), ("m1", 4711))
        self.assertEqual((incarnation.zone, incarnation.tags), ("az1", ("gpu", "größe 'L'")))
        self.assertEqual((incarnation.until, incarnation.reason, incarnation.calls), (None, None, 0))
        for moment in (incarnation.since, incarnation.started_at):
            self.assertIsNone(moment.tzinfo)
            self.assertLess(abs((moment - record.created_at).total_seconds()), 5)

    async def test_reads_have_the_incarnation(self: Any) -> None:
        """Every method that returns rows returns their incarnations; a registered service has none."""
        begun = await self.begin()
        plain = await self.register(host="h2")
        self.assertIsNone(plain.incarnation)
        self.assertEqual((await self.registry.get(begun.uuid)).incarnation, begun.incarnation)
        expected = [begun.incarnation, None]
        self.assertEqual([row.incarnation for row in await self.registry.list(None, None, None)], expected)
        self.assertEqual([row.incarnation for row in (await self.registry.page(ServiceQuery())).rows], expected)
        changed = await self.registry.update(begun.id, ServiceChanges(disabled=True))
        self.assertEqual(changed.incarnation, begun.incarnation)
        self.assertEqual((await self.register()).incarnation, begun.incarnation)

    async def test_zone_and_tag(self: Any) -> None:
        """A query finds services by zone and by tag; tags are compared exactly."""
        await self.begin()
        await self.begin("owner 2", host="h2", zone="az2", tags=("gpus", "GPU"))
        await self.register(host="h3")

        async def hosts(**given: Any) -> list[str]:
            query = ServiceQuery(**given)
            rows = [row.host for row in (await self.registry.page(query)).rows]
            self.assertEqual((await self.registry.count(query)).services, len(rows))
            return rows

        self.assertEqual(await hosts(), ["h1", "h2", "h3"])
        self.assertEqual([await hosts(zone=zone) for zone in ("az1", "az2", "az")], [["h1"], ["h2"], []])
        self.assertEqual([await hosts(tag=tag) for tag in ("gpu", "GPU", "gpus", "g")], [["h1"], ["h2"], ["h2"], []])
        self.assertEqual(await hosts(tag="größe 'L'"), ["h1"])
        self.assertEqual(await hosts(tag="gpu", zone="az2"), [])

    async def test_same_start(self: Any) -> None:
        """A start that is begun again, by a repeated call or another worker, has the same incarnation and state."""
        first = await self.begin()
        await self.registry.enter(first.id, 1, "ready")
        again = await self.begin(version=8)
        self.assertEqual((again.incarnation.number, again.incarnation.state, again.version), (1, "ready", 8))

    async def test_same_start_with_other_tags(self: Any) -> None:
        """A start that is begun again with another zone or other tags has these."""
        first = await self.begin()
        again = await self.begin(zone="az2", tags=("ssd",))
        self.assertEqual((again.incarnation.zone, again.incarnation.tags), ("az2", ("ssd",)))
        self.assertEqual(again.incarnation, attrs.evolve(first.incarnation, zone="az2", tags=("ssd",)))

    async def test_lost_by_the_database(self: Any) -> None:
        """A start that a database has lost, such as one restored from a backup, gets a greater number than it had."""
        first = await self.begin(after=41)
        self.assertEqual(first.incarnation.number, 42)
        await self.registry.enter(first.id, 42, "stopped")
        self.assertEqual((await self.begin("owner 2", after=7)).incarnation.number, 43)

    async def test_twin(self: Any) -> None:
        """While a start is alive, another one is refused, and told where the first one runs; nothing changes."""
        first = await self.begin(machine="m1.example")
        await self.registry.beat(first.id, 1)
        error = await self.assert_fails(ServiceTwinError, self.begin("owner 2", machine="m2", version=8))
        self.assertEqual(
            (error.service, error.incarnation, error.machine, error.pid), (START.name, 1, "m1.example", 4711)
        )
        self.assertEqual(error.beats, 1)
        self.assertTrue(-1 < error.quiet < 30, error.quiet)
        self.assertIn("'m1.example', process 4711", str(error))
        after = await self.registry.get(first.uuid)
        self.assertEqual((after.incarnation, after.version), (first.incarnation, 7))

    async def test_twin_that_starts(self: Any) -> None:
        """A start that says that it still starts is alive, and keeps the time since when it does."""
        first = await self.begin()
        await self.registry.enter(first.id, 1, "starting", until=0.0)
        again = (await self.registry.get(first.uuid)).incarnation
        self.assertEqual((again.state, again.since), ("starting", first.incarnation.since))
        self.assertGreaterEqual(again.until, again.since)
        error = await self.assert_fails(ServiceTwinError, self.begin("owner 2", service_down_time=60.0))
        self.assertEqual((error.incarnation, error.beats), (1, 0))

    async def test_next_numbers(self: Any) -> None:
        """A start after a clean stop, a failure, a force-down, a death or on the same lock has the next number."""
        first = await self.begin("owner 1", lock="lock 1")
        await self.registry.beat(first.id, 1)
        numbers = [(await self.begin("owner 2", lock="lock 1", pid=2)).incarnation.number]
        await self.registry.enter(first.id, 2, "stopped")
        numbers.append((await self.begin("owner 3", version=8)).incarnation.number)
        await self.registry.enter(first.id, 3, "failed", reason="no disk")
        numbers.append((await self.begin("owner 4")).incarnation.number)
        await self.registry.update(first.id, ServiceChanges(forced_down=True))
        forced = await self.begin("owner 5")
        numbers.append(forced.incarnation.number)
        await self.registry.update(first.id, ServiceChanges(forced_down=False))
        numbers.append((await self.begin("owner 6", service_down_time=-1.0)).incarnation.number)
        self.assertEqual(numbers, [2, 3, 4, 5, 6])
        self.assertEqual((forced.id, forced.forced_down, forced.incarnation.state), (first.id, True, "starting"))
        after = await self.registry.get(first.uuid)
        self.assertEqual((after.incarnation.reason, after.report_count), (None, 1))

    async def test_other_lock(self: Any) -> None:
        """A start with another lock, or without one, does not supersede a living one."""
        await self.begin(lock="lock 1")
        for given in ({"lock": "lock 2"}, {"lock": None}):
            await self.assert_fails(ServiceTwinError, self.begin("owner 2", **given))

    async def test_late_start(self: Any) -> None:
        """A request of a process that held the lock earlier, and is dead, does not supersede the one that holds it."""
        await self.begin("owner 1", lock="lock@9")
        await self.begin("owner 2", lock="lock@10")
        await self.assert_fails(ServiceTwinError, self.begin("owner 1", lock="lock@9"))
        again = await self.begin("owner 2", lock="lock@10")
        self.assertEqual(again.incarnation.number, 2)
        for changes in (ServiceChanges(forced_down=True), ServiceChanges(forced_down=False)):
            await self.registry.update(again.id, changes)
            await self.assert_fails(ServiceTwinError, self.begin("owner 1", lock="lock@9"))
        await self.registry.enter(again.id, 2, "stopped")
        await self.assert_fails(ServiceTwinError, self.begin("owner 1", lock="lock@9"))
        after = await self.begin("owner 4", lock="lock@11")
        self.assertEqual(after.incarnation.number, 3)
        silent = await self.begin("owner 5", lock="lock@1", service_down_time=-1.0)
        self.assertEqual(silent.incarnation.number, 4)

    async def test_superseded(self: Any) -> None:
        """An earlier incarnation can neither beat nor enter a state, and is told which one took its place."""
        first = await self.begin("owner 1")
        await self.begin("owner 2", service_down_time=-1.0, machine="m2", pid=9)
        await self.registry.beat(first.id, 2)
        before = await self.registry.get(first.uuid)
        for deferred in (
            self.registry.beat(first.id, 1),
            self.registry.enter(first.id, 1, "ready"),
            self.registry.beat(first.id, 3),
        ):
            error = await self.assert_fails(ServiceSupersededError, deferred)
            self.assertEqual((error.service, error.latest, error.machine, error.pid), (START.name, 2, "m2", 9))
        self.assertEqual(await self._same_age(before), before)

    async def test_beat_without_incarnation(self: Any) -> None:
        """A heartbeat without a number, such as of an older node, is written whatever the incarnation."""
        record = await self.begin()
        await self.registry.beat(record.id)
        await self.registry.update(record.id, ServiceChanges(forced_down=True))
        await self.registry.beat(record.id)
        self.assertEqual((await self.registry.get(record.uuid)).report_count, 2)

    async def test_beat_of_registered(self: Any) -> None:
        """A heartbeat with a number for a row without an incarnation is refused."""
        record = await self.register()
        await self.assert_fails(ServiceSupersededError, self.registry.beat(record.id, 1))

    async def test_forced_down(self: Any) -> None:
        """A forced-down incarnation cannot beat until it is let up; it may still say its state."""
        record = await self.begin()
        await self.registry.update(record.id, ServiceChanges(forced_down=True))
        error = await self.assert_fails(ServiceForcedDownError, self.registry.beat(record.id, 1))
        self.assertEqual(error.service, START.name)
        self.assertIn("force-down --unset h1 novasvc-agent", str(error))
        await self.registry.enter(record.id, 1, "ready")
        after = await self.registry.get(record.uuid)
        self.assertEqual((after.report_count, after.incarnation.state), (0, "ready"))
        await self.registry.update(record.id, ServiceChanges(forced_down=False))
        await self.registry.beat(record.id, 1)
        self.assertEqual((await self.registry.get(record.uuid)).report_count, 1)

    async def test_beats_of_incarnations(self: Any) -> None:
        """Of heartbeats that come together, those that are refused fail alone, each with its reason."""
        records = [await self.begin(f"owner {number}", host=f"h{number}") for number in range(6)]
        await self.registry.delete(records[1].id)
        await self.registry.update(records[2].id, ServiceChanges(forced_down=True))
        await self.begin("other", host="h3", service_down_time=-1.0)
        plain = await self.register(host="h7")
        beats = [self.registry.beat(record.id, 1) for record in records]
        outcomes = await DeferredList([*beats, self.registry.beat(plain.id)], consumeErrors=True)
        errors = [None if done else type(outcome.value) for done, outcome in outcomes]
        refused = [ServiceNotFoundError, ServiceForcedDownError, ServiceSupersededError]
        self.assertEqual(errors, [None, *refused, None, None, None])
        counts = {record.host: record.report_count for record in await self.registry.list(None, None, None)}
        self.assertEqual(counts, {"h0": 1, "h2": 0, "h3": 0, "h4": 1, "h5": 1, "h7": 1})

    async def test_enter(self: Any) -> None:
        """A state has its time, deadline, reason and calls; entering it again keeps the time."""
        record = await self.begin()
        self.assertIsNone(await self.registry.enter(record.id, 1, "draining", until=30.0, reason="restart", calls=3))
        draining = (await self.registry.get(record.uuid)).incarnation
        self.assertEqual((draining.state, draining.reason, draining.calls), ("draining", "restart", 3))
        self.assertGreaterEqual(draining.since, record.incarnation.since)
        self.assertTrue(25 < (draining.until - draining.since).total_seconds() < 35, draining)
        await self.pass_time(0.01)
        await self.registry.enter(record.id, 1, "draining", until=20.0, calls=1)
        later = (await self.registry.get(record.uuid)).incarnation
        self.assertEqual((later.since, later.calls, later.reason), (draining.since, 1, None))
        self.assertLess(later.until, draining.until)
        await self.registry.enter(record.id, 1, "failed", reason="ü" * 1000)
        failed = (await self.registry.get(record.uuid)).incarnation
        self.assertEqual((failed.state, failed.reason, failed.until, failed.calls), ("failed", "ü" * 255, None, 0))
        self.assertGreater(failed.since, draining.since)
        self.assertEqual(failed.started_at, record.incarnation.started_at)

    async def test_stopped_is_down(self: Any) -> None:
        """A service that has stopped or failed is down at once: in queries, and in totals."""
        first, second = await self.begin(), await self.begin(host="h2")
        for record in (first, second):
            await self.registry.beat(record.id, 1)
        await self.register(host="h3")
        seen = await self.registry.get(first.uuid)
        await self.registry.enter(first.id, 1, "stopped")
        await self.registry.enter(second.id, 1, "failed", reason="no disk")
        query = ServiceQuery(service_down_time=3600.0)
        self.assertEqual(await self.found(up=True, service_down_time=3600.0), ["novasvc-agent@h3"])
        self.assertEqual(len(await self.found(up=False, service_down_time=3600.0)), 2)
        self.assertEqual(await self.registry.count(query), ServiceTotals(services=3, hosts=3, up=1, down=2))
        self.assertEqual((await self.registry.get(first.uuid)).last_seen_up, seen.last_seen_up)
        await self.begin("owner 2")
        self.assertEqual((await self.registry.count(query)).up, 2)

    async def test_deleted(self: Any) -> None:
        """A deleted incarnation can neither beat nor enter a state; another start has a new row and number."""
        first = await self.begin()
        await self.registry.delete(first.id)
        await self.assert_fails(ServiceNotFoundError, self.registry.beat(first.id, 1))
        await self.assert_fails(ServiceNotFoundError, self.registry.enter(first.id, 1, "ready"))
        await self.assert_fails(ServiceNotFoundError, self.begin())
        second = await self.begin("owner 2")
        self.assertNotEqual(second.id, first.id)
        self.assertEqual(second.incarnation.number, 2)
        await self.assert_fails(ServiceNotFoundError, self.registry.beat(first.id, 1))
        await self.registry.beat(second.id, 2)

    async def test_deleted_and_registered(self: Any) -> None:
        """After a row was deleted and an older node has registered another one, the number goes on."""
        first = await self.begin()
        await self.registry.delete(first.id)
        plain = await self.register()
        self.assertIsNone(plain.incarnation)
        second = await self.begin("owner 2")
        self.assertEqual((second.id, second.incarnation.number), (plain.id, 2))

    async def test_adopted(self: Any) -> None:
        """A row of an older node gets its first incarnation, even while that node is alive."""
        plain = await self.register()
        await self.registry.beat(plain.id)
        record = await self.begin()
        self.assertEqual((record.id, record.incarnation.number, record.report_count), (plain.id, 1, 1))

    async def test_topic_of_another(self: Any) -> None:
        """A start with the topic of another binary of its host is a DatabaseConflictError."""
        await self.begin()
        error = await self.assert_fails(DatabaseConflictError, self.begin("owner 2", binary="other-agent"))
        self.assertIn("'agent'", str(error))

    async def test_race_of_starts(self: Any) -> None:
        """Of many starts at the same moment exactly one wins; of a new service, a stopped one, and a deleted one."""
        for number in (1, 2, 3):
            racing = [self.begin(f"owner {number} {racer}", machine=f"m{racer}") for racer in range(RACERS)]
            outcomes = await DeferredList(racing, consumeErrors=True)
            won = [outcome for done, outcome in outcomes if done]
            self.assertEqual([record.incarnation.number for record in won], [number])
            for done, outcome in outcomes:
                if not done:
                    outcome.trap(ServiceTwinError)
                    self.assertEqual(outcome.value.machine, won[0].incarnation.machine)
            if number == 1:
                await self.registry.enter(won[0].id, number, "stopped")
            else:
                await self.registry.delete(won[0].id)

    async def test_many_services_at_once(self: Any) -> None:
        """Services that start at the same moment do not hinder each other."""
        starting = [self.begin(f"owner {number}", host=f"h{number}") for number in range(MANY)]
        records = await gatherResults(starting)
        self.assertEqual({record.incarnation.number for record in records}, {1})
        self.assertEqual(len({record.id for record in records}), MANY)

    async def test_texts_of_errors(self: Any) -> None:
        """What a database would refuse in a reason, or in a machine's name, is escaped: NULs and lone surrogates."""
        record = await self.begin("a", machine="m\udcff")
        await self.registry.enter(record.id, 1, "failed", reason="no file 'a\udcff\0b'" + "x" * 300)
        found = (await self.registry.get(str(record.id))).incarnation
        self.assertEqual(found.machine, "m\\udcff")
        self.assertTrue(found.reason.startswith("no file 'a\\udcff\\x00b'"), found.reason)
        self.assertEqual((found.state, len(found.reason)), ("failed", 255))

    async def test_long_texts(self: Any) -> None:
        """A machine's name that is longer than the column is cut."""
        record = await self.begin(machine="m" * 1000, tags=tuple(f"tag{number}" for number in range(200)))
        self.assertEqual(len(record.incarnation.machine), 255)
        self.assertEqual(len(record.incarnation.tags), 200)
