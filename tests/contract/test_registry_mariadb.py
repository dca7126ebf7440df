"""The contract of IServiceRegistry, in MariaDB."""

import pytest

from tests.contract.registry_contract import make_registry_tests
from tests.contract.registry_servers import ServerTests, on_server
from tests.servers import MariaDB


class MariaDBRegistryTests(ServerTests, make_registry_tests(on_server(MariaDB))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.services.ServiceRegistry in MariaDB."""


_SNAPSHOT = "SET SESSION innodb_snapshot_isolation = ON"


@pytest.mark.long
class MariaDBSnapshotRegistryTests(ServerTests, make_registry_tests(on_server(MariaDB, init_command=_SNAPSHOT))):  # type: ignore[misc]
    """The same with the default of MariaDB 11.8: a row that has changed since the transaction read it is an error."""
