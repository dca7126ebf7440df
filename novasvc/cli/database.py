"""A database that is not there yet."""

import attrs

from novasvc.errors import DatabaseRefusedError
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.migrate import exists


@attrs.define
class MissingDatabaseError(DatabaseRefusedError):
    """No node has run here yet, or the operator looks in another place than the node."""

    remedy = (
        "start a node with `twistd novasvc`, or say where its database is with --state-dir, --database-url or --config"
    )


def require_database(url: str) -> None:
    """See that there is something to connect to; make nothing.

    :raises MissingDatabaseError: it is a file that does not exist.
    """
    address = DatabaseAddress.parse(url)
    if not exists(address):
        problem = f"no node has run here yet: there is no file {address.path}"
        raise MissingDatabaseError(address.masked, problem)
