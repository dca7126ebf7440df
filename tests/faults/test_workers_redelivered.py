"""What a killed worker had in its hands: run again by the others, side by side, and never twice if it must not be."""

import os
import signal
from collections import Counter
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from novasvc.errors import RPCTimeoutError
from tests.faults.amqp_rig import CONTEXT, AMQPCase
from tests.faults.fleet_rig import Fleet, Fleets

TOPIC = "agent"
WORKERS = 3
CONCURRENCY = 16


class RedeliveredCase(Fleets, AMQPCase):
    async def node(self, concurrency: int) -> tuple[Fleet, dict[int, int]]:
        options = ("--workers", str(WORKERS), "--transport-url", self.url, "--rpc-concurrency", str(concurrency))
        fleet = self.twistd(*options)
        return fleet, await deferToThread(fleet.ready, WORKERS)

    async def outcomes(self, calls: list[Deferred[Any]]) -> Counter[str]:
        """Return how the calls ended: "answered", or the class of the error."""
        ended = await DeferredList(calls, consumeErrors=True)
        return Counter("answered" if good else result.type.__name__ for good, result in ended)


class IdempotentTests(RedeliveredCase):
    async def test_side_by_side(self) -> None:
        """After a kill -9 the idempotent calls of the dead worker run again side by side, and none times out."""
        seconds = 2.0
        fleet, pids = await self.node(CONCURRENCY)
        # One after the other, what the dead worker had would take longer than its callers wait.
        client = await self.client(topic=TOPIC, patience=CONCURRENCY * seconds * 0.75)
        every = WORKERS * CONCURRENCY
        calls = [client.call(CONTEXT, "work_again", what=n, seconds=seconds) for n in range(every)]
        await self.until(lambda: len(fleet.journal) >= every)
        os.kill(pids[1], signal.SIGKILL)
        self.assertEqual(await self.outcomes(calls), {"answered": every})
        journal = Counter(fleet.journal)
        self.assertEqual({journal[f"done {n}"] for n in range(every)}, {1})
        self.assertEqual(max(journal.values()), 2)


class AtMostOnceTests(RedeliveredCase):
    @pytest.mark.long
    async def test_never_began(self) -> None:
        """Calls that the dead worker had received and not begun are run, although their method must not run twice."""
        concurrency = 4
        fleet, pids = await self.node(concurrency)
        client = await self.client(topic=TOPIC, patience=20.0)
        # Each worker runs four, and has received four more.
        every = 2 * WORKERS * concurrency
        calls = [client.call(CONTEXT, "work", what=n, seconds=3.0) for n in range(every)]
        running = WORKERS * concurrency
        await self.until(lambda: len(fleet.journal) >= running)
        # Those that run are acknowledged. The others have left the broker, and a worker that answers twice has read
        # what was in its socket before.
        waiting = every - running
        await self.until_asked(lambda: sum(self.broker.unacknowledged(self.vhost).values()) == waiting)
        for _ in range(2):
            await deferToThread(fleet.ask, "dump")
        os.kill(pids[1], signal.SIGKILL)
        outcomes = await self.outcomes(calls)
        # What ran in the dead worker has no answer, and nobody says that it did not run.
        self.assertEqual(outcomes, {"answered": every - concurrency, RPCTimeoutError.__name__: concurrency})
        self.assertEqual(max(Counter(fleet.journal).values()), 1)
