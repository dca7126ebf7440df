"""Tests for novasvc.registry.election: leases on the clocks of several hosts, and of the database."""

import random
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.election import STOP, LeaseElection
from novasvc.registry.lease import Lease
from novasvc.testing import MemoryRegistry
from tests.contract.election_contract import Contender
from tests.support.flight_rig import record_flight, said

LEASE = 30.0


class Away(MemoryRegistry):
    """One host's connection to the registry of all: it can be cut, and answers can be kept back.

    :ivar cut: whether requests fail.
    :ivar kept: answers that the test fires; None lets them through.
    """

    def __init__(self, shared: MemoryRegistry) -> None:
        self.shared = shared
        self.cut = False
        self.kept: list[tuple[Deferred[Any], Any]] | None = None
        self.requests = 0

    def hold_leases(self, request: Any) -> Deferred[Any]:
        self.requests += 1
        if self.cut:
            return self.fail()
        answer = self.shared.hold_leases(request)
        if self.kept is None:
            return answer
        waiting: Deferred[Any] = Deferred()
        self.kept.append((waiting, self.successful(answer)))
        return waiting

    def release_leases(self, topic: str, owner: str, tasks: Any) -> Deferred[None]:
        return self.fail() if self.cut else self.shared.release_leases(topic, owner, tasks)

    def fail(self) -> Deferred[Any]:
        return fail(DatabaseUnavailableError("u", "away"))

    def successful(self, answer: Deferred[Any]) -> Any:
        found: list[Any] = []
        answer.addCallback(found.append)
        return found[0]


class Host:
    """A host: its clock, its connection, and its contender."""

    def __init__(self, name: str, shared: MemoryRegistry) -> None:
        self.clock = Clock()
        self.link = Away(shared)
        self.stopped = False
        self.election = LeaseElection(self.link, "shop", name, LEASE, self.clock, random.Random(name))
        self.contender = Contender(self.election)

    @property
    def leads(self) -> bool:
        return "nightly" in self.contender.terms

    @property
    def fencing(self) -> int | None:
        return self.contender.terms["nightly"].fencing


class ElectionCase(SynchronousTestCase):
    """Two hosts and a database, each with a clock of its own that runs as fast as the others'."""

    def setUp(self) -> None:
        self.recorder = record_flight(self)
        self.database = Clock()
        self.database.advance(5_000)
        self.shared = MemoryRegistry(self.database)
        self.one, self.two = self.hosts = [Host("h1", self.shared), Host("h2", self.shared)]
        for host in self.hosts:
            host.contender.start()

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.database.advance(0.25)
            for host in self.hosts:
                if host.stopped:
                    host.clock.rightNow += 0.25  # its time passes, and it does nothing
                else:
                    host.clock.advance(0.25)

    def lease(self) -> Lease:
        leases: list[Lease] = self.successResultOf(self.shared.list_leases())
        return next(lease for lease in leases if lease.task == "nightly")

    def wait_for(self, condition: Any, most: float) -> float:
        for step in range(round(most * 4)):
            if condition():
                return step / 4
            self.wait(0.25)
        self.fail(f"not within {most} s")
        raise AssertionError


