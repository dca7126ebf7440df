"""Migrates a database's schema to the revision that this version works with.

Everything here blocks: the operators' command calls it directly, a node in a worker thread.

Note [Migrations in a child process]
    Importing Alembic costs about 11 MiB of resident memory and a third of a second, for the whole
    life of a node, but a migration runs once in a schema's life. So the version table is read with
    plain SQL; an empty database gets the tables of :mod:`novasvc.registry.sql.schema` directly, and
    tests check that these equal the result of the migrations; and a migration that a node needs runs
    in a short-lived child. The URL, with its password, goes through the child's standard input,
    because every user of a host can read a process's arguments. A subprocess in a worker thread is
    used instead of reactor.spawnProcess, because it needs neither a signal handler of the reactor
    nor a fork of a process with threads.
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

from novasvc.registry.errors import DatabaseError, DatabaseLockedError, DatabaseNewerError, DatabaseUnavailableError
from novasvc.registry.sql import sqlite
from novasvc.registry.sql.address import DatabaseAddress, lock_timeout
from novasvc.registry.sql.diagnosis import diagnose
from novasvc.registry.sql.schema import HEAD, REVISIONS, VERSION_TABLE, metadata, revision, services

WAIT_TIMEOUT = 10.0
"""Seconds that a migration may wait for a connection, a lock or a statement."""

_LOCK_TIMEOUT = lock_timeout(WAIT_TIMEOUT)

_LOCK = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"SELECT pg_advisory_xact_lock({int.from_bytes(b'novasvc')})",
    "mysql": f"SELECT GET_LOCK('{VERSION_TABLE}', {_LOCK_TIMEOUT:g})",
    "mariadb": f"SELECT GET_LOCK('{VERSION_TABLE}', {_LOCK_TIMEOUT:g})",
}
"""The advisory lock that serialises concurrent migrations; released with the connection."""


def current(url: str) -> str | None:
    """Return the revision of a database's schema.

    :param url: the database's URL.
    :return: the revision; None for an empty database, a database of Nova's, or a file that does not exist.
    :raises DatabaseError: it cannot be read.
    """
    address = DatabaseAddress.parse(url)
    if not exists(address):
        return None
    with _connected(address) as connection:
        return read_revision(connection)


def check(url: str) -> bool:
    """Return whether a database's schema has the revision that this version works with.

    :param url: the database's URL.
    :return: False if :func:`upgrade` has something to do.
    :raises DatabaseNewerError: the schema is of a newer version.
    :raises DatabaseError: it cannot be read.
    """
    return is_head(DatabaseAddress.parse(url), current(url))


def upgrade(url: str) -> str:
    """Migrate a database's schema to HEAD, in this process. Concurrent calls are safe.

    :param url: the database's URL. A missing file is created; its directory is not.
    :return: the revision it has then.
    :raises DatabaseNewerError: the schema is of a newer version; nothing was changed.
    :raises DatabaseError: the migration failed.
    """
    # Imported here, because only a migration needs it; see Note [Migrations in a child process].
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
    """Create the tables in a database that has none, or only some, as an interrupted call leaves it.

    Concurrent calls are safe.

    :param url: see :func:`upgrade`.
    :return: whether the database has this version's schema now; False if it had other tables.
    :raises DatabaseError: the tables cannot be created.
    """
    address = DatabaseAddress.parse(url)
    _make_file(address)
    with _connected(address) as connection:
        _lock(address, connection)
        if _is_unfinished(connection):
            metadata.create_all(connection)
            for index in (index for table in metadata.sorted_tables for index in table.indexes):
                index.create(connection, checkfirst=True)
            connection.execute(insert(revision).values(version_num=HEAD))
        made = read_revision(connection) == HEAD
        connection.commit()
    return made


def _is_unfinished(connection: Connection) -> bool:
    """Return whether a database has no tables, or only those that an interrupted :func:`create` has made."""
    tables = set(sqlalchemy.inspect(connection).get_table_names())
    if not tables <= set(metadata.tables) or read_revision(connection) is not None:
        return False
    return services.name not in tables or is_adoptable(connection)


def upgrade_in_child(address: DatabaseAddress, deadline: float) -> None:
    """Run :func:`upgrade` in a child process. See Note [Migrations in a child process].

    :param address: the database.
    :param deadline: seconds after which the child is killed, > 0.
    :raises DatabaseError: the error that the child raised.
    """
    # -P keeps the working directory off sys.path; everything this process can import stays importable.
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
        problem = f"its migration took longer than {deadline:g} s and was killed"
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
        last = (child.stderr.strip().splitlines() or ["it printed nothing"])[-1]
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
    engine = address.make_engine(connections=1, wait_timeout=WAIT_TIMEOUT)
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
    # GET_LOCK belongs to the connection: MySQL commits before each DDL statement, which would release a lock of the
    # transaction. It returns 0 or NULL when it times out, where the others raise.
    if backend in {"mysql", "mariadb"} and taken is not None and taken.scalar() != 1:
        raise DatabaseLockedError(address.masked, f"another migration has been running for {_LOCK_TIMEOUT:g} s")


def is_head(address: DatabaseAddress, found: str | None) -> bool:
    """Return whether a revision is the one of this version.

    :param address: the database, for the error.
    :param found: the result of :func:`read_revision`.
    :return: False if the revision is older, or there is none.
    :raises DatabaseNewerError: this version does not know the revision.
    """
    if found is None or found in REVISIONS:
        return found == HEAD
    problem = f"its schema has revision {found!r}; this version knows up to {HEAD!r}"
    raise DatabaseNewerError(address.masked, problem, found=found, known=HEAD)


def read_revision(connection: Connection) -> str | None:
    """Read the version table, if there is one, without Alembic."""
    if not sqlalchemy.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(select(revision.c.version_num)).scalars().all()
    # Several rows are a branch, which we never had: then the unknown revision decides.
    return next((each for each in found if each not in REVISIONS), found[0] if found else None)


def is_adoptable(connection: Connection) -> bool:
    """Return whether a database has the table ``services`` as Nova's migrations make it."""
    inspector = sqlalchemy.inspect(connection)
    if not inspector.has_table(services.name):
        return False
    present = {column["name"] for column in inspector.get_columns(services.name)}
    keys: list[set[str | None]] = [set(key["column_names"]) for key in inspector.get_unique_constraints(services.name)]
    keys += [set(index["column_names"]) for index in inspector.get_indexes(services.name) if index["unique"]]
    return present.issuperset(services.c.keys()) and {"host", "binary", "deleted"} in keys


def exists(address: DatabaseAddress) -> bool:
    """Return whether there is a database to connect to: an SQLite file may not exist yet."""
    return address.path is None or os.path.lexists(address.path)


def main() -> None:
    """Run the child of :func:`upgrade_in_child`: read the URL from stdin, write an error as JSON to stdout."""
    try:
        upgrade(sys.stdin.read())
    except DatabaseError as error:
        sys.stdout.write(json.dumps([type(error).__name__, attrs.asdict(error)]))
        sys.exit(1)


if __name__ == "__main__":
    main()
