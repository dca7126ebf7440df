"""Servers that the suite starts by itself: on loopback, free ports, and temporary directories; gone with its process.

Nothing that the machine itself runs is used, or touched.
"""

import atexit
import tempfile
import unittest
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TypeVar
from unittest import TestCase

from novasvc.testing import temporary_database, temporary_virtual_host
from tests.servers.certificates import Certificates
from tests.servers.databases import DatabaseServer, MariaDB, PostgreSQL
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import Broker

S = TypeVar("S", Broker, DatabaseServer)

__all__ = [
    "Broker",
    "Certificates",
    "MariaDB",
    "PostgreSQL",
    "Proxy",
    "database_url",
    "denying_broker",
    "fragile_broker",
    "managed_broker",
    "shared_broker",
    "shared_database",
    "vhost_url",
]


@cache
def shared_broker() -> Broker:
    """Return the node that all tests of a run share, started when the first one asks; it listens with TLS, too.

    Each test has a vhost of its own there, and does nothing to the node that others could feel.
    Starting takes 5 to 10 s, in which the reactor stands still.
    """
    directory = _directory()
    return _running(Broker(directory, certificates=Certificates(directory / "certificates")))


def fragile_broker() -> Broker:
    """Return the node that tests may kill, freeze and alarm; it runs whenever a test asks for it."""
    broker = _fragile_broker()
    if not broker.running:
        broker.restart()
    return broker


@cache
def _fragile_broker() -> Broker:
    return _running(Broker(_directory()))


@cache
def denying_broker() -> Broker:
    """Return a node that permits no queue that is neither durable nor exclusive; see the shared one.

    :raises SkipTest: this release permits them all.
    """
    broker = Broker(_directory(), settings=["deprecated_features.permit.transient_nonexcl_queues = false"])
    if broker.release < (4, 0):
        raise unittest.SkipTest(f"RabbitMQ {broker.version} denies no deprecated features; tests/brokers has others")
    return _running(broker)


@cache
def managed_broker() -> Broker:
    """Return a node with the management API, which the other nodes do not run."""
    return _running(Broker(_directory(), management=True))


def vhost_url(test: TestCase, broker: Broker | None = None) -> str:
    """Return the URL of a new, empty vhost that is deleted after the test.

    :param test: asks before it opens what connects there, so that this is closed first.
    :param broker: where; the shared one by default.
    """
    broker = broker or shared_broker()
    return temporary_virtual_host(test, broker.url(), broker)


@cache
def shared_database(kind: type[DatabaseServer]) -> DatabaseServer:
    """Return the server of this kind that all tests of a run share, started when the first one asks."""
    return _running(kind(_directory() / "server"))


def database_url(test: TestCase, kind: type[DatabaseServer]) -> str:
    """Return the URL of a new, empty database that is deleted after the test; see :func:`vhost_url`."""
    server = shared_database(kind)
    return temporary_database(test, server.url(server.system))


def _directory() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="novasvc-tests-", ignore_cleanup_errors=True)
    atexit.register(holder.cleanup)
    return Path(holder.name)


def _running(server: S) -> S:
    """Start a server that runs until this process ends; one that does not become ready is killed at once.

    Each test that shares it asks again. Left alone, there would soon be one for each test.
    """
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(server)
