"""Supervisors that are told to end: while their workers work, while they start, and when it is to be at once."""

import itertools
import os
import signal
import time
from collections import Counter

import pytest
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from tests.faults.amqp_rig import CONTEXT, AMQPCase
from tests.faults.fleet_rig import Fleet, FleetCase, Fleets, until
from tests.servers.process import free_ports

TOPIC = "agent"
GRACE = 3.0
CALLERS = 12
SHORT = 0.1
"""Seconds that a call takes."""
AT_ONCE = 3.0
"""Seconds from a signal that ends all at once to the end: two for the workers, and one."""


class DrainCase(Fleets, AMQPCase):
    def node(self, host: str, workers: int, grace: float = GRACE) -> Fleet:
        options = ("--workers", str(workers), "--transport-url", self.url, "--graceful-shutdown-timeout", str(grace))
        return self.twistd(*options, host=host)

    async def ends(self, fleet: Fleet, number: int = signal.SIGTERM) -> float:
        """Wait for its end by a signal; return the seconds that it took."""
        began = time.monotonic()
        self.assertEqual(await deferToThread(fleet.wait), -number, fleet.output)
        return time.monotonic() - began

    def journal(self, *fleets: Fleet) -> Counter[str]:
        """Return how often each line was written."""
        return Counter(line for fleet in fleets for line in fleet.journal)


class LoadTests(DrainCase):
    async def test_load(self) -> None:
        """Nodes that are told to end under load, or all their processes, lose no call or cast and do none twice."""
        one, group, last = self.node("h1", 2), self.node("h2", 2), self.node("h3", 1)
        for fleet, workers in ((one, 2), (group, 2), (last, 1)):
            await deferToThread(fleet.ready, workers)
        client = await self.client(topic=TOPIC, patience=20.0)
        numbers, asked, under_way = itertools.count(), Counter[str](), [True]

        async def load() -> None:
            while under_way:
                number = next(numbers)
                method = ("work", "work_again", "cast")[number % 3]
                what = f"{method}-{number}"
                asked[f"done {what}"] += 1
                if method == "cast":
                    await client.cast(CONTEXT, "work", what=what, seconds=SHORT)
                else:
                    self.assertEqual(await client.call(CONTEXT, method, what=what, seconds=SHORT), what)

        callers = DeferredList([Deferred.fromCoroutine(load()) for _ in range(CALLERS)], fireOnOneErrback=True)
        for fleet, kill in ((one, os.kill), (group, os.killpg)):
            await self.until(lambda fleet=fleet: len(fleet.journal) > 2 * CALLERS)
            kill(fleet.pid, signal.SIGTERM)
            self.assertLess(await self.ends(fleet), GRACE + 1)
            self.assertNotIn("killed", fleet.output)
        under_way.clear()
        await callers
        await self.until(lambda: self.journal(one, group, last).keys() >= asked.keys())
        self.assertEqual(max(self.journal(one, group, last).values()), 1)


class UnfinishedTests(DrainCase):
    """A call that may run again, and is under way for longer than its node has, is done by another node."""

    async def assert_rescued(self, *signals: int, grace: float, bound: float) -> None:
        """Send a node signals, each when it has answered to the one before."""
        one = self.node("h1", 2, grace)
        await deferToThread(one.ready, 2)
        client = await self.client(topic=TOPIC, patience=30.0)
        call = client.call(CONTEXT, "work_again", what="precious", seconds=60.0, on="h1")
        await self.until(lambda: "begun precious" in one.journal)
        other = self.node("h2", 0)
        await deferToThread(other.says, "is running")
        os.kill(one.pid, signals[0])
        for number in signals[1:]:
            await deferToThread(one.says, "is draining: 1 call under way")
            os.kill(one.pid, number)
        self.assertLess(await self.ends(one, signals[0]), bound)
        self.assertEqual(await call, "precious")
        # What one worker gives back, another may take up that hears a moment later that it is to end, too.
        self.assertEqual({*one.journal}, {"begun precious"})
        self.assertEqual(other.journal, ["begun precious", "done precious"])
        self.assertNotIn("killed", one.output)

    async def test_deadline(self) -> None:
        """After SIGTERM the node ends within its deadline and a second."""
        await self.assert_rescued(signal.SIGTERM, grace=GRACE, bound=GRACE + 1)

    async def test_second_term(self) -> None:
        """After a second SIGTERM the node ends at once."""
        await self.assert_rescued(signal.SIGTERM, signal.SIGTERM, grace=60.0, bound=AT_ONCE)

    @pytest.mark.long
    async def test_interrupt(self) -> None:
        """After SIGINT, too."""
        await self.assert_rescued(signal.SIGINT, grace=60.0, bound=AT_ONCE)


class StartTests(FleetCase):
    """SIGTERM before the workers are ready."""

    def assert_prompt(self, fleet: Fleet, trouble: str | None = None) -> None:
        """Wait until all workers are starting, and see that it ends."""
        until(lambda: [(row["state"], row["trouble"]) for row in fleet.workers()] == [("starting", trouble)] * 2)
        began = time.monotonic()
        self.assertEqual(fleet.stop(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, AT_ONCE)
        self.assertNotIn("Traceback", fleet.output)
        self.assertNotIn("restarting it", fleet.output)

    def test_forkserver(self) -> None:
        """A supervisor ends promptly while its forkserver is held up by a module."""
        (self.folder / "slow.py").write_text("while True: pass")
        fleet = self.twistd("--workers", "2", manager="slow.Manager", PYTHONPATH=str(self.folder))
        self.assert_prompt(fleet)

    def test_hook(self) -> None:
        """A supervisor ends promptly while its workers wait in a manager's hook."""
        fleet = self.twistd("--workers", "2", manager="Waits")
        fleet.says("worker 1 .* starting agent node")
        fleet.says("worker 2 .* starting agent node")
        self.assert_prompt(fleet)

    @pytest.mark.long
    def test_broker_away(self) -> None:
        """A supervisor ends promptly while its workers wait for a broker."""
        (port,) = free_ports(1)
        fleet = self.twistd("--workers", "2", "--transport-url", f"amqp://guest:guest@127.0.0.1:{port}//")
        self.assert_prompt(fleet, "waiting for the broker")
