"""Tests for novasvc.workers.group: the workers of one server, on a host that stands in."""

import os
from signal import SIGKILL, SIGTERM
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError
from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.server.admission import NOBODY, READY, UNDER_WAY
from novasvc.workers.errors import ReloadError
from novasvc.workers.exit_status import KILL_DELAY
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.group import OPERATIONS_TIMEOUT, WorkerGroup, WorkerTemplate
from novasvc.workers.restart_policy import RestartPolicy
from novasvc.workers.slot import Slot, WorkerTimeouts
from novasvc.workers.specification import PickledServer
from tests.support.supervision_rig import Host, StandInWorker, exited

TIMEOUTS = WorkerTimeouts(start=60, drain=40, watchdog=30)


class GroupCase(SynchronousTestCase):
    """A group of three workers."""

    def setUp(self) -> None:
        self.host = Host()
        self.patch(os, "kill", self.host.kill)
        self.addCleanup(self.host.tear_down)
        self.gave_up: list[tuple[int, str]] = []
        self.group = WorkerGroup(3, self.template("old"), self.host, self.take_number, self.give_up)

    def template(self, server: str, forkserver: ForkserverClient | None = None) -> WorkerTemplate:
        if forkserver is None:
            forkserver = ForkserverClient(self.host, [], None, {}, retry=float)
            forkserver.start()
            self.addCleanup(forkserver.close)
        policy = RestartPolicy(5, 60.0, float)
        return WorkerTemplate(
            PickledServer("api", server, frozenset()), (), forkserver, policy, TIMEOUTS, {"reactor": "r"}
        )

    def take_number(self) -> int:
        taken = {slot.number for slot in self.group}
        return min(number for number in range(1, 100) if number not in taken)

    def give_up(self, slot: Slot, problem: str) -> bool:
        self.gave_up.append((slot.number, problem))
        return True

    def start(self) -> None:
        self.group.start()
        self.host.ready_all()

    def run_reload(self, coroutine: Any) -> Deferred[Any]:
        deferred = Deferred.fromCoroutine(coroutine)
        self.host.pass_time(0)
        return deferred

    def servers(self) -> list[str]:
        """Return what each worker serves that was not told to end."""
        return [worker.parameters["server"] for worker in sorted(self.staying(), key=lambda worker: worker.number)]

    def staying(self) -> list[StandInWorker]:
        return [worker for worker in self.host.living if not worker.signals]

    def newest(self) -> StandInWorker:
        self.host.pass_time(10)  # the throttle
        return self.host.workers[-1]

    def states(self) -> list[tuple[int, str]]:
        return [(slot.number, slot.state) for slot in self.group]


class StartTests(GroupCase):
    """How the workers come."""

    def test_orders(self) -> None:
        """Each worker is told its number, its name, its server, and what its template is told."""
        self.group.start()
        self.host.settle()
        self.assertEqual(
            [worker.parameters for worker in self.host.workers],
            [{"reactor": "r", "number": number, "name": "api", "server": "old"} for number in (1, 2, 3)],
        )

    def test_started(self) -> None:
        """It has started when all workers have been ready, even if one has died since."""
        started = self.group.start()
        self.host.settle()
        first, second, third = self.host.workers
        first.be_ready()
        self.host.pass_time(5)
        first.end(SIGKILL)
        second.be_ready()
        self.assertNoResult(started)
        third.be_ready()
        self.successResultOf(started)

    def test_started_by_a_restart(self) -> None:
        """One that dies on its way up is waited for until its successor is ready."""
        started = self.group.start()
        self.host.settle()
        for worker in self.host.living:
            worker.end(exited(1))
        self.host.settle()
        self.assertNoResult(started)
        self.host.pass_time(3)
        self.host.ready_all()
        self.successResultOf(started)

    def test_proven(self) -> None:
        """It is proven as soon as one worker is ready."""
        self.group.start()
        self.host.settle()
        self.assertFalse(self.group.proven)
        self.host.workers[1].be_ready()
        self.assertTrue(self.group.proven)

    def test_not_proven(self) -> None:
        """A worker that is ended before it is ready proves nothing."""
        self.group.start()
        self.group.drain()
        self.assertFalse(self.group.proven)

    def test_start_is_cancelled(self) -> None:
        """Who waits no more for the start, changes nothing."""
        started = self.group.start()
        started.cancel()
        self.failureResultOf(started, FirstError)
        self.host.ready_all()
        self.assertEqual(self.states(), [(1, "ready"), (2, "ready"), (3, "ready")])

    def test_surely(self) -> None:
        """A sure start is over when all are ready."""
        started = self.run_reload(self.group.start_and_wait())
        for worker in list(self.host.living)[:2]:
            worker.be_ready()
        self.assertNoResult(started)
        self.host.living[2].be_ready()
        self.successResultOf(started)

    def test_not_surely(self) -> None:
        """A sure start fails with the first worker that dies, whichever that is, and why."""
        started = self.run_reload(self.group.start_and_wait())
        third = self.host.living[2]
        third.say("failed", problem="no such table", final=True)
        third.end(exited(1))
        error = self.failureResultOf(started, ReloadError).value
        self.assertEqual(error.problem, "the new worker 3 of api did not become ready: no such table")


