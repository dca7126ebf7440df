"""The part of the contract of IServiceRegistry that is about outages and observers."""

from datetime import datetime
from typing import Any

import attrs
from twisted.internet.defer import gatherResults

from novasvc.errors import ObserverSupersededError
from novasvc.registry.observation import Observation
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.verdicts import judge_all

DOWN_TIME = 1.0
"""The service_down_time of the registry: it records silences of three quarters of a second."""

RULE = VerdictRule(service_down_time=DOWN_TIME)
SEEN = Observation(
    service_id=1,
    host="größe",
    binary="agent",
    status="suspect",
    number=1,
    told=False,
    since=datetime(2026, 11, 29, 12, 0, 0, 250000),  # noqa: DTZ001 - the table's form
)


class VerdictContract:
    registry: Any

    async def test_no_outages(self: Any) -> None:
        """While services send heartbeats there are no outages, and all are alive."""
        for number in range(6):
            await self.registry.beat((await self.begin(host=f"h{number}")).id)
        self.assertEqual(await self.registry.outages(RULE), Outages())
        fleet = await judge_all(self.registry, attrs.evolve(RULE, service_down_time=60))
        self.assertEqual([verdict.status for _, verdict in fleet.services], ["alive"] * 6)

    async def test_stall(self: Any) -> None:
        """Silences that a heartbeat ends are recorded: a service whose heartbeat is still missing is not down."""
        records = [await self.begin(host=f"h{number}") for number in range(6)]
        await gatherResults([self.registry.beat(record.id, 1) for record in records])
        await self.pass_time(1.4)
        # On a busy machine there may have been another one, between the first heartbeats.
        (stall,) = [each for each in (await self.registry.outages(RULE)).stalls if each.ended is None]
        self.assertEqual(stall.binary, "novasvc-agent")
        await gatherResults([self.registry.beat(record.id, 1) for record in records[:4]])
        await self.registry.beat(records[4].id)
        await self.pass_time(0.1)  # outages are kept for a moment
        (stall,) = [each for each in (await self.registry.outages(RULE)).stalls if each.heard == stall.heard]
        self.assertGreater(stall.ended, stall.began)
        fleet = await judge_all(self.registry, RULE)
        self.assertNotIn("down", [verdict.status for _, verdict in fleet.services])

    async def test_start_that_goes_on(self: Any) -> None:
        """A service that tells that it still starts is heard at that moment, by readers of rows and of outages."""
        for number in range(6):
            record = await self.begin(host=f"h{number}")
        await self.pass_time(1.4)
        told = [self.registry.enter(each, 1, "starting", until=0.0) for each in range(record.id - 5, record.id + 1)]
        await gatherResults(told)
        self.assertEqual(await self.registry.outages(RULE), Outages())
        fleet = await judge_all(self.registry, RULE)
        self.assertEqual([verdict.status for _, verdict in fleet.services], ["alive"] * 6)

    async def test_observations(self: Any) -> None:
        """Observations are kept for each observer and service, replaced, and deleted."""
        self.assertEqual(await self.registry.observations("a"), [])
        other = attrs.evolve(SEEN, service_id=2, status="alive", since=None)
        await self.registry.observe("a", 3, [other, SEEN])
        await self.registry.observe("b", 1, [attrs.evolve(SEEN, service_id=9)])
        self.assertEqual(await self.registry.observations("a"), [SEEN, other])
        told = attrs.evolve(SEEN, status="down", number=2, told=True)
        await self.registry.observe("a", 3, [told, attrs.evolve(other, status=None)])
        self.assertEqual(await self.registry.observations("a"), [told])
        self.assertEqual(len(await self.registry.observations("b")), 1)

    async def test_superseded_observer(self: Any) -> None:
        """A process with a smaller fencing number writes nothing."""
        await self.registry.observe("a", 3, [])
        await self.registry.observe("a", 5, [SEEN])
        error = await self.assert_fails(ObserverSupersededError, self.registry.observe("a", 4, []))
        self.assertIn("fencing number 5, this one has 4", str(error))
        await self.assert_fails(
            ObserverSupersededError, self.registry.observe("a", 4, [attrs.evolve(SEEN, status="down")])
        )
        self.assertEqual(await self.registry.observations("a"), [SEEN])
