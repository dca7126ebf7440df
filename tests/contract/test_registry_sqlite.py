"""The contract of IServiceRegistry, in an SQLite file."""

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.registry.sql import migrate
from novasvc.registry.sql.services import ServiceRegistry, connect_registry
from tests.contract.registry_contract import make_registry_tests
from tests.contract.verdict_contract import DOWN_TIME


async def sqlite_registry(test: TestCase) -> ServiceRegistry:
    url = f"sqlite:///{test.mktemp()}.sqlite"
    migrate.upgrade(url)
    registry = connect_registry(url, reactor=reactor, service_down_time=DOWN_TIME)
    test.addCleanup(registry.close)
    await registry.open()
    return registry


class SQLiteRegistryTests(make_registry_tests(sqlite_registry)):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.services.ServiceRegistry in a file."""
