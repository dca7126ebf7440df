"""Tests for novasvc.workers.recycling, on a host that stands in."""

from signal import SIGTERM
from typing import Any, ClassVar

import attrs

from novasvc.telemetry import metrics
from novasvc.workers import process as worker_process
from novasvc.workers.recycling import CHECK_INTERVAL, RETRY_PAUSE
from tests.support.supervision_rig import StandInWorker, exited, logged
from tests.support.supervisor_rig import Server, SupervisorCase

MIB = 1024 * 1024


class RecyclingCase(SupervisorCase):
    """A supervisor whose workers are checked once a second.

    :ivar memory: private memory of each process, in MiB by pid.
    """

    def setUp(self) -> None:
        super().setUp()
        self.memory: dict[int, float] = {}
        self.patch(worker_process, "private_memory", lambda pid: int(self.memory.get(pid, 10) * MIB))

    def watch(self, seconds: float, *, ready: bool = True) -> None:
        """Let time pass; workers that come are ready, and those that were told to end do, in the next second."""
        for _ in range(int(seconds)):
            self.end_told()
            self.supervisor.check()
            self.host.pass_time(1)
            if ready:
                self.host.ready_all()

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.staying()]


class AgeTests(RecyclingCase):
    """Workers that are old."""

    settings: ClassVar[dict[str, Any]] = {"worker_max_age": 1000.0}

    def test_replaced(self) -> None:
        """Each is replaced once in its time, one after the other, by one with the same number, and none is missed."""
        self.run_all((Server("api"), 3))
        before, recycled = self.pids(), metrics.worker_recycled.at("api").value
        with logged() as log:
            for _ in range(1000):
                self.watch(1)
                self.assertGreaterEqual(sum(slot.state == "ready" for slot in self.supervisor.slots), 3)
                self.assertLessEqual(len(self.host.living), 4)
        self.assertEqual(self.host.numbers(), [1, 2, 3])
        self.assertFalse(set(self.pids()) & set(before))
        self.assertEqual(metrics.worker_recycled.at("api").value, recycled + 3)
        self.assertRegex(log.text, r"recycling worker 1 \(pid \d+\) of api: it is \d+ s old \(worker_max_age 1000 s\)")

    def test_jitter(self) -> None:
        """They have limits of their own, up to a fifth lower."""
        self.run_all((Server("api"), 8))
        ages = []
        for _ in range(1000):
            before = len(self.host.workers)
            self.watch(1)
            ages += [self.host.seconds()] * (len(self.host.workers) - before)
        self.assertEqual(len(ages), 8)
        self.assertGreaterEqual(min(ages), 800)
        self.assertGreater(max(ages) - min(ages), 8 * CHECK_INTERVAL)

    def test_one_at_a_time(self) -> None:
        """The next waits until the old worker has ended, however long it drains."""
        self.configured(worker_max_age=60.0)
        self.run_all((Server("api"), 2))
        self.supervisor.check()
        self.host.pass_time(1)
        self.host.ready_all()
        for _ in range(40):
            self.supervisor.check()
            self.host.pass_time(1)
            self.host.ready_all()
        self.assertEqual([worker.signals for worker in self.host.living], [[SIGTERM], [], []])

    def test_not_ready(self) -> None:
        """If the new one does not become ready the old one stays, and the next attempt is later."""
        self.configured(worker_max_age=60.0)
        self.run_all((Server("api"), 1))
        (old,) = self.staying()
        with logged() as log:
            self.supervisor.check()
            self.host.pass_time(1)
            self.host.living[-1].end(exited(3))
            self.host.pass_time(1)
            forked = len(self.host.workers)
            self.watch(RETRY_PAUSE - 5)
        self.assertIn(old, self.staying())
        self.assertEqual(len(self.host.workers), forked)
        self.assertRegex(
            log.text, r"worker 1 \(pid \d+\) of api was not recycled, and keeps running: .*exited with status 3"
        )
        self.watch(20)
        self.assertNotIn(old, self.host.living)

    def test_drained(self) -> None:
        """A drain of all gives up a replacement under way."""
        self.configured(worker_max_age=60.0)
        self.run_all((Server("api"), 1))
        self.supervisor.check()
        self.host.pass_time(1)
        drained = self.supervisor.drain_all()
        self.end_told()
        self.host.pass_time(3)
        self.end_told()
        self.successResultOf(drained)
        self.assertEqual(self.host.living, [])

    def test_reloaded(self) -> None:
        """A reload gives up a replacement under way, and replaces all."""
        self.configured(worker_max_age=60.0)
        self.run_all((Server("api"), 2))
        self.supervisor.check()
        self.host.pass_time(1)
        before = list(self.host.living)
        self.next = (self.configuration, list(self.wrappers))
        reload = self.reload()
        self.pass_reload(reload)
        self.successResultOf(reload)
        self.watch(5)
        self.assertEqual([worker.number for worker in self.staying()], [1, 2])
        self.assertFalse(set(self.staying()) & set(before))

    def configured(self, **settings: Any) -> None:
        """Change settings, as a reload would."""
        changed = attrs.evolve(self.configuration.settings, **settings)
        self.configuration = self.supervisor.configuration = attrs.evolve(self.configuration, settings=changed)


