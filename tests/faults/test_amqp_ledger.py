"""A broker that is killed again and again under calls: how each of them ends."""

from typing import Any, ClassVar

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from novasvc.errors import UnconfirmedError, UndeliverableError
from tests.faults.amqp_rig import AMQPCase
from tests.faults.ledger import Ledger, Worker
from tests.servers import Broker, fragile_broker

IN_FLIGHT = 64
TIMEOUT = 60.0
"""Seconds: more than a broker needs to come back on a busy machine."""
SOON = 5.0
"""Seconds in which a call that must not be sent again ends, whatever the timeout is; most of it for a busy machine."""
KILLS = 2


class LedgerCase(AMQPCase):
    timeout = 170  # trial's own
    options: ClassVar[dict[str, Any]] = {}

    def choose_broker(self) -> Broker:
        return fragile_broker()

    async def kill_under_load(self) -> Ledger:
        """Kill the broker under 64 calls, several times; return what became of all calls."""
        worker = Worker()
        for host in ("h1", "h2"):
            await self.serve(await self.connect(**self.options), server=host, diary=worker)  # type: ignore[arg-type]
        client = await self.client(await self.connect(**self.options), patience=TIMEOUT)
        ledger = Ledger(client, worker, seconds=0.05)
        self.addCleanup(ledger.stop)
        self.broker.flush_tables()  # or the first kill may find a quorum queue that its broker never finds again
        ledger.begin(IN_FLIGHT)
        for _ in range(KILLS):
            await self.until_ended(ledger, 500)
            self.assertGreater(ledger.in_flight, IN_FLIGHT / 2)
            self.broker.kill()
            await deferLater(reactor, 0.5)
            self.broker.start()
            await deferToThread(self.broker.wait_ready)
        await self.until_ended(ledger, 500)
        await ledger.end()
        return ledger

    async def until_ended(self, ledger: Ledger, calls: int) -> None:
        """Wait until so many more calls have ended."""
        before = len(ledger.entries)
        await self.until(lambda: len(ledger.entries) > before + calls, TIMEOUT)

    def assert_true_outcomes(self, ledger: Ledger) -> None:
        self.assertEqual(ledger.unconfirmed_timeouts, [])
        self.assertEqual(ledger.run_twice, [])
        self.assertEqual(ledger.answered_without_a_run, [])
        self.assertEqual(ledger.select(lambda e: isinstance(e.outcome, UndeliverableError)), [])
        late = ledger.select(
            lambda e: isinstance(e.outcome, UnconfirmedError) and not e.idempotent and e.seconds > SOON
        )
        self.assertEqual(late, [])


@pytest.mark.slow
@pytest.mark.timeout(180)
class DefaultQueueTests(LedgerCase):
    async def test_killed(self) -> None:
        """No call waits out its timeout for want of a confirm, and none finds nobody while its servers come back."""
        self.assert_true_outcomes(await self.kill_under_load())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(180)
class DurableQueueTests(LedgerCase):
    options: ClassVar[dict[str, Any]] = {"durable_queues": True}

    async def test_killed(self) -> None:
        """Every idempotent call is answered; of the others those that were not confirmed say so."""
        ledger = await self.kill_under_load()
        self.assert_true_outcomes(ledger)
        self.assertEqual([e.outcome for e in ledger.select(lambda e: e.idempotent and e.outcome)], [])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(180)
class QuorumQueueTests(DurableQueueTests):
    options: ClassVar[dict[str, Any]] = {"quorum_queue": True}
