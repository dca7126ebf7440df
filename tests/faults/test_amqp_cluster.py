"""A cluster of three that loses one."""

import tempfile
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from novasvc.errors import RPCError
from novasvc.transport.amqp import AMQPTransport, BrokerAddress
from tests.faults.amqp_rig import CONTEXT, AMQPCase
from tests.faults.test_amqp_reachability import INTERVAL, TWO_BEATS, WITHHELD, ReachabilityCase
from tests.servers.rabbitmq import Broker, Cluster

DISAGREE = f"{WITHHELD}, because the broker nodes disagree"
SILENT = f"{WITHHELD}, because the broker did not answer"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(180)
class ClusterTests(AMQPCase):
    def choose_broker(self) -> Broker:
        directory = tempfile.TemporaryDirectory(prefix="novasvc-tests-", ignore_cleanup_errors=True)
        self.addCleanup(directory.cleanup)
        self.cluster = Cluster(Path(directory.name))
        self.addCleanup(self.cluster.end)
        self.cluster.start()
        return self.cluster.nodes[1]  # which lives

    async def test_node_killed(self) -> None:
        """When the node that we are connected to is killed, the next one is taken, and no idempotent call is lost."""
        url = self.cluster.url(self.vhost)
        options = {"quorum_queue": True, "transient_quorum_queue": True, "heartbeat": 2.0, "operation_timeout": 30.0}
        server = await self.serve(await self.connect(url, **options))
        calling = await self.connect(url, **options)
        client = await self.client(calling, patience=45.0)
        await self.assert_serves(client)
        calls = []
        for number in range(200):
            calls.append(client.call(CONTEXT, "hang_again", what=number))
            self.diary.let_go()
            if number == 100:
                await self.until(lambda: not len(calling._publisher))  # the cluster has answered for all
                self.cluster.nodes[0].kill()
            await deferLater(reactor, 0.01)
        while not all(call.called for call in calls):
            self.diary.let_go()
            await self.until(lambda: self.diary.hanging or all(call.called for call in calls), 50.0)
        self.assertEqual(await self.outcomes(calls), list(range(200)))
        self.assertTrue(server.live)
        self.assertLess(await self.assert_comes_back(client), 3.0)
        once = client.call(CONTEXT, "note", what="once")
        self.assertFalse(any(isinstance(outcome, RPCError) for outcome in await self.outcomes([once])))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(240)
class SplitTests(ReachabilityCase):
    def choose_broker(self) -> Broker:
        directory = tempfile.TemporaryDirectory(prefix="novasvc-tests-", ignore_cleanup_errors=True)
        self.addCleanup(directory.cleanup)
        self.cluster = Cluster(Path(directory.name), size=2)
        self.addCleanup(self.cluster.end)
        self.cluster.start()
        return self.cluster.nodes[0]

    async def test_disagreeing(self) -> None:
        """A node that consumes at one host and whose callers are at another is not up while these do not agree."""
        one, other = self.cluster.nodes

        def make() -> AMQPTransport:
            transport = self.make_transport(heartbeat=2.0)
            transport.connections[0].address = BrokerAddress.parse(other.url(self.vhost))
            return transport

        service = await self.node(make=make)
        await self.assert_reached(service)
        self.cluster.split()
        # From 4.3 on, the metadata is in Khepri. Of two broker nodes that are apart, none has the majority or answers.
        divided = one.release < (4, 3)
        problem = DISAGREE if divided else SILENT
        await self.until(lambda: self.said(problem), TWO_BEATS)
        before = await self.beats()
        await deferLater(reactor, 5 * INTERVAL)
        self.assertEqual(await self.beats(), before)
        self.assertEqual(len(self.said(WITHHELD)), 1)
        if divided:
            why = f"the service consumes at 127.0.0.1:{one.port}, and 127.0.0.1:{other.port} does not"
            self.assertIn(why, self.said(WITHHELD)[0])
        self.assertEqual(self.said("lost its channel"), [])

        self.cluster.heal(loser=other)
        await deferToThread(other.wait_ready)
        await self.until(lambda: self.said("heartbeats resumed"))
        await self.assert_reached(service)
        self.assertEqual(len(self.said(problem)), 1)
