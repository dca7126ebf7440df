"""Leases on real databases: a leader that loses its database stops in time, and its successor begins after that."""

import random
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from novasvc.periodic.term import Term
from novasvc.registry.election import LeaseElection
from novasvc.registry.sql import migrate
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.engine import Engine
from novasvc.registry.sql.services import ServiceRegistry
from tests.servers import MariaDB, PostgreSQL, Proxy, database_url, shared_database
from tests.servers.databases import DatabaseServer

LEASE = 3.0
PATIENCE = 30.0


class Host:
    """A host with its own connection to the database; remembers when its lead began and ended."""

    def __init__(self, name: str, registry: ServiceRegistry) -> None:
        self.gained: list[tuple[float, int | None]] = []
        self.lost: list[float] = []
        self.election = LeaseElection(registry, "shop", name, LEASE, reactor, random.Random(name))

    def start(self) -> None:
        self.election.start(
            ["nightly"],
            lambda _task, term: self.gained.append((reactor.seconds(), self._fencing(term))),
            lambda _task, _reason: self.lost.append(reactor.seconds()),
        )

    def _fencing(self, term: Term) -> int | None:
        return term.fencing


class LeaseFaults:
    """The tests; each server has a class."""

    kind: type[DatabaseServer]

    async def host(self: Any, name: str, url: str) -> Host:
        registry = ServiceRegistry(Engine(DatabaseAddress.parse(url), reactor=reactor, wait_timeout=1.0, timeout=2.0))
        self.addCleanup(registry.close)
        await registry.open()
        return Host(name, registry)

    async def setUp(self: Any) -> None:
        url = database_url(self, self.kind)
        migrate.create(url)
        self.proxy = Proxy(reactor, shared_database(self.kind).port)
        self.addCleanup(self.proxy.stop)
        port = self.proxy.listen()
        self.first = await self.host("h1", url.replace(f":{urlsplit(url).port}", f":{port}"))
        self.second = await self.host("h2", url)
        self.addCleanup(self.resign)
        self.first.start()
        await self.until(lambda: self.first.gained)
        self.second.start()

    async def resign(self: Any) -> None:
        self.proxy.heal()
        await gatherResults([host.election.resign("nightly") for host in (self.first, self.second)])

    async def until(self: Any, condition: Callable[[], object]) -> None:
        deadline = reactor.seconds() + PATIENCE
        while not condition():
            self.assertLess(reactor.seconds(), deadline, "not in time")
            await deferLater(reactor, 0.02)

    async def succession(self: Any) -> None:
        """Wait for the successor, and check that it began in time, and after the leader had stopped."""
        cut = reactor.seconds()
        await self.until(lambda: self.second.gained)
        ((began, fencing),) = self.second.gained
        self.assertEqual(fencing, 2)
        self.assertEqual(len(self.first.lost), 1)
        self.assertLess(self.first.lost[0], began)
        self.assertLess(began - cut, 2 * LEASE)
        self.proxy.heal()
        await deferLater(reactor, LEASE)
        self.assertEqual((len(self.first.gained), len(self.second.lost)), (1, 0))

    async def test_silent_network(self: Any) -> None:
        """A network that swallows everything ends a lead before the lease ends."""
        self.proxy.change(hangs=True)
        await self.succession()

    async def test_refused(self: Any) -> None:
        """A database that refuses connections ends a lead before the lease ends."""
        self.proxy.refuses = True
        self.proxy.reset()
        await self.succession()

    async def test_short_cut(self: Any) -> None:
        """A connection that is cut and made again costs no lead."""
        self.proxy.reset()
        await deferLater(reactor, 2 * LEASE)
        self.assertEqual((len(self.first.gained), self.first.lost, self.second.gained), (1, [], []))


@pytest.mark.slow
class PostgreSQLLeaseFaultTests(LeaseFaults, TestCase):
    """Tests for novasvc.registry.election with PostgreSQL."""

    kind = PostgreSQL


@pytest.mark.long
@pytest.mark.slow
class MariaDBLeaseFaultTests(LeaseFaults, TestCase):
    """Tests for novasvc.registry.election with MariaDB."""

    kind = MariaDB
