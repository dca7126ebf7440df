"""Check that the database file exists before a command uses it."""

import attrs

from novasvc.registry.errors import DatabaseRefusedError
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.migrate import exists


@attrs.define
class MissingDatabaseError(DatabaseRefusedError):
    """The database file does not exist: no node has run here yet, or the node uses another path."""

    remedy = "start a node with `twistd novasvc`, or locate its database with --state-dir, --database-url or --config"


def require_database(url: str) -> None:
    """Check that a SQLite file exists, because connecting would create it.

    :raises MissingDatabaseError: the file does not exist.
    """
    address = DatabaseAddress.parse(url)
    if not exists(address):
        problem = f"no node has run here yet: {address.path} does not exist"
        raise MissingDatabaseError(address.masked, problem)