class SiblingTests(GroupCase):
    """What a worker that drains is told of the others."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.asking, *self.others = self.host.workers
        self.asking.say("draining", calls=1)

    def drain(self, *workers: StandInWorker) -> None:
        for worker in workers:
            worker.say("draining", calls=1)

    def ask(self, request_id: str = "req-1") -> None:
        self.asking.hear()
        self.asking.say("query", key=7, request_id=request_id)

    def tell(self, worker: StandInWorker, operations: Any) -> None:
        """Answer the supervisor's question."""
        (question,) = worker.hear()
        self.assertEqual(question["name"], "operations")
        worker.say("answer", key=question["query"], answer=operations)

    def assert_told(self, answer: str) -> None:
        self.assertEqual(self.asking.hear(), [{"answer": 7, "value": answer}])

    def test_ready(self) -> None:
        """If one of them is ready, it is for that one, and nobody is asked."""
        self.drain(self.others[0])
        self.ask()
        self.assert_told(READY)
        self.assertEqual([worker.hear() for worker in self.others], [[], []])

    def test_under_way(self) -> None:
        """If all drain, they are asked which operations are under way in them."""
        self.drain(*self.others)
        self.ask()
        self.tell(self.others[0], ["req-2"])
        self.tell(self.others[1], ["req-3", "req-1"])
        self.assert_told(UNDER_WAY)

    def test_nobody(self) -> None:
        """If it is under way in none of them, or has no id, that is said."""
        self.drain(*self.others)
        for request_id in ("req-1", ""):
            self.ask(request_id)
            for worker in self.others:
                self.tell(worker, ["req-2", ""])
            self.assert_told(NOBODY)

    def test_silent(self) -> None:
        """One that does not answer, or does not understand the question, is no reason to wait for long."""
        self.drain(*self.others)
        self.ask()
        self.tell(self.others[0], {"calls": "of another version"})
        self.host.pass_time(OPERATIONS_TIMEOUT)
        self.assert_told(NOBODY)

    def test_alone(self) -> None:
        """One whose siblings have ended hears that there is nobody."""
        self.group.drain()
        for worker in self.others:
            worker.end()
        self.ask()
        self.assert_told(NOBODY)

    def test_gone(self) -> None:
        """One that ends before it is told is told nothing."""
        self.drain(*self.others)
        self.ask()
        self.asking.end()
        for worker in self.others:
            self.tell(worker, [])
        self.assertEqual(self.gave_up, [])


class NumberTests(GroupCase):
    """Who has which number."""

    def test_stable(self) -> None:
        """Who takes the place of a worker has its number."""
        self.start()
        self.host.pass_time(5)
        (second,) = self.host.each(2)
        second.end(SIGKILL)
        self.host.ready_all()
        self.assertEqual(self.host.numbers(), [1, 2, 3])
        self.assertEqual([(slot.number, slot.restarts) for slot in self.group], [(1, 0), (2, 1), (3, 0)])

    def test_independent(self) -> None:
        """A worker that dies again and again is no trouble for the others."""
        self.start()
        for _ in range(4):
            for worker in list(self.host.each(1)):
                worker.end(exited(1))
            self.host.pass_time(5)
        self.assertEqual([state for number, state in self.states() if number != 1], ["ready", "ready"])