class TakeoverTests(ElectionCase):
    """A successor takes over within two lease times."""

    def test_killed(self) -> None:
        """When the leader's process dies, another takes over within two lease times, under the next number."""
        self.wait(100)
        self.assertEqual((self.one.leads, self.two.leads, self.one.fencing), (True, False, 1))
        self.assertEqual(self.two.election.leader("nightly"), "h1")
        self.hosts = [self.two]
        with capturedLogs() as events:
            self.wait_for(lambda: self.two.leads, 2 * LEASE)
        self.assertEqual(self.two.fencing, 2)
        self.assertIn("h2 has the lease of shop/nightly now, after h1; fencing number 2", map(formatEvent, events))
        self.assertIn("shop/nightly taken, after h1, fencing 2", said(self.recorder, "lease"))

    def test_stopped(self) -> None:
        """A leader that was stopped begins no run when it continues, and knows that it has lost the lead."""
        self.wait(11)
        self.one.stopped = True
        self.wait_for(lambda: self.two.leads, 2 * LEASE)
        self.assertTrue(self.one.leads)  # it had no chance to notice
        self.assertFalse(self.one.election.begin("nightly", None))
        self.assertFalse(self.one.leads)
        self.assertIn("its lease has ended, and was not renewed: this process was stopped", self.one.contender.lost)
        self.one.stopped = False
        self.wait(200)
        self.assertEqual((self.one.leads, self.two.leads, self.two.fencing), (False, True, 2))

    def test_ended_when_read(self) -> None:
        """An owner whose lease had ended when it was read does not lead."""
        self.wait(11)
        self.one.link.kept = []
        self.wait_for(lambda: self.one.link.kept, LEASE)
        ((waiting, leases),) = self.one.link.kept
        self.one.link.kept = None
        waiting.callback([attrs.evolve(lease, expires_in=-0.1) for lease in leases])
        self.assertFalse(self.one.leads)
        self.assertIn("nobody has its lease now", self.one.contender.lost)

    def test_cut_off(self) -> None:
        """A leader that loses the database stops before its lease ends; its successor begins after that."""
        self.wait(20)
        self.one.link.cut = True
        with capturedLogs() as events:
            self.wait_for(lambda: not self.one.leads, LEASE)
        left = self.lease().expires_in
        self.assertGreaterEqual(left, (1 - STOP) * LEASE - 0.25)
        self.assertFalse(self.two.leads)
        self.wait_for(lambda: self.two.leads, 2 * LEASE)
        (reason, _) = self.one.contender.lost
        self.assertIn("its lease ends in 6.0 s, and was not renewed: database u: away", reason)
        errors = [formatEvent(event) for event in events if event["log_level"] is LogLevel.error]
        self.assertEqual(len(errors), 1, errors)  # repeats are silent
        self.assertIn("the leases of hourly, nightly cannot be renewed or taken: database u: away", errors[0])
        self.one.link.cut = False
        self.wait(100)
        self.assertEqual((self.one.leads, self.two.leads), (False, True))

    def test_short_outage(self) -> None:
        """An outage of the database that is shorter than the margin changes no lead and no number."""
        self.wait(9)
        for host in self.hosts:
            host.link.cut = True
        self.wait(12)
        for host in self.hosts:
            host.link.cut = False
        self.wait(100)
        self.assertEqual((self.one.leads, self.two.leads, self.one.fencing), (True, False, 1))

    def test_long_outage(self) -> None:
        """After an outage of the database one process leads again, under a new number, even if it is the same one."""
        self.wait(9)
        for host in self.hosts:
            host.link.cut = True
        self.wait(100)
        self.assertEqual([host.leads for host in self.hosts], [False, False])
        for host in self.hosts:
            host.link.cut = False
        self.wait_for(lambda: any(host.leads for host in self.hosts), LEASE)
        self.wait(100)
        (leader,) = [host for host in self.hosts if host.leads]
        self.assertEqual(leader.fencing, 2)

    def test_hosts_clock_jumps(self) -> None:
        """The time of day of a host plays no part: hosts whose clocks differ by years keep the same leases."""
        # Only differences are used of each clock. The hosts here are 5,000 s behind the database.
        self.wait(1000)
        self.assertEqual((self.one.leads, self.two.leads, self.one.fencing), (True, False, 1))

    def test_databases_clock_jumps(self) -> None:
        """If the database's clock jumps ahead, two may lead until the next renewal, under different numbers."""
        self.wait(20)
        self.database.rightNow += 3600
        self.wait_for(lambda: not self.one.leads or self.lease().fencing == 2, LEASE)
        self.wait(LEASE)
        (leader,) = [host for host in self.hosts if host.leads]
        self.assertEqual((leader.fencing, self.lease().fencing), (2, 2))

    def test_late_answer(self) -> None:
        """A lease whose answer comes later than it could be relied on is not used."""
        three = Host("h3", self.shared)
        three.link.kept = []
        self.hosts = [three]  # the others are dead
        self.wait(2 * LEASE)
        three.contender.start()
        (waiting, answer) = three.link.kept.pop()
        self.assertEqual({lease.owner for lease in answer}, {three.election._owner})
        three.clock.rightNow += LEASE  # it was stopped meanwhile
        waiting.callback(answer)
        self.assertFalse(three.leads)
        three.link.kept = None
        self.wait_for(lambda: three.leads, LEASE)

    def test_hanging_database(self) -> None:
        """A request without an answer is given up in time to try again before the lease ends."""
        self.wait(9)
        self.one.link.kept = []
        self.wait(15)
        self.assertGreaterEqual(self.one.link.requests, 2)
        self.one.link.kept = None
        self.wait(20)
        self.assertEqual((self.one.leads, self.one.fencing), (True, 1))


