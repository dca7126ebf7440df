"""Workers that have served enough, under load."""

import itertools
from collections import Counter

import pytest
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from tests.faults.amqp_rig import CONTEXT
from tests.faults.test_workers_drained import CALLERS, SHORT, TOPIC, DrainCase


@pytest.mark.slow
class RecycledTests(DrainCase):
    async def test_load(self) -> None:
        """A worker that has served enough is replaced under load: each call is answered, and runs once."""
        fleet = self.twistd("--workers", "2", "--transport-url", self.url, NOVASVC_WORKER_MAX_CALLS="50")
        before = await deferToThread(fleet.ready, 2)
        client = await self.client(topic=TOPIC, patience=30.0)
        numbers, asked, under_way = itertools.count(), Counter[str](), [True]

        async def load() -> None:
            while under_way:
                what = f"work-{next(numbers)}"
                asked[f"done {what}"] += 1
                self.assertEqual(await client.call(CONTEXT, "work", what=what, seconds=SHORT), what)

        callers = DeferredList([Deferred.fromCoroutine(load()) for _ in range(CALLERS)], fireOnOneErrback=True)
        await deferToThread(fleet.says, r"recycling worker \d .*: it has served \d+ calls and requests")
        await deferToThread(fleet.says, r"worker \d .* drained: it exited with status 0")
        under_way.clear()
        await callers
        after = await deferToThread(fleet.ready, 2)
        self.assertEqual(after.keys(), before.keys())
        self.assertEqual(len({*after.values()} & {*before.values()}), 1)
        self.assertEqual(Counter(line for line in fleet.journal if line.startswith("done ")), asked)
