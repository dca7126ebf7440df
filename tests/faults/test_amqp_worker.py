"""What takes a service down, or could by its number; each in a process of its own."""

import json
import sys

import pytest
from twisted.internet.threads import deferToThread

from novasvc.errors import QuarantinedError
from tests.e2e.process import ROOT, Process
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase

QUEUED = 100_000
GROWTH = 30.0
"""MiB that a worker may grow by, however much waits for it."""
STARTS = 10
"""Workers that we are ready to lose to one message."""


class WorkerCase(AMQPCase):
    def work(self) -> Process:
        command = [sys.executable, "-m", "tests.faults.amqp_worker", self.url, TOPIC]
        return Process(self, command, ROOT, PYTHONPATH=str(ROOT))


class PoisonTests(WorkerCase):
    @property
    def waiting(self) -> dict[str, int]:
        return {queue: number for queue, number in self.broker.queues(self.vhost).items() if number}

    async def test_poison(self) -> None:
        """A request that kills each worker is quarantined, its caller gets the error, and the next worker lives."""
        client = await self.client(patience=50.0)
        worker = self.work()
        await deferToThread(worker.wait_for, "serving")
        call = client.call(CONTEXT, "die")
        call.addErrback(lambda failure: failure)  # it is looked at below
        for _ in range(STARTS):
            await self.until(lambda worker=worker: call.called or worker.popen.poll() is not None)
            if call.called:
                break
            worker = self.work()
        error = await self.assertFailure(call, QuarantinedError)
        self.assertIn("'die'", str(error))
        self.assertEqual(await client.call(CONTEXT, "live"), "alive")
        await self.until(lambda: self.waiting == {f"{TOPIC}_quarantine": 1})
        self.assertEqual(await client.call(CONTEXT, "live"), "alive")


@pytest.mark.slow
class BacklogTests(WorkerCase):
    async def test_backlog(self) -> None:
        """A hundred thousand messages that wait cost a worker no memory, nor do those that it has served."""
        self.broker.declare_queue(self.vhost, TOPIC, durable=False)
        # Without an id they are not taken for copies of one.
        body = json.dumps({"oslo.version": "2.0", "oslo.message": '{"method": "slow", "args": {}}'}).encode()
        await deferToThread(self.broker.fill_queue, self.vhost, TOPIC, body, QUEUED)
        worker = self.work()
        opened = await deferToThread(worker.wait_for, r"opened ([\d.]+)")
        first = await deferToThread(worker.wait_for, r"called 1000 ([\d.]+)")
        last = await deferToThread(worker.wait_for, r"called 20000 ([\d.]+)")
        for later in (first, last):
            self.assertLess(float(later[1]) - float(opened[1]), GROWTH)