class RunTests(ElectionCase):
    """What the registry is told of runs."""

    def test_run_is_known_to_the_successor(self) -> None:
        """The next leader is told when the last run began, and for which due time."""
        self.wait(30)
        self.assertTrue(self.one.election.begin("nightly", 123.0))
        self.wait(4)
        self.assertEqual(self.lease().last_due, 123.0)
        self.assertTrue(1 <= (self.lease().ran_ago or 0) <= 4, self.lease())
        self.hosts = [self.two]
        self.wait_for(lambda: self.two.leads, 2 * LEASE)
        term = self.two.contender.terms["nightly"]
        self.assertEqual(term.last_due, 123.0)
        self.assertTrue(LEASE < (term.ran_ago or 0) < 2 * LEASE + 4, term)

    def test_many_runs(self) -> None:
        """Runs in quick succession do not become as many requests."""
        self.wait(30)
        before = self.one.link.requests
        for number in range(120):
            self.assertTrue(self.one.election.begin("nightly", float(number)))
            self.wait(0.25)
        self.assertLess(self.one.link.requests - before, 13)
        self.wait(3)
        self.assertEqual(self.lease().last_due, 119.0)

    def test_reports_to_a_slow_registry(self) -> None:
        """Runs that begin while each request is answered do not become one request after the other."""
        self.wait(30)
        before = self.one.link.requests
        for number in range(120):
            self.one.link.kept = []
            self.assertTrue(self.one.election.begin("nightly", float(number)))
            self.wait(0.25)
            kept, self.one.link.kept = self.one.link.kept, None
            self.one.election.begin("nightly", float(number))
            for waiting, answer in kept:
                waiting.callback(answer)
        self.assertLess(self.one.link.requests - before, 13)

    def test_report_is_repeated(self) -> None:
        """A run that could not be reported is reported with the next renewal."""
        self.wait(30)
        self.one.link.cut = True
        self.assertTrue(self.one.election.begin("nightly", 7.0))
        self.wait(8)
        self.assertIsNone(self.lease().last_due)
        self.one.link.cut = False
        self.wait(8)
        self.assertEqual(self.lease().last_due, 7.0)


class ReleaseTests(ElectionCase):
    """What happens when a process resigns."""

    def test_released(self) -> None:
        """A lease that was released is taken by another within half a lease time."""
        self.wait(30)
        self.successResultOf(self.one.election.resign("nightly"))
        self.assertIsNone(self.lease().holder)
        self.assertLessEqual(self.wait_for(lambda: self.two.leads, LEASE), LEASE / 2)
        self.assertIn("shop/nightly released, fencing 1", said(self.recorder, "lease"))

    def test_release_without_database(self) -> None:
        """A lease that cannot be released ends by itself, and the log says when."""
        self.wait(30)
        self.one.link.cut = True
        with capturedLogs() as events:
            self.successResultOf(self.one.election.resign("nightly"))
        text = "the lease of shop/nightly was not released, and ends within 30 s: database u: away;"
        (event,) = events
        self.assertIn(text, formatEvent(event))
        self.wait_for(lambda: self.two.leads, 2 * LEASE)

    def test_release_of_nothing(self) -> None:
        """The log does not say that a lease ends that this process never had."""
        self.wait(30)
        self.two.link.cut = True
        with capturedLogs() as events:
            self.successResultOf(self.two.election.resign("nightly"))
        self.assertEqual([*map(formatEvent, events)], [])

    def test_release_after_a_request(self) -> None:
        """A request under way, which may take the lease, ends before the lease is released."""
        self.wait(30)
        self.one.link.kept = []
        self.wait_for(lambda: bool(self.one.link.kept), LEASE)
        resigned = self.one.election.resign("nightly")
        self.assertNoResult(resigned)
        waiting, answer = self.one.link.kept.pop()
        waiting.callback(answer)
        self.successResultOf(resigned)
        self.assertIsNone(self.lease().holder)
