"""The contract of IServiceRegistry, through a conductor."""

import random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import TestCase

from novasvc.manager import ManagerResources
from novasvc.periodic import TaskRunner
from novasvc.registry.conductor import TOPIC, Conductor
from novasvc.registry.remote import RemoteRegistry
from novasvc.rpc import Client, Endpoints, EventEmitter, Server
from novasvc.rpc.target import Target
from novasvc.testing import MemoryRegistry
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.contract.registry_contract import make_registry_tests
from tests.contract.test_registry_sqlite import sqlite_registry
from tests.contract.verdict_contract import DOWN_TIME


async def conducted(test: TestCase, registry: Any) -> RemoteRegistry:
    """Start a conductor for a registry, and return a RemoteRegistry on its own connection."""
    broker = MemoryBroker()

    async def connect() -> MemoryTransport:
        transport = MemoryTransport(broker, clock=reactor)
        test.addCleanup(transport.close)
        await transport.open()
        return transport

    transport = await connect()
    client = Client(transport, clock=reactor)
    test.addCleanup(client.close)
    conductor = Conductor("c1")
    test.addCleanup(conductor.cleanup_host)
    conductor.attach(
        ManagerResources(
            reactor=reactor,
            rpc=client,
            events=EventEmitter(transport, publisher_id="conductor.test", clock=reactor),
            tasks=TaskRunner(conductor, clock=reactor, random_source=random.Random(0)),
            registry=registry,
            run_blocking=maybeDeferred,
        )
    )
    server = Server(
        transport, Target(TOPIC, "c1"), Endpoints(conductor), clock=reactor, concurrency=64, run_blocking=maybeDeferred
    )
    test.addCleanup(server.close)
    await server.start()
    remote = RemoteRegistry(Client(await connect(), clock=reactor))
    test.addCleanup(remote.close)
    await remote.open()
    return remote


async def sqlite_behind_conductor(test: TestCase) -> RemoteRegistry:
    return await conducted(test, await sqlite_registry(test))


async def memory_behind_conductor(test: TestCase) -> RemoteRegistry:
    return await conducted(test, MemoryRegistry(reactor, service_down_time=DOWN_TIME))


class ConductedSQLiteTests(make_registry_tests(sqlite_behind_conductor)):  # type: ignore[misc]
    """Tests for novasvc.registry.remote, with an SQLite file behind the conductor."""


class ConductedMemoryTests(make_registry_tests(memory_behind_conductor)):  # type: ignore[misc]
    """Tests for novasvc.registry.remote, with a registry in memory behind the conductor."""
