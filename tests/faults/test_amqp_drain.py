"""Nodes on a real broker that are told to end: in the midst of operations, and while the broker is away."""

import os
import random
import signal
import time

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from novasvc.errors import RPCTimeoutError
from tests.faults.amqp_rig import CONTEXT, ProxyCase
from tests.faults.drain_rounds import KINDS, DrainCase
from tests.faults.fleet_rig import Fleet, Fleets

ROUNDS = 2
"""More are run by tests.faults.drain_rounds itself."""
SECONDS = 0.5
"""That a call takes."""
HANGING = 8.0
"""Seconds for one whose broker hangs: two for its consumers, three for the goodbye, and what the machine needs."""
PROMPT = 1.5
"""Seconds in which a node ends that has nothing to wait for."""


class OperationTests(DrainCase):
    """An operation that depends on calls back to its node ends well while the node drains."""

    async def assert_none_fails(self, kind: str) -> None:
        tally = await self.check(ROUNDS, KINDS[kind], random.Random(1))
        self.assertGreater(min(tally.under_way), 0)

    @pytest.mark.long
    async def test_single(self) -> None:
        """In a process without workers."""
        await self.assert_none_fails("single")

    async def test_workers(self) -> None:
        """In workers, which share the queue that the calls come to."""
        await self.assert_none_fails("workers")

    @pytest.mark.long
    async def test_oslo_middle(self) -> None:
        """If the service that calls back is written with oslo.messaging."""
        await self.assert_none_fails("oslo-middle")

    async def test_oslo_callers(self) -> None:
        """If those who begin the operations are."""
        await self.assert_none_fails("oslo-callers")


class BrokerAwayTests(Fleets, ProxyCase):
    """A node that has replies to give, and no broker, is told to end."""

    async def begin(self, patience: float, grace: float) -> tuple[Fleet, Deferred[None]]:
        """Start a node, have it begin a call, and take its broker away.

        :param patience: seconds that the caller waits.
        :param grace: seconds that the node has to end.
        :return: the node, and what fires when the caller's time is over.
        """
        options = ("--transport-url", self.url, "--graceful-shutdown-timeout", str(grace))
        node = self.twistd(*options)
        await deferToThread(node.says, "is running")
        client = await self.client(await self.connect(self.direct_url), topic="agent")
        call = client.prepare(timeout=patience).call(CONTEXT, "work", what="it", seconds=SECONDS)
        await self.until(lambda: "begun it" in node.journal)
        self.proxy.refuses = True
        self.proxy.reset()
        await deferToThread(node.says, "is down")
        return node, self.assertFailure(call, RPCTimeoutError)

    async def end(self, node: Fleet) -> float:
        """Tell a node to end; return the seconds that it took."""
        began = time.monotonic()
        os.kill(node.pid, signal.SIGTERM)
        self.assertEqual(await deferToThread(node.wait), -signal.SIGTERM, node.output)
        self.assertNotIn("Traceback", node.output)
        return time.monotonic() - began

    async def test_time_over(self) -> None:
        """A reply whose caller has stopped waiting is dropped, the log says so, and the node ends at once."""
        node, over = await self.begin(patience=2.0, grace=60.0)
        await self.until(lambda: "done it" in node.journal)
        await over
        await deferToThread(node.says, "the reply to work was dropped: its caller has stopped waiting")
        self.assertLess(await self.end(node), PROMPT)

    @pytest.mark.long
    async def test_caller_waits(self) -> None:
        """A reply is buffered as long as its caller waits, and no longer."""
        node, over = await self.begin(patience=3.0, grace=60.0)
        await self.until(lambda: "done it" in node.journal)
        self.assertLess(await self.end(node), 3.0 + PROMPT)
        await over
        self.assertIn("the reply to work was dropped: its caller has stopped waiting", node.output)

    async def test_comes_back(self) -> None:
        """It is given if the broker comes back in time."""
        node, over = await self.begin(patience=20.0, grace=60.0)
        over.addErrback(lambda failure: failure.trap(self.failureException) and None)  # it has a result
        await self.until(lambda: "done it" in node.journal)
        os.kill(node.pid, signal.SIGTERM)
        await deferToThread(node.says, "is draining")
        self.proxy.heal()
        self.assertEqual(await deferToThread(node.wait), -signal.SIGTERM, node.output)
        await over
        self.assertNotIn("was dropped", node.output)

    async def test_deadline(self) -> None:
        """No reply is buffered beyond the deadline of the drain, and the log says what was not sent."""
        node, over = await self.begin(patience=8.0, grace=2.0)
        await self.until(lambda: "done it" in node.journal)
        self.assertLess(await self.end(node), 2.0 + PROMPT)
        self.assertIn("the reply to work was dropped: it could not be published", node.output)
        await over

    @pytest.mark.long
    async def test_hanging(self) -> None:
        """A node whose broker does not answer, and is not known to be away yet, ends in a few seconds."""
        node = self.twistd("--transport-url", self.url)
        await deferToThread(node.says, "is running")
        self.proxy.change(hangs=True)
        self.assertLess(await self.end(node), HANGING)

    async def test_nothing_to_wait_for(self) -> None:
        """A node that has nothing to give ends at once, even if it was cut off in the midst of its drain."""
        node, over = await self.begin(patience=2.0, grace=60.0)
        await over
        await deferLater(reactor, 2 * SECONDS)
        self.assertLess(await self.end(node), PROMPT)
