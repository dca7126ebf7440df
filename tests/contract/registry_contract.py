"""The contract of IServiceRegistry."""

from collections.abc import Awaitable, Callable
from typing import Any, get_args

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from novasvc.errors import DatabaseConflictError, ServiceNotFoundError
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.lease import Lease, LeaseRequest
from novasvc.registry.query import ServiceQuery, ServiceTotals, Sort
from novasvc.registry.record import ServiceChanges, ServiceRecord
from tests.contract.incarnation_contract import IncarnationContract
from tests.contract.verdict_contract import VerdictContract

Fixture = Callable[[TestCase], Awaitable[Any]]
"""Takes the running test, returns an open, empty registry, and sees to its closing."""

NO_SUCH_ID = 4711
NO_SUCH_UUID = "00000000-0000-4000-8000-000000000000"


class RegistryContract(IncarnationContract, VerdictContract, TestCase):
    fixture: Fixture
    registry: Any

    async def setUp(self) -> None:
        self.registry = await self.fixture(self)

    def register(self, host: str = "h1", binary: str = "novasvc-agent", **given: Any) -> Deferred[ServiceRecord]:
        return self.registry.register(host, binary, given.get("topic", "agent"), given.get("version", 7))

    async def assert_fails(self, error: type[Exception], deferred: Deferred[Any]) -> Exception:
        failure = await self.assertFailure(deferred, error)
        assert isinstance(failure, error)
        return failure

    def test_interface(self) -> None:
        """The registry provides IServiceRegistry."""
        self.assertTrue(verifyObject(IServiceRegistry, self.registry))

    async def test_new_row(self) -> None:
        """A new row is enabled, has no heartbeat, and its age counts from its creation."""
        record = await self.register()
        self.assertEqual(
            (record.host, record.binary, record.topic, record.version, record.report_count),
            ("h1", "novasvc-agent", "agent", 7, 0),
        )
        self.assertEqual(
            (record.disabled, record.disabled_reason, record.forced_down, record.updated_at, record.last_seen_up),
            (False, None, False, None, None),
        )
        self.assertRegex(record.uuid, r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
        assert record.created_at is not None
        self.assertIsNone(record.created_at.tzinfo)
        self.assertTrue(-1 < record.age < 30, record.age)

    async def test_restart(self) -> None:
        """Registering again returns the row unchanged."""
        first = await self.register()
        await self.registry.beat(first.id)
        before = await self.registry.get(first.uuid)
        again = await self.register()
        self.assertEqual((again.id, again.uuid, again.report_count), (first.id, first.uuid, 1))
        self.assertEqual((again.updated_at, again.created_at), (before.updated_at, first.created_at))

    async def test_new_version(self) -> None:
        """Registering with another version updates version and updated_at."""
        first = await self.register(version=7)
        again = await self.register(version=8)
        self.assertEqual((again.id, again.version), (first.id, 8))
        self.assertIsNotNone(again.updated_at)

    async def test_one_row_each(self) -> None:
        """Each pair of host and binary has its own row."""
        records = [
            await self.register("h1", "novasvc-agent"),
            await self.register("h2", "novasvc-agent"),
            await self.register("h1", "novasvc-api", topic="api"),
        ]
        self.assertEqual(len({record.id for record in records}), 3)
        self.assertEqual(len({record.uuid for record in records}), 3)

    async def test_without_topic(self) -> None:
        """Services without a topic do not conflict."""
        one = await self.register(binary="novasvc-api", topic=None)
        other = await self.register(binary="novasvc-metadata", topic=None)
        self.assertIsNone(one.topic)
        self.assertNotEqual(one.id, other.id)

    async def test_topic_is_taken(self) -> None:
        """A second binary of a host with the same topic is a DatabaseConflictError that names host and topic."""
        await self.register("h1", "novasvc-agent", topic="agent")
        error = await self.assert_fails(DatabaseConflictError, self.register("h1", "other-agent", topic="agent"))
        self.assertIn("'h1'", str(error))
        self.assertIn("'agent'", str(error))

    async def test_race(self) -> None:
        """Concurrent registrations of a service return one row."""
        records = await gatherResults([self.register() for _ in range(8)])
        self.assertEqual(len({record.id for record in records}), 1)
        self.assertEqual(len(await self.registry.list(None, None, None)), 1)

    async def test_beat(self) -> None:
        """A heartbeat increments report_count, and stamps last_seen_up and updated_at."""
        first = await self.register()
        for _ in range(3):
            self.assertIsNone(await self.registry.beat(first.id))
        record = await self.registry.get(str(first.id))
        self.assertEqual(record.report_count, 3)
        self.assertGreaterEqual(record.last_seen_up, first.created_at)
        self.assertLess(abs((record.updated_at - record.last_seen_up).total_seconds()), 1)
        self.assertTrue(-1 < record.age < 30, record.age)

    async def test_prove_writable(self) -> None:
        """prove_writable() changes nothing, and needs no row."""
        self.assertIsNone(await self.registry.prove_writable())
        first = await self.register()
        self.assertIsNone(await self.registry.prove_writable())
        self.assertEqual((await self.registry.get(first.uuid)).report_count, 0)

    async def test_beats_at_once(self) -> None:
        """No concurrent heartbeat is lost."""
        first = await self.register()
        await gatherResults([self.registry.beat(first.id) for _ in range(50)])
        self.assertEqual((await self.registry.get(first.uuid)).report_count, 50)

    async def test_beats_of_many(self) -> None:
        """Heartbeats that come together are each written, and those of rows that are gone fail alone."""
        records = [await self.register(host=f"h{number}") for number in range(20)]
        await self.registry.delete(records[7].id)
        beats = [self.registry.beat(record.id) for record in [*records, *records[:3]]]
        outcomes = await DeferredList([*beats, self.registry.beat(NO_SUCH_ID)], consumeErrors=True)
        failed = {place: outcome for place, (done, outcome) in enumerate(outcomes) if not done}
        self.assertEqual(list(failed), [7, 23])
        for failure, name in zip(failed.values(), (str(records[7].id), str(NO_SUCH_ID)), strict=True):
            failure.trap(ServiceNotFoundError)
            self.assertEqual(failure.value.args, (name,))
        counts = {record.host: record.report_count for record in await self.registry.list(None, None, None)}
        self.assertEqual(counts, {f"h{number}": 2 if number < 3 else 1 for number in range(20) if number != 7})

    async def test_get(self) -> None:
        """A row is found by its id in decimal, and by its uuid."""
        first = await self.register()
        self.assertEqual((await self.registry.get(str(first.id))).uuid, first.uuid)
        self.assertEqual((await self.registry.get(first.uuid)).id, first.id)

    async def test_not_found(self) -> None:
        """Every method fails with ServiceNotFoundError if there is no live row; the error names the service."""
        missing = (
            (str(NO_SUCH_ID), self.registry.get(str(NO_SUCH_ID))),
            (NO_SUCH_UUID, self.registry.get(NO_SUCH_UUID)),
            ("'; --", self.registry.get("'; --")),
            ("9" * 40, self.registry.get("9" * 40)),
            ("9" * 5000, self.registry.get("9" * 5000)),
            (str(NO_SUCH_ID), self.registry.beat(NO_SUCH_ID)),
            (str(NO_SUCH_ID), self.registry.delete(NO_SUCH_ID)),
            (str(NO_SUCH_ID), self.registry.update(NO_SUCH_ID, ServiceChanges(disabled=True))),
        )
        for name, deferred in missing:
            error = await self.assert_fails(ServiceNotFoundError, deferred)
            self.assertEqual(error.args, (name,))

    async def test_list(self) -> None:
        """The list is ordered by binary, host and id, and filtered by host, binary and topic."""
        for host, binary, topic in (("h2", "b", "t"), ("h1", "b", "t"), ("h1", "a", "u"), ("h3", "c", None)):
            await self.register(host, binary, topic=topic)

        async def listed(host: str | None = None, binary: str | None = None, topic: str | None = None) -> list[str]:
            rows = await self.registry.list(host, binary, topic)
            return [f"{row.binary}@{row.host}" for row in rows]

        self.assertEqual(await listed(), ["a@h1", "b@h1", "b@h2", "c@h3"])
        self.assertEqual(await listed(host="h1"), ["a@h1", "b@h1"])
        self.assertEqual(await listed(binary="b"), ["b@h1", "b@h2"])
        self.assertEqual(await listed(topic="u"), ["a@h1"])
        self.assertEqual(await listed(host="h1", binary="b", topic="t"), ["b@h1"])
        self.assertEqual(await listed(host="zz"), [])

    async def found(self, **query: Any) -> list[str]:
        page = await self.registry.page(ServiceQuery(**query))
        return [f"{row.binary}@{row.host}" for row in page.rows]

    async def test_page_filters(self) -> None:
        """A page is filtered by each field of a query, and by all together."""
        for host, binary, topic in (("h2", "b", "t"), ("h1", "b", "t"), ("h1", "a", "u"), ("h3", "c", None)):
            row = await self.register(host, binary, topic=topic)
        await self.registry.update(row.id, ServiceChanges(disabled=True, disabled_reason="Disk 100%_full"))
        gone = await self.register("h0", "a", topic="t")
        await self.registry.delete(gone.id)
        for query, expected in (
            ({}, ["a@h1", "b@h1", "b@h2", "c@h3"]),
            ({"host": "h1"}, ["a@h1", "b@h1"]),
            ({"binary": "b"}, ["b@h1", "b@h2"]),
            ({"topic": "u"}, ["a@h1"]),
            ({"with_topic": True}, ["a@h1", "b@h1", "b@h2"]),
            ({"disabled": True}, ["c@h3"]),
            ({"disabled": False, "host": "h1"}, ["a@h1", "b@h1"]),
            ({"text": "H1"}, ["a@h1", "b@h1"]),
            ({"text": "disk"}, ["c@h3"]),
            ({"text": "100%_F"}, ["c@h3"]),
            ({"text": "k_1"}, []),
            ({"text": "%"}, ["c@h3"]),
            ({"text": "/"}, []),
            ({"text": ""}, ["a@h1", "b@h1", "b@h2", "c@h3"]),
            ({"text": "h", "binary": "b", "topic": "t", "host": "h2", "disabled": False, "up": True}, ["b@h2"]),
            ({"host": "zz"}, []),
            ({"host": ""}, []),
            ({"limit": 0}, []),
        ):
            self.assertEqual(await self.found(**query), expected, query)

    async def test_page_states(self) -> None:
        """Up and down depend on age and forced_down; the totals agree."""
        rows = [await self.register(host) for host in ("h1", "h2", "h3")]
        await self.registry.update(rows[0].id, ServiceChanges(forced_down=True, disabled=True))
        young, old = {"service_down_time": 3600.0}, {"service_down_time": -3600.0}
        self.assertEqual(await self.found(up=True, **young), ["novasvc-agent@h2", "novasvc-agent@h3"])
        self.assertEqual(await self.found(up=False, **young), ["novasvc-agent@h1"])
        self.assertEqual(await self.found(up=True, **old), [])
        self.assertEqual(len(await self.found(up=False, **old)), 3)
        for query, expected in (
            (young, ServiceTotals(services=3, hosts=3, up=2, forced_down=1, disabled=1)),
            (old, ServiceTotals(services=3, hosts=3, down=2, forced_down=1, disabled=1)),
            ({**young, "up": True}, ServiceTotals(services=2, hosts=2, up=2)),
            ({**young, "host": "h1"}, ServiceTotals(services=1, hosts=1, forced_down=1, disabled=1)),
            ({**young, "limit": 1, "after": rows[1].uuid}, ServiceTotals(3, 3, up=2, forced_down=1, disabled=1)),
            ({"host": "zz"}, ServiceTotals()),
        ):
            self.assertEqual(await self.registry.count(ServiceQuery(**query)), expected, query)

    async def test_page_order(self) -> None:
        """A page has the requested order, ascending or descending; "seen" is by the last heartbeat."""
        ids = {}
        for host, binary in (("h2", "a"), ("h1", "b"), ("h1", "a"), ("h2", "b")):
            ids[f"{binary}@{host}"] = (await self.register(host, binary, topic=binary)).id
        for sort, expected in (
            ("name", ["a@h1", "a@h2", "b@h1", "b@h2"]),
            ("host", ["a@h1", "b@h1", "a@h2", "b@h2"]),
            ("id", ["a@h2", "b@h1", "a@h1", "b@h2"]),
        ):
            self.assertEqual(await self.found(sort=sort), expected)
            self.assertEqual(await self.found(sort=sort, descending=True), expected[::-1])
        rows = (await self.registry.page(ServiceQuery(sort="seen"))).rows
        self.assertEqual(rows, sorted(rows, key=lambda row: (row.created_at, row.id)))

    async def test_pages(self) -> None:
        """Consecutive pages have all rows, in every order, even if the marker row is deleted."""
        for number in range(7):
            await self.register(f"h{number * 3 % 7}", "ab"[number % 2], topic=None)
        for sort in get_args(Sort):
            for descending in (False, True):
                query = ServiceQuery(sort=sort, descending=descending, limit=3)
                whole = [row.id for row in (await self.registry.page(attrs.evolve(query, limit=None))).rows]
                first = await self.registry.page(query)
                second = await self.registry.page(attrs.evolve(query, after=first.rows[-1].uuid))
                third = await self.registry.page(attrs.evolve(query, after=str(second.rows[-1].id)))
                pages = (first, second, third)
                self.assertEqual([row.id for page in pages for row in page.rows], whole, (sort, descending))
                self.assertEqual([page.more for page in pages], [True, True, False])
        last = first.rows[-1]
        await self.registry.delete(last.id)
        for after in (last.uuid, str(last.id)):
            self.assertEqual((await self.registry.page(attrs.evolve(query, after=after))).rows[0].id, second.rows[0].id)

    async def test_page_is_full(self) -> None:
        """A page with all remaining rows has more = False."""
        await self.register("h1")
        page = await self.registry.page(ServiceQuery(limit=1))
        self.assertEqual((len(page.rows), page.more), (1, False))
        self.assertEqual((await self.registry.page(ServiceQuery(after=page.rows[0].uuid))).rows, [])

    async def test_page_after_nothing(self) -> None:
        """A marker that never existed is a ServiceNotFoundError that names it."""
        for name in (str(NO_SUCH_ID), NO_SUCH_UUID, "9" * 40, "'; --"):
            error = await self.assert_fails(ServiceNotFoundError, self.registry.page(ServiceQuery(after=name)))
            self.assertEqual(error.args, (name,))

    async def test_page_after_an_id(self) -> None:
        """In the order of ids an id is a marker without a row, which may have been purged."""
        ids = [(await self.register(f"h{number}")).id for number in range(3)]
        after = str(NO_SUCH_ID)
        for descending, expected in ((False, []), (True, ids[::-1])):
            page = await self.registry.page(ServiceQuery(sort="id", descending=descending, after=after))
            self.assertEqual([row.id for row in page.rows], expected)

    async def test_disable(self) -> None:
        """Disabling sets the reason; disabling without one, or enabling, clears it."""
        first = await self.register()
        steps = (
            (ServiceChanges(disabled=True, disabled_reason="disk"), (True, "disk")),
            (ServiceChanges(forced_down=True), (True, "disk")),
            (ServiceChanges(disabled=True), (True, None)),
            (ServiceChanges(disabled=True, disabled_reason="fan"), (True, "fan")),
            (ServiceChanges(disabled=False), (False, None)),
        )
        for changes, expected in steps:
            record = await self.registry.update(first.id, changes)
            self.assertEqual((record.disabled, record.disabled_reason), expected)
            self.assertEqual(record, await self._same_age(record))
        self.assertTrue(record.forced_down)

    async def _same_age(self, record: ServiceRecord) -> ServiceRecord:
        """Read a row again, with the age that it had: only the age may differ."""
        again: ServiceRecord = await self.registry.get(record.uuid)
        fields = {name: getattr(again, name) for name in again.__slots__ if not name.startswith("__")}
        return ServiceRecord(**{**fields, "age": record.age})

    async def test_force_down(self) -> None:
        """forced_down does not change report_count and last_seen_up."""
        first = await self.register()
        await self.registry.beat(first.id)
        before = await self.registry.get(first.uuid)
        down = await self.registry.update(first.id, ServiceChanges(forced_down=True))
        up = await self.registry.update(first.id, ServiceChanges(forced_down=False))
        self.assertEqual((down.forced_down, up.forced_down), (True, False))
        self.assertEqual((up.report_count, up.last_seen_up), (1, before.last_seen_up))

    async def test_same_values(self) -> None:
        """An update without a change keeps updated_at."""
        first = await self.register()
        for changes in (ServiceChanges(), ServiceChanges(disabled=False, forced_down=False)):
            self.assertIsNone((await self.registry.update(first.id, changes)).updated_at)

    async def test_delete(self) -> None:
        """A deleted row is not found any more; a new row for the same service starts from zero."""
        first = await self.register()
        await self.registry.beat(first.id)
        self.assertIsNone(await self.registry.delete(first.id))
        self.assertEqual(await self.registry.list(None, None, None), [])
        for deferred in (
            self.registry.get(first.uuid),
            self.registry.get(str(first.id)),
            self.registry.beat(first.id),
            self.registry.delete(first.id),
            self.registry.update(first.id, ServiceChanges(disabled=True)),
        ):
            await self.assert_fails(ServiceNotFoundError, deferred)
        second = await self.register()
        self.assertNotEqual((second.id, second.uuid), (first.id, first.uuid))
        self.assertEqual(second.report_count, 0)

    async def test_delete_again_and_again(self) -> None:
        """A service may have any number of deleted rows beside a live one."""
        for _ in range(3):
            await self.registry.delete((await self.register()).id)
        self.assertEqual((await self.register()).report_count, 0)

    async def test_any_text(self) -> None:
        """Text is stored unchanged: quotes, spaces, letters of any script."""
        host, reason = "höst'; DROP TABLE services; --", 'Grüße "%s" \u65e5\u672c\u8a9e \U0001f525'
        first = await self.register(host)
        record = await self.registry.update(first.id, ServiceChanges(disabled=True, disabled_reason=reason))
        self.assertEqual((record.host, record.disabled_reason), (host, reason))
        self.assertEqual([row.id for row in await self.registry.list(host, None, None)], [first.id])

    # -- leases --------------------------------------------------------------------------------------

    async def hold(self, owner: str, *tasks: str, seconds: float = 30, **given: Any) -> list[Lease]:
        request = LeaseRequest(
            topic=given.get("topic", "shop"),
            holder=f"host of {owner}",
            owner=owner,
            seconds=seconds,
            tasks=tasks or ("nightly",),
            runs=given.get("runs", {}),
        )
        leases: list[Lease] = await self.registry.hold_leases(request)
        return leases

    async def expire(self, task: str = "nightly") -> None:
        """Let the lease of a task end: its holder shortens it, and that passes on the database's clock."""
        (lease,) = [each for each in await self.registry.list_leases() if each.task == task]
        await self.hold(lease.owner or "", task, seconds=0.1)
        while (await self.registry.list_leases())[0].expires_in > 0:
            await self.pass_time(0.01)

    async def pass_time(self, seconds: float) -> None:
        """Wait; a registry on a Clock advances it."""
        clock = getattr(self.registry, "_clock", reactor)
        passing = deferLater(clock, seconds)
        if isinstance(clock, Clock):
            clock.advance(seconds)
        await passing

    async def test_first_lease(self) -> None:
        """The first contender gets a lease with the fencing number 1, for the time it asked for."""
        self.assertEqual(await self.registry.list_leases(), [])
        (lease,) = await self.hold("a")
        self.assertEqual((lease.topic, lease.task, lease.fencing), ("shop", "nightly", 1))
        self.assertEqual((lease.owner, lease.holder), ("a", "host of a"))
        self.assertTrue(25 < lease.expires_in <= 30, lease)
        self.assertTrue(0 <= lease.held_for < 5, lease)
        self.assertIsNone(lease.acquired_at.tzinfo)
        self.assertEqual((lease.last_run_at, lease.ran_ago, lease.last_due), (None, None, None))
        self.assertFalse(lease.is_free)

    async def test_second_contender(self) -> None:
        """While a lease lasts, another contender does not get it, and is told who has it."""
        await self.hold("a")
        (lease,) = await self.hold("b")
        self.assertEqual((lease.owner, lease.holder, lease.fencing), ("a", "host of a", 1))

    async def test_renewed_lease(self) -> None:
        """A renewed lease ends later, and keeps its fencing number and the time when it was acquired."""
        (first,) = await self.hold("a", seconds=5)
        (again,) = await self.hold("a", seconds=60)
        self.assertEqual((again.fencing, again.acquired_at, again.owner), (1, first.acquired_at, "a"))
        self.assertTrue(50 < again.expires_in <= 60, again)

    async def test_ended_lease(self) -> None:
        """A lease that has ended goes to the next contender, under the next fencing number."""
        await self.hold("a")
        await self.expire()
        (free,) = await self.registry.list_leases()
        self.assertTrue(free.is_free)
        (lease,) = await self.hold("b")
        self.assertEqual((lease.owner, lease.fencing, lease.holder), ("b", 2, "host of b"))
        self.assertLess(lease.held_for, lease.known_for)
        self.assertGreaterEqual(lease.acquired_at, free.acquired_at)
        self.assertEqual([each.owner for each in await self.hold("a")], ["b"])

    async def test_ended_lease_of_the_same_owner(self) -> None:
        """An owner whose lease has ended gets it under a new fencing number: others may have had it meanwhile."""
        await self.hold("a")
        await self.expire()
        self.assertEqual([lease.fencing for lease in await self.hold("a")], [2])

    async def test_released_lease(self) -> None:
        """A released lease is free at once, keeps its row, and its number grows; others' leases are not released."""
        await self.hold("a")
        self.assertIsNone(await self.registry.release_leases("shop", "b", ["nightly"]))
        self.assertEqual([lease.owner for lease in await self.hold("b")], ["a"])
        self.assertIsNone(await self.registry.release_leases("shop", "a", ["nightly", "no such"]))
        (free,) = await self.registry.list_leases()
        self.assertEqual((free.holder, free.owner, free.fencing, free.is_free), (None, None, 1, True))
        self.assertEqual([(lease.owner, lease.fencing) for lease in await self.hold("b")], [("b", 2)])

    async def test_several_leases(self) -> None:
        """One request is about several tasks, each with a lease of its own; other topics' leases are apart."""
        await self.hold("a", "one")
        found = await self.hold("b", "two", "one")
        self.assertEqual([(lease.task, lease.owner) for lease in found], [("one", "a"), ("two", "b")])
        await self.hold("c", "one", topic="other")
        found = await self.registry.list_leases()
        self.assertEqual(
            [(lease.topic, lease.task, lease.owner) for lease in found],
            [("other", "one", "c"), ("shop", "one", "a"), ("shop", "two", "b")],
        )

    async def test_exact_names(self) -> None:
        """Names of topics and tasks that differ in case or accents are different names."""
        names = ("nightly", "Nightly", "n\u00efghtly", "'; --")
        found = await self.hold("a", *names)
        self.assertEqual(sorted(lease.task for lease in found), sorted(names))

    async def test_runs(self) -> None:
        """A holder's run is stamped, with its due time, and the next holder is told; runs of others are not."""
        await self.hold("a", runs={"nightly": 1_790_000_000.5})
        (lease,) = await self.hold("b", runs={"nightly": 5.0})
        self.assertEqual(lease.last_due, 1_790_000_000.5)
        assert lease.last_run_at is not None
        self.assertTrue(0 <= (lease.ran_ago or 0) < 5, lease)
        await self.expire()
        (lease,) = await self.hold("b")
        self.assertEqual((lease.owner, lease.last_due), ("b", 1_790_000_000.5))
        self.assertEqual([each.last_due for each in await self.hold("b", runs={"nightly": None})], [None])

    async def test_contention(self) -> None:
        """Of many contenders for a new, an ended or a released lease exactly one gets it."""
        for fencing in (1, 2, 3):
            found = await gatherResults([self.contend(f"owner {number}") for number in range(8)])
            holders = {leases[0].owner for leases in found}
            self.assertEqual(len(holders), 1, holders)
            self.assertEqual({leases[0].fencing for leases in found}, {fencing})
            if fencing == 1:
                await self.expire()
            else:
                await self.registry.release_leases("shop", holders.pop(), ["nightly"])

    def contend(self, owner: str) -> Deferred[list[Lease]]:
        return Deferred.fromCoroutine(self.hold(owner))


def make_registry_tests(fixture: Fixture) -> type[RegistryContract]:
    """Make the tests of a provider of IServiceRegistry.

    :param fixture: see Fixture.
    :return: a TestCase, to be subclassed under a name that says whose it is.
    """
    return type("RegistryTests", (RegistryContract,), {"fixture": staticmethod(fixture)})
