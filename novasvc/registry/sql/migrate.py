"""Bring a database's schema to the revision that this version works with.

Everything here blocks: the operators' command calls it as it is, a node in a worker thread.

Note [Migrations in a child process]
    Alembic costs some 11 MiB of resident memory and a third of a second to import, for the whole
    life of a node, and is needed once in a schema's life. So a look at the schema reads the version
    table with plain SQL, an empty database gets the tables of :mod:`novasvc.registry.sql.schema` as they are,
    which the tests hold equal to what the migrations make, and a migration that a node needs is run
    by a short-lived child. The URL, with its password, goes through the child's standard input, for
    every user of a host can read a process's arguments. A subprocess in a worker thread, and not
    reactor.spawnProcess, because it needs no signal handler of the reactor's, and no fork of a
    process with threads.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import sqlalchemy
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import SQLAlchemyError

from novasvc.errors import DatabaseError, DatabaseLockedError, DatabaseNewerError, DatabaseUnavailableError
from novasvc.registry.sql import sqlite
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.diagnosis import diagnose
from novasvc.registry.sql.schema import HEAD, REVISIONS, VERSION_TABLE, metadata, revision, services

PATIENCE = 10.0
"""Seconds that the database may let a migration wait for a connection, a lock or a statement."""

_LOCK = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"SELECT pg_advisory_xact_lock({int.from_bytes(b'novasvc')})",
    "mysql": f"SELECT GET_LOCK('{VERSION_TABLE}', {PATIENCE:g})",
    "mariadb": f"SELECT GET_LOCK('{VERSION_TABLE}', {PATIENCE:g})",
}
"""What makes nodes that start at the same time migrate one after the other; let go with the connection."""


def current(url: str) -> str | None:
    """Read which revision a database's schema has.

    :param url: the database's URL.
    :return: the revision; None if it has none of ours: an empty database, one of Nova's, no file yet.
    :raises DatabaseError: it cannot be read.
    """
    address = DatabaseAddress.parse(url)
    if not exists(address):
        return None
    with _connected(address) as connection:
        return read_revision(connection)


def check(url: str) -> bool:
    """Tell whether a database's schema is the one that this version works with.

    :param url: the database's URL.
    :return: False if :func:`upgrade` has something to do.
    :raises DatabaseNewerError: the schema is of a newer version.
    :raises DatabaseError: it cannot be read.
    """
    return is_head(DatabaseAddress.parse(url), current(url))


def upgrade(url: str) -> str:
    """Bring a database's schema up to date, in this process. Two at a time is no error.

    :param url: the database's URL. A file that does not exist is made; its directory is not.
    :return: the revision it has then.
    :raises DatabaseNewerError: the schema is of a newer version; nothing was changed.
    :raises DatabaseError: it cannot be done.
    """
    # Here, because this is what only a migration needs.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    address = DatabaseAddress.parse(url)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["database"] = address.masked
    _make_file(address)
    with _connected(address) as connection:
        _lock(address, connection)
        if not is_head(address, read_revision(connection)):
            config.attributes["connection"] = connection
            command.upgrade(config, HEAD)
        connection.commit()
    return HEAD


def create(url: str) -> bool:
    """Make the tables in a database that has none. Two at a time is no error.

    :param url: as of :func:`upgrade`.
    :return: whether the database has this version's schema now; False if there were other tables.
    :raises DatabaseError: it cannot be done.
    """
    address = DatabaseAddress.parse(url)
    _make_file(address)
    with _connected(address) as connection:
        _lock(address, connection)
        if not sqlalchemy.inspect(connection).get_table_names():
            metadata.create_all(connection)
            connection.execute(insert(revision).values(version_num=HEAD))
        made = read_revision(connection) == HEAD
        connection.commit()
    return made


def upgrade_in_child(address: DatabaseAddress, deadline: float) -> None:
    """Do :func:`upgrade` in a process of its own. See Note [Migrations in a child process].

    :param address: the database.
    :param deadline: seconds after which the process is killed, > 0.
    :raises DatabaseError: what the child raised.
    """
    # -P: what lies in the working directory is not imported; what this process can import, is.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "novasvc.registry.sql.migrate"],
            input=address.render(),
            capture_output=True,
            text=True,
            timeout=deadline,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        problem = f"its migration took longer than {deadline:g} s and was ended"
        raise DatabaseUnavailableError(address.masked, problem) from None
    except OSError as error:
        raise DatabaseError(address.masked, f"its migration cannot be started: {error}") from error
    if child.returncode != 0:
        raise _raised_by(address, child)


def _raised_by(address: DatabaseAddress, child: subprocess.CompletedProcess[str]) -> DatabaseError:
    try:
        name, fields = json.loads(child.stdout)
        kind = {kind.__name__: kind for kind in _kinds(DatabaseError)}[name]
        return kind(**fields)
    except (ValueError, KeyError, TypeError):
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return DatabaseError(address.masked, f"its migration ended with status {child.returncode}: {last}")


def _kinds(kind: type[DatabaseError]) -> list[type[DatabaseError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in _kinds(sub))]


def _make_file(address: DatabaseAddress) -> None:
    if address.path is not None:
        try:
            sqlite.create(address.path)
        except OSError as error:
            raise diagnose(address, error) from error


@contextmanager
def _connected(address: DatabaseAddress) -> Iterator[Connection]:
    engine = address.make_engine(connections=1, patience=PATIENCE)
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise diagnose(address, error) from error
    finally:
        engine.dispose()


def _lock(address: DatabaseAddress, connection: Connection) -> None:
    backend = address.url.get_backend_name()
    taken = connection.exec_driver_sql(_LOCK[backend]) if backend in _LOCK else None
    # MySQL says so, where the others raise.
    if backend in {"mysql", "mariadb"} and taken is not None and taken.scalar() != 1:
        raise DatabaseLockedError(address.masked, f"another migration has been running for {PATIENCE:g} s")


def is_head(address: DatabaseAddress, found: str | None) -> bool:
    """Judge a revision.

    :param address: the database that has it, for the error.
    :param found: what :func:`read_revision` returned.
    :return: False if it is older than this version's.
    :raises DatabaseNewerError: this version does not know it.
    """
    if found is None or found in REVISIONS:
        return found == HEAD
    problem = f"its schema has revision {found!r}; this version knows up to {HEAD!r}"
    raise DatabaseNewerError(address.masked, problem, found=found, known=HEAD)


def read_revision(connection: Connection) -> str | None:
    """Read the version table, if there is one; alembic is not needed for it."""
    if not sqlalchemy.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(select(revision.c.version_num)).scalars().all()
    # More than one is a branch, which we never had: then it is the unknown one that matters.
    return next((each for each in found if each not in REVISIONS), found[0] if found else None)


def is_adoptable(connection: Connection) -> bool:
    """Tell whether a database has the table ``services`` as Nova's migrations make it."""
    inspector = sqlalchemy.inspect(connection)
    if not inspector.has_table(services.name):
        return False
    present = {column["name"] for column in inspector.get_columns(services.name)}
    keys: list[set[str | None]] = [set(key["column_names"]) for key in inspector.get_unique_constraints(services.name)]
    keys += [set(index["column_names"]) for index in inspector.get_indexes(services.name) if index["unique"]]
    return present.issuperset(services.c.keys()) and {"host", "binary", "deleted"} in keys


def exists(address: DatabaseAddress) -> bool:
    """Tell whether there is anything to connect to: a file may not be there yet."""
    return address.path is None or os.path.lexists(address.path)


def main() -> None:
    """Be the child of :func:`upgrade_in_child`: the URL on standard input, an error as JSON on standard output."""
    try:
        upgrade(sys.stdin.read())
    except DatabaseError as error:
        sys.stdout.write(json.dumps([type(error).__name__, attrs.asdict(error)]))
        sys.exit(1)


if __name__ == "__main__":
    main()