class MemoryTests(RecyclingCase):
    """Workers that have grown."""

    settings: ClassVar[dict[str, Any]] = {"worker_max_memory": 100.0}

    def test_replaced(self) -> None:
        """One that has grown is replaced, and no other."""
        self.run_all((Server("api"), 3))
        small, grown, other = self.pids()
        self.watch(30)
        self.assertEqual(self.pids(), [small, grown, other])
        self.memory[grown] = 120
        with logged() as log:
            self.watch(30)
        self.assertNotIn(grown, self.pids())
        self.assertLessEqual({small, other}, set(self.pids()))
        self.assertRegex(log.text, r"it has 120 MiB of memory \(worker_max_memory 100 MiB\)")

    def test_limit_of_new_workers(self) -> None:
        """A limit that each new worker exceeds does not keep workers starting one after the other."""
        self.run_all((Server("api"), 2))
        self.patch(worker_process, "private_memory", lambda _: 120 * MIB)
        before = len(self.host.workers)
        with logged() as log:
            self.watch(600)
        self.assertEqual(len(self.host.workers) - before, 1)
        self.assertIn("is new and has 120 MiB of memory: worker_max_memory, 100 MiB, is too low; no worker", log.text)
        self.watch(20)
        self.assertEqual(len(self.host.workers) - before, 2)


class CallsTests(RecyclingCase):
    """Workers that have served much."""

    settings: ClassVar[dict[str, Any]] = {"worker_max_calls": 1000}

    def answer(self, served: dict[int, object]) -> None:
        """Let the workers answer how much they have served, by number."""

        def hear(worker: StandInWorker) -> None:
            for message in worker.hear():
                if message.get("name") == "served" and worker.number in served:
                    worker.say("answer", key=message["query"], answer=served[worker.number])

        for _ in range(40):
            self.end_told()
            self.supervisor.check()
            self.host.pass_time(0.5)
            for worker in self.host.living:
                hear(worker)
            self.host.ready_all()

    def test_replaced(self) -> None:
        """One that has served enough is replaced; one that does not answer, or nonsense, is left alone."""
        self.run_all((Server("api"), 4))
        before = self.pids()
        with logged() as log:
            self.answer({1: 799, 2: "many", 4: 1000})
        self.assertEqual([pid in self.pids() for pid in before], [True, True, True, False])
        self.assertRegex(log.text, r"it has served 1000 calls and requests \(worker_max_calls 1000\)")


class OffTests(RecyclingCase):
    """Without limits."""

    def test_left_alone(self) -> None:
        """Nobody is replaced."""
        self.run_all((Server("api"), 2))
        self.memory = dict.fromkeys(self.pids(), 10_000)
        before = self.pids()
        self.watch(2000)
        self.assertEqual(self.pids(), before)
