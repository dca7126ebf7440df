"""The contract of IServiceRegistry, in PostgreSQL and MariaDB."""

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.registry.sql import migrate
from novasvc.registry.sql.services import ServiceRegistry, connect_registry
from tests.contract.registry_contract import Fixture, make_registry_tests
from tests.servers import MariaDB, PostgreSQL, database_url
from tests.servers.databases import DatabaseServer


def on_server(kind: type[DatabaseServer]) -> Fixture:
    """Make a fixture with a new database for each test."""

    async def fixture(test: TestCase) -> ServiceRegistry:
        url = database_url(test, kind)
        migrate.create(url)
        registry = connect_registry(url, reactor=reactor)
        test.addCleanup(registry.close)
        await registry.open()
        return registry

    return fixture


class PostgreSQLRegistryTests(make_registry_tests(on_server(PostgreSQL))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.services.ServiceRegistry in PostgreSQL."""


class MariaDBRegistryTests(make_registry_tests(on_server(MariaDB))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.services.ServiceRegistry in MariaDB."""
