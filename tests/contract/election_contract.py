"""The contract of IElection."""

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc.interfaces import IElection
from novasvc.periodic.term import Term

Contenders = Callable[[], Any]
"""Makes one more contender for the same tasks each time."""

Fixture = Callable[[SynchronousTestCase, Clock], Contenders]

TASKS = ("nightly", "hourly")
TAKEOVER = 60.0
"""Seconds within which another contender takes over."""


@attrs.define
class Contender:
    """A process that stands for the lead of tasks, and what it was told."""

    election: Any
    terms: dict[str, Term] = attrs.field(factory=dict)
    lost: list[str] = attrs.field(factory=list)

    def start(self) -> "Contender":
        self.election.start(TASKS, self.terms.__setitem__, self._lost)
        return self

    def _lost(self, task: str, reason: str) -> None:
        del self.terms[task]
        self.lost.append(reason)

    @property
    def leads(self) -> list[str]:
        return sorted(self.terms)


class ElectionContract(SynchronousTestCase):
    fixture: Fixture

    def setUp(self) -> None:
        self.clock = Clock()
        self.make = self.fixture(self, self.clock)
        self.started: list[Contender] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        for contender in self.started:
            for task in TASKS:
                self.resign(contender, task)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def stand(self) -> Contender:
        contender = Contender(self.make()).start()
        self.started.append(contender)
        return contender

    def resign(self, contender: Contender, task: str) -> None:
        self.successResultOf(contender.election.resign(task))
        contender.terms.pop(task, None)

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(2 * seconds))

    def test_interface(self) -> None:
        """The election provides IElection."""
        self.assertTrue(verifyObject(IElection, self.make()))

    def test_alone(self) -> None:
        """A single contender leads all its tasks at once."""
        only = self.stand()
        self.assertEqual(only.leads, ["hourly", "nightly"])
        self.assertTrue(only.election.begin("nightly", None))
        self.assertTrue(only.election.begin("hourly", 5.0))
        self.wait(2 * TAKEOVER)
        self.assertEqual((only.leads, only.lost), (["hourly", "nightly"], []))

    def test_one_leads(self) -> None:
        """Only one of several contenders leads a task, for as long as it stands."""
        contenders = [self.stand() for _ in range(4)]
        for _ in range(4):
            self.wait(TAKEOVER)
            self.assertEqual([each.leads for each in contenders], [["hourly", "nightly"], [], [], []])
        self.assertEqual([each.election.begin("nightly", None) for each in contenders], [True, False, False, False])

    def test_unknown(self) -> None:
        """No run begins of a task that nobody stands for, and its lead is not known."""
        only = self.stand()
        self.assertFalse(only.election.begin("no such task", None))
        self.assertIsNone(self.stand().election.leader("no such task"))
        self.successResultOf(only.election.resign("no such task"))

    def test_resign(self) -> None:
        """When the leader resigns from all tasks, exactly one of the others takes over soon."""
        first, *others = [self.stand() for _ in range(3)]
        for task in TASKS:
            self.resign(first, task)
            self.assertFalse(first.election.begin(task, None))
        self.wait(TAKEOVER)
        self.assertEqual(sorted(each.leads for each in others), [[], ["hourly", "nightly"]])
        self.assertEqual(first.leads, [])

    def test_resign_twice(self) -> None:
        """A second resignation has no effect."""
        first, second = self.stand(), self.stand()
        for task in (*TASKS, *TASKS):
            self.resign(first, task)
        self.wait(TAKEOVER)
        self.assertEqual(second.leads, ["hourly", "nightly"])

    def test_resign_without_the_lead(self) -> None:
        """A contender that resigns before it led changes nothing, and gets the lead no more."""
        first, second = self.stand(), self.stand()
        for contender in (second, first):
            for task in TASKS:
                self.resign(contender, task)
        self.wait(TAKEOVER)
        self.assertEqual(second.leads, [])
        self.assertEqual(self.stand().leads, ["hourly", "nightly"])


def make_election_tests(fixture: Fixture) -> type[ElectionContract]:
    """Make the tests of a provider of IElection.

    :param fixture: takes the test and its clock, returns the function that makes contenders.
    :return: a TestCase, to be subclassed under a name that says whose it is.
    """
    return type("ElectionTests", (ElectionContract,), {"fixture": staticmethod(fixture)})