class ResizeTests(GroupCase):
    """More workers, and less."""

    def test_more(self) -> None:
        """More workers get the next numbers."""
        self.start()
        self.host.pass_time(5)
        resized = self.group.resize(5)
        self.assertNoResult(resized)
        self.host.ready_all()
        self.successResultOf(resized)
        self.assertEqual((self.host.numbers(), self.group.size), ([1, 2, 3, 4, 5], 5))

    def test_less(self) -> None:
        """Those with the highest numbers leave, when they have finished."""
        self.start()
        self.successResultOf(self.group.resize(1))
        self.assertEqual(self.states(), [(1, "ready"), (2, "draining"), (3, "draining")])
        self.assertEqual([worker.signals for worker in self.host.workers], [[], [SIGTERM], [SIGTERM]])
        for worker in list(self.host.living)[1:]:
            worker.end()
        self.assertEqual(self.states(), [(1, "ready")])

    def test_less_without_processes(self) -> None:
        """Those that wait for their next start leave at once."""
        self.start()
        self.host.pass_time(5)
        self.host.answer = lambda worker: worker.fail_fork("no more processes")
        for worker in list(self.host.living):
            worker.end(SIGKILL)
        self.host.settle()
        self.group.resize(1)
        self.assertEqual(self.states(), [(1, "backing off")])

    def test_back_and_forth(self) -> None:
        """While those that leave are there, their numbers are theirs."""
        self.start()
        self.group.resize(1)
        self.group.resize(2)
        self.host.pass_time(5)
        self.assertEqual(self.states(), [(1, "ready"), (2, "draining"), (3, "draining"), (4, "starting")])

    def test_throttle(self) -> None:
        """The throttle goes by the new size."""
        self.start()
        self.group.resize(1)
        self.assertEqual(self.group.throttle.workers, 1)
        self.group.resize(20)
        self.assertEqual(self.group.throttle.workers, 20)

    def test_throttled(self) -> None:
        """Of many workers killed again and again some wait; one a second for each worker comes back, all in the end."""
        self.start()
        self.host.pass_time(1)
        for worker in list(self.host.living):
            worker.end(SIGKILL)
        self.host.settle()
        self.assertEqual([state for _, state in self.states()], ["starting"] * 3)
        self.host.ready_all()
        self.host.pass_time(1)
        for worker in list(self.host.living):
            worker.end(SIGKILL)
        self.host.settle()
        self.assertEqual(sorted(state for _, state in self.states()), ["backing off", "backing off", "backing off"])
        self.host.pass_time(3)
        self.assertEqual([state for _, state in self.states()], ["starting"] * 3)


