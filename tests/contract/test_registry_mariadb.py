"""The contract of IServiceRegistry, in MariaDB."""

import pytest
from sqlalchemy import text
from twisted.internet import reactor
from twisted.internet.task import deferLater

from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.sql.engine import Engine
from tests.contract.registry_contract import make_registry_tests
from tests.contract.registry_servers import ServerTests, on_server
from tests.servers import MariaDB


class MariaDBRegistryTests(ServerTests, make_registry_tests(on_server(MariaDB))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.services.ServiceRegistry in MariaDB."""

    async def test_long_statement(self) -> None:
        """A statement that takes too long is ended by the server, not only left alone by the client."""
        engine = Engine(self.registry._engine.address, reactor=reactor, wait_timeout=1.0)
        self.addCleanup(engine.close)
        slow = text("SELECT count(*) FROM seq_1_to_1000000000000 WHERE seq % 7 = 3")
        others = text("SELECT info FROM information_schema.processlist WHERE id <> connection_id()")
        await self.assertFailure(engine.run(lambda connection: connection.execute(slow)), DatabaseUnavailableError)
        deadline = reactor.seconds() + 5
        while slow.text in await engine.run(lambda connection: connection.execute(others).scalars().all()):
            self.assertLess(reactor.seconds(), deadline)
            await deferLater(reactor, 0.05)


_SNAPSHOT = "SET SESSION innodb_snapshot_isolation = ON"


@pytest.mark.long
class MariaDBSnapshotRegistryTests(ServerTests, make_registry_tests(on_server(MariaDB, init_command=_SNAPSHOT))):  # type: ignore[misc]
    """The same with the default of MariaDB 11.8: a row that has changed since the transaction read it is an error."""
