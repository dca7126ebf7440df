"""Check that the database file exists before a command uses it."""

from novasvc.errors import ProblemError
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.migrate import exists


def require_database(url: str) -> None:
    """Check that a SQLite file exists, because connecting would create it.

    :raises ProblemError: the file does not exist.
    """
    address = DatabaseAddress.parse(url)
    if not exists(address):
        problem = f"no node has run here yet: {address.path} does not exist"
        remedy = (
            "start a node with `twistd novasvc`, or locate its database with --state-dir, --database-url or --config"
        )
        raise ProblemError(f"database {address.masked}", problem, remedy)
