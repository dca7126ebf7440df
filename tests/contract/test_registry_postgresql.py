"""The contract of IServiceRegistry, in PostgreSQL."""

from tests.contract.registry_contract import make_registry_tests
from tests.contract.registry_servers import ServerTests, on_server
from tests.servers import PostgreSQL


class PostgreSQLRegistryTests(ServerTests, make_registry_tests(on_server(PostgreSQL))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.services.ServiceRegistry in PostgreSQL."""
