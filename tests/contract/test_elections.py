"""The contract of IElection: in a process, by a file, and by leases."""

import random
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.node.host_election import FileElection, ProcessElection
from novasvc.registry.election import LeaseElection
from novasvc.testing import MemoryRegistry
from novasvc.workers.file_lock import FileLock
from tests.contract.election_contract import Contenders, make_election_tests


def in_a_process(_test: SynchronousTestCase, clock: Clock) -> Contenders:
    return lambda: ProcessElection(clock, "h1", "shop")


def by_a_file(test: SynchronousTestCase, clock: Clock) -> Contenders:
    directory = Path(test.mktemp()).absolute()
    return lambda: FileElection(FileLock([directory], "shop.lock"), clock)


def by_leases(_test: SynchronousTestCase, clock: Clock) -> Contenders:
    registry, source = MemoryRegistry(clock), random.Random(1)
    return lambda: LeaseElection(registry, "shop", "h1", 30.0, clock, source)


class ProcessElectionTests(make_election_tests(in_a_process)):  # type: ignore[misc]
    """Tests for novasvc.node.host_election.ProcessElection."""


class FileElectionTests(make_election_tests(by_a_file)):  # type: ignore[misc]
    """Tests for novasvc.node.host_election.FileElection."""


class LeaseElectionTests(make_election_tests(by_leases)):  # type: ignore[misc]
    """Tests for novasvc.registry.election.LeaseElection."""