class ReplaceTests(GroupCase):
    """One after the other."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.host.pass_time(60)

    def test_one(self) -> None:
        """A worker is told to end when the one that comes for it is ready, and not before."""
        old = self.host.living[1]
        done = self.run_reload(self.group.replace(self.group.slots[1]))
        self.assertEqual(self.states(), [(1, "ready"), (2, "ready"), (2, "starting"), (3, "ready")])
        self.assertEqual(old.signals, [])
        self.newest().be_ready()
        self.successResultOf(done)
        self.assertEqual(old.signals, [SIGTERM])
        old.end()
        self.assertEqual(self.states(), [(1, "ready"), (2, "ready"), (3, "ready")])

    def test_one_in_vain(self) -> None:
        """If the one that comes for it is not ready, the worker stays, and the other is not tried again."""
        done = self.run_reload(self.group.replace(self.group.slots[1]))
        new = self.newest()
        new.say("failed", problem="no such table", final=False)
        new.end(exited(1))
        self.host.pass_time(100)
        error = self.failureResultOf(done, ReloadError).value
        self.assertIn("the new worker 2 of api did not become ready: no such table", str(error))
        self.assertEqual(self.states(), [(1, "ready"), (2, "ready"), (3, "ready")])
        self.assertEqual((len(self.host.workers), self.gave_up), (4, []))

    def test_one_hangs(self) -> None:
        """One that is not ready in time is ended, and the worker stays."""
        done = self.run_reload(self.group.replace(self.group.slots[1]))
        self.host.obeys = True
        self.host.pass_time(TIMEOUTS.start + 1)
        error = self.failureResultOf(done, ReloadError).value
        self.assertIn("did not become ready: not ready within worker_start_timeout (60 s)", str(error))
        self.assertEqual(self.states(), [(1, "ready"), (2, "ready"), (3, "ready")])

    def test_ready_while_suspended(self) -> None:
        """A replacement that became ready while the supervisor was suspended takes its place."""
        done = self.run_reload(self.group.replace(self.group.slots[1]))
        self.newest().pipe.send(b'{"is": "ready"}\n')
        self.host.be_suspended(1000)
        self.successResultOf(done)
        self.assertEqual((len(self.host.workers), self.newest().signals), (4, []))

    def test_all(self) -> None:
        """All are replaced, in order, each when the one before it has been."""
        done = self.run_reload(self.group.replace_all(self.template("new")))
        served = []
        for _ in range(3):
            served.append(self.servers())
            self.newest().be_ready()
        self.successResultOf(done)
        self.assertEqual(
            served, [["old", "new", "old", "old"], ["new", "old", "new", "old"], ["new", "new", "old", "new"]]
        )
        self.assertEqual(self.servers(), ["new", "new", "new"])
        self.assertEqual([slot.number for slot in self.group.slots], [1, 2, 3])

    def test_old_ones_are_not_waited_for(self) -> None:
        """The next one is replaced while the one before it still finishes its work."""
        self.run_reload(self.group.replace_all(self.template("new")))
        self.newest().be_ready()
        self.newest().be_ready()
        self.assertEqual(sum(state == "draining" for _, state in self.states()), 2)

    def test_endless_wait(self) -> None:
        """A new one that waits for its broker for too long is let go; what it waited for is told."""
        done = self.run_reload(self.group.replace_all(self.template("new")))
        self.newest().say("waiting", **{"for": "broker"})
        self.host.pass_time(TIMEOUTS.start / 2)
        self.assertNoResult(done)
        self.host.pass_time(TIMEOUTS.start)
        problem = str(self.failureResultOf(done, ReloadError).value)
        self.assertIn("within worker_start_timeout (60 s): waiting for the broker", problem)
        self.assertEqual(self.servers(), ["old", "old", "old"])

    def test_deadline(self) -> None:
        """Those that are replaced are killed at the deadline."""
        old = self.host.living[0]
        self.run_reload(self.group.replace_all(self.template("new")))
        self.newest().be_ready()
        self.host.pass_time(TIMEOUTS.drain)
        self.host.pass_time(KILL_DELAY)
        self.assertEqual(old.signals, [SIGTERM, SIGKILL])

    def test_all_in_vain(self) -> None:
        """If one does not become ready, that one and those after it stay; back is the way it came."""
        before = self.group.template
        done = self.run_reload(self.group.replace_all(self.template("new")))
        self.newest().be_ready()
        self.newest().end(exited(1))
        self.failureResultOf(done, ReloadError)
        self.assertEqual(self.servers(), ["new", "old", "old"])
        back = self.run_reload(self.group.replace_all(before))
        self.newest().be_ready()
        self.successResultOf(back)
        self.assertEqual(self.servers(), ["old", "old", "old"])

    def test_old_one_dies_meanwhile(self) -> None:
        """A worker that dies while it is to be replaced is started again, and replaced nevertheless."""
        old = self.host.living[0]
        done = self.run_reload(self.group.replace_all(self.template("new")))
        self.host.pass_time(5)
        old.end(SIGKILL)
        self.host.pass_time(5)
        self.assertEqual([worker.parameters["server"] for worker in self.host.each(1)], ["new", "old"])
        for _ in range(3):
            self.host.ready_all()
            self.host.pass_time(5)
        self.successResultOf(done)
        self.assertEqual(self.servers(), ["new", "new", "new"])

    def test_new_one_dies_later(self) -> None:
        """One that dies when it was ready is replaced by its like."""
        self.run_reload(self.group.replace_all(self.template("new")))
        new = self.newest()
        new.be_ready()
        self.host.pass_time(5)
        new.end(SIGKILL)
        self.host.pass_time(5)
        self.assertEqual([worker.parameters["server"] for worker in self.host.each(1) if not worker.signals], ["new"])

    def test_failed_one(self) -> None:
        """A worker that was given up is replaced, too: what it could not run with may be mended."""
        (first,) = self.host.each(1)
        first.say("failed", problem="no such manager", final=True)
        first.end(exited(1))
        self.assertEqual(self.states()[0], (1, "failed"))
        done = self.run_reload(self.group.replace(self.group.slots[0]))
        self.newest().be_ready()
        self.successResultOf(done)
        self.assertEqual(self.states(), [(1, "ready"), (2, "ready"), (3, "ready")])

    def test_smaller_meanwhile(self) -> None:
        """One whose group has become smaller meanwhile is not replaced: who came for it leaves, too."""
        done = self.run_reload(self.group.replace(self.group.slots[2]))
        self.group.resize(2)
        self.newest().be_ready()
        self.successResultOf(done)
        self.assertEqual([worker.number for worker in self.staying()], [1, 2])

    def test_larger_meanwhile(self) -> None:
        """One that comes in the midst is of the new kind, and not replaced."""
        done = self.run_reload(self.group.replace_all(self.template("new")))
        self.group.resize(4)
        while not done.called:
            self.host.pass_time(1)
            self.host.ready_all()
        self.assertEqual(self.servers(), ["new"] * 4)
        self.assertEqual(len(self.host.workers), 3 + 4)

    def test_one_amid_all(self) -> None:
        """A worker that an operator drains just before a reload is replaced by it as well, whoever is first."""
        for first in (0, 1):
            one = self.run_reload(self.group.replace(self.group.slots[0]))
            name = f"new {first}"
            done = self.run_reload(self.group.replace_all(self.template(name)))
            self.host.pass_time(10)
            comers = [worker for worker in self.host.each(1) if not worker.signals][-2:]
            comers[first].be_ready()
            for _ in range(10):
                self.host.ready_all()
                self.host.pass_time(5)
            self.successResultOf(one)
            self.successResultOf(done)
            self.assertEqual(self.servers(), [name] * 3)
            self.host.obeys = True
            for worker in list(self.host.living):
                if worker.signals:
                    worker.end()
            self.host.obeys = False

    def test_origin(self) -> None:
        """It is known whose workers come from a forkserver, until they have ended."""
        old, new = self.group.template.forkserver, self.template("new")
        self.assertEqual((len(self.group.forked_by(old)), self.group.forked_by(new.forkserver)), (3, []))
        self.run_reload(self.group.replace_all(new))
        self.newest().be_ready()
        self.assertEqual(len(self.group.forked_by(new.forkserver)), 2)
        self.assertEqual(len(self.group.forked_by(old)), 3)
        self.host.workers[0].end()
        self.assertEqual(len(self.group.forked_by(old)), 2)

    def test_cancelled(self) -> None:
        """If nobody wants it any more, the one that comes is ended, and the worker stays."""
        done = self.run_reload(self.group.replace_all(self.template("new")))
        new = self.newest()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(new.signals, [SIGTERM])
        self.assertEqual(self.servers(), ["old"] * 3)


class DrainTests(GroupCase):
    """The way down."""

    def test_drain(self) -> None:
        """All are told to end, and it is over when the last has."""
        self.start()
        drained = self.group.drain()
        self.assertEqual([worker.signals for worker in self.host.workers], [[SIGTERM]] * 3)
        for worker in list(self.host.living):
            self.assertNoResult(drained)
            worker.end()
        self.successResultOf(drained)
        self.assertEqual((list(self.group), self.group.slots), ([], []))

    def test_while_it_starts(self) -> None:
        """Those that are not born yet are not waited for."""
        self.host.answer = lambda _: None
        self.group.start()
        drained = self.group.drain()
        self.host.pass_time(0)
        self.successResultOf(drained)

    def test_nobody(self) -> None:
        """Where nobody is, it is over at once."""
        self.successResultOf(self.group.drain())

    def test_amid_a_replacement(self) -> None:
        """Those that come to replace others are drained as well, and the replacement fails."""
        self.start()
        self.host.pass_time(60)
        done = self.run_reload(self.group.replace_all(self.template("new")))
        self.host.pass_time(5)
        drained = self.group.drain()
        self.assertEqual([worker.signals for worker in self.host.living], [[SIGTERM]] * 4)
        for worker in list(self.host.living):
            worker.end()
        self.successResultOf(drained)
        self.failureResultOf(done, ReloadError)
        self.assertEqual((list(self.group), len(self.host.workers)), ([], 4))

    def test_interrupt(self) -> None:
        """When interrupted, all are told to end, also those that came to replace others, and killed."""
        self.start()
        self.host.pass_time(60)
        self.run_reload(self.group.replace(self.group.slots[0])).addErrback(lambda failure: failure.trap(ReloadError))
        self.host.pass_time(5)
        self.group.interrupt()
        self.assertEqual([worker.signals for worker in self.host.living], [[SIGTERM]] * 4)
        drained = self.group.drain()
        self.host.pass_time(2)
        self.successResultOf(drained)

    def test_again(self) -> None:
        """To be told twice is to wait twice."""
        self.start()
        first, second = self.group.drain(), self.group.drain()
        for worker in list(self.host.living):
            worker.end()
        self.successResultOf(first)
        self.successResultOf(second)
