"""Tests for the mapping of drivers' exceptions."""

import errno
import sqlite3
from typing import Any

from sqlalchemy import exc
from twisted.trial.unittest import SynchronousTestCase

from novasvc import errors
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.diagnosis import diagnose
from novasvc.registry.sql.schema import HEAD

FILE = DatabaseAddress.parse("sqlite:////nowhere/at/all.sqlite")
SERVER = DatabaseAddress.parse("postgresql://bob:hunter2@db.example/novasvc")


class PostgreSQLError(Exception):
    """An error like psycopg's: the SQLSTATE is an attribute, None if no connection was made."""

    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


class MySQLError(Exception):
    """An error like PyMySQL's: number and text are the arguments."""


def wrapped(cause: Exception, kind: type[exc.DBAPIError] = exc.OperationalError, **given: Any) -> exc.DBAPIError:
    return kind("UPDATE services SET disabled_reason=?", {"reason": "private"}, cause, **given)


def of_sqlite(code: int, text: str = "text") -> exc.DBAPIError:
    cause = sqlite3.OperationalError(text)
    cause.sqlite_errorcode = code
    return wrapped(cause)


SQLITE = (
    (sqlite3.SQLITE_BUSY, errors.DatabaseLockedError),
    (sqlite3.SQLITE_BUSY_SNAPSHOT, errors.DatabaseLockedError),
    (sqlite3.SQLITE_LOCKED, errors.DatabaseLockedError),
    (sqlite3.SQLITE_READONLY, errors.DatabaseReadOnlyError),
    (sqlite3.SQLITE_READONLY_CANTLOCK, errors.DatabaseReadOnlyError),
    (sqlite3.SQLITE_READONLY_DBMOVED, errors.DatabaseUnavailableError),
    (sqlite3.SQLITE_FULL, errors.DatabaseFullError),
    (sqlite3.SQLITE_CORRUPT, errors.DatabaseCorruptError),
    (sqlite3.SQLITE_CORRUPT_INDEX, errors.DatabaseCorruptError),
    (sqlite3.SQLITE_NOTADB, errors.DatabaseCorruptError),
    (sqlite3.SQLITE_IOERR_WRITE, errors.DatabaseUnavailableError),
    (sqlite3.SQLITE_IOERR_SHORT_READ, errors.DatabaseCorruptError),
    (sqlite3.SQLITE_CANTOPEN, errors.DatabaseRefusedError),
    (sqlite3.SQLITE_PERM, errors.DatabaseRefusedError),
)

POSTGRESQL = (
    ("08006", "server closed the connection unexpectedly", errors.DatabaseUnavailableError),
    ("57P01", "terminating connection due to administrator command", errors.DatabaseUnavailableError),
    ("57P03", "the database system is starting up", errors.DatabaseUnavailableError),
    ("57014", "canceling statement due to statement timeout", errors.DatabaseUnavailableError),
    ("53300", "sorry, too many clients already", errors.DatabaseUnavailableError),
    ("53100", "could not extend file: No space left on device", errors.DatabaseFullError),
    ("55P03", "canceling statement due to lock timeout", errors.DatabaseLockedError),
    ("40P01", "deadlock detected", errors.DatabaseLockedError),
    ("40001", "could not serialize access", errors.DatabaseLockedError),
    ("25006", "cannot execute UPDATE in a read-only transaction", errors.DatabaseServerReadOnlyError),
    ("XX001", "invalid page in block 0", errors.DatabaseCorruptError),
    ("42501", "permission denied for table services", errors.DatabaseRefusedError),
    ("28P01", "password authentication failed", errors.DatabaseRefusedError),
    ("42P01", 'relation "services" does not exist', errors.MigrationNeededError),
    ("42703", 'column "uuid" does not exist', errors.MigrationNeededError),
    ("22001", "value too long for type character varying(255)", errors.DatabaseError),
    (None, "connection failed: Connection refused", errors.DatabaseUnavailableError),
    (None, "connection timeout expired", errors.DatabaseUnavailableError),
    (None, 'FATAL: password authentication failed for user "bob"', errors.DatabaseRefusedError),
    (None, 'FATAL: database "nodb" does not exist', errors.DatabaseRefusedError),
    (None, 'FATAL: role "bob" does not exist', errors.DatabaseRefusedError),
    (None, 'FATAL: no pg_hba.conf entry for host "1.2.3.4"', errors.DatabaseRefusedError),
    (None, "server does not support SSL, but SSL was required", errors.DatabaseRefusedError),
)

MYSQL = (
    (2003, "Can't connect to MySQL server on 'h'", errors.DatabaseUnavailableError),
    (2013, "Lost connection to MySQL server during query", errors.DatabaseUnavailableError),
    (1020, "Record has changed since last read in table 'services'", errors.DatabaseLockedError),
    (1205, "Lock wait timeout exceeded", errors.DatabaseLockedError),
    (1213, "Deadlock found when trying to get lock", errors.DatabaseLockedError),
    (1290, "running with the --read-only option", errors.DatabaseServerReadOnlyError),
    (1114, "The table 'services' is full", errors.DatabaseFullError),
    (1194, "Table 'services' is marked as crashed", errors.DatabaseCorruptError),
    (1045, "Access denied for user 'bob'@'h' (using password: YES)", errors.DatabaseRefusedError),
    (1049, "Unknown database 'nodb'", errors.DatabaseRefusedError),
    (1146, "Table 'novasvc.services' doesn't exist", errors.MigrationNeededError),
)

SYSTEM = (
    (errno.ENOSPC, errors.DatabaseFullError),
    (errno.EDQUOT, errors.DatabaseFullError),
    (errno.EROFS, errors.DatabaseReadOnlyError),
    (errno.EACCES, errors.DatabaseReadOnlyError),
    (errno.EMFILE, errors.DatabaseUnavailableError),
    (errno.ENOENT, errors.DatabaseRefusedError),
    (errno.ENOTDIR, errors.DatabaseRefusedError),
)


class DiagnoseTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.diagnosis.diagnose."""

    def check(self, address: DatabaseAddress, error: Exception, kind: type[Exception], text: str) -> None:
        found = diagnose(address, error)
        self.assertIs(type(found), kind, error)
        self.assertIn(text, str(found))
        self.assertIn(address.masked, str(found))
        self.assertEqual(len(str(found).splitlines()), 1)
        for secret in ("hunter2", "private", "UPDATE services SET"):
            self.assertNotIn(secret, f"{found} {found!r}")

    def test_sqlite(self) -> None:
        """SQLite: by extended result code, then by primary result code."""
        for code, kind in SQLITE:
            self.check(FILE, of_sqlite(code), kind, "text")

    def test_deadlocks(self) -> None:
        """A transaction that was ended in favour of another one may be tried again at once; a kept lock is kept."""
        for cause, again in (
            (PostgreSQLError("deadlock", "40P01"), True),
            (PostgreSQLError("not serializable", "40001"), True),
            (PostgreSQLError("lock timeout", "55P03"), False),
            (MySQLError(1020, "changed"), True),
            (MySQLError(1213, "deadlock"), True),
            (MySQLError(1205, "lock timeout"), False),
        ):
            found = diagnose(SERVER, wrapped(cause))
            assert isinstance(found, errors.DatabaseLockedError)
            self.assertEqual((found.is_deadlock, "try again" in str(found)), (again, again), cause)

    def test_postgresql(self) -> None:
        """PostgreSQL: by SQLSTATE, or by text for a failed connection, which has none."""
        for sqlstate, text, kind in POSTGRESQL:
            self.check(SERVER, wrapped(PostgreSQLError(f"{text}\n  more", sqlstate)), kind, text)

    def test_mysql(self) -> None:
        """MySQL: by error number, which the message shows."""
        for number, text, kind in MYSQL:
            self.check(SERVER, wrapped(MySQLError(number, text)), kind, f"{text} ({number})")

    def test_system(self) -> None:
        """An OSError: by errno; the message names the file."""
        for number, kind in SYSTEM:
            self.check(FILE, OSError(number, "strerror", "/x/y"), kind, "strerror: /x/y")

    def test_missing_table(self) -> None:
        """SQLite: a missing table, which has no code of its own, asks for a migration."""
        found = diagnose(FILE, of_sqlite(sqlite3.SQLITE_ERROR, "no such table: services"))
        self.assertIsInstance(found, errors.MigrationNeededError)
        self.assertEqual((found.found, found.known), (None, HEAD))  # type: ignore[attr-defined]

    def test_unique_key(self) -> None:
        """A violated unique key is a DatabaseConflictError with every driver."""
        for cause in (sqlite3.IntegrityError("UNIQUE"), PostgreSQLError("UNIQUE", "23505"), MySQLError(1062, "UNIQUE")):
            self.check(SERVER, wrapped(cause, exc.IntegrityError), errors.DatabaseConflictError, "UNIQUE")

    def test_sqlalchemy(self) -> None:
        """SQLAlchemy's own errors: no connection in time means that the database is unavailable."""
        self.check(FILE, exc.TimeoutError("QueuePool limit"), errors.DatabaseUnavailableError, "QueuePool")
        lost = wrapped(PostgreSQLError("lost", None), exc.InternalError, connection_invalidated=True)
        self.check(SERVER, lost, errors.DatabaseUnavailableError, "lost")

    def test_unknown(self) -> None:
        """An unknown error is a DatabaseError with the driver's message."""
        self.check(SERVER, wrapped(PostgreSQLError("odd", "99999"), exc.InternalError), errors.DatabaseError, "odd")
        self.check(FILE, of_sqlite(sqlite3.SQLITE_MISUSE, "odd"), errors.DatabaseError, "odd")
        self.check(SERVER, wrapped(PostgreSQLError("", "99999")), errors.DatabaseError, "PostgreSQLError")

    def test_password_in_the_message(self) -> None:
        """A password in a driver's message is masked."""
        self.check(
            SERVER, wrapped(PostgreSQLError("bad dsn bob:hunter2@db", None)), errors.DatabaseUnavailableError, "***"
        )

    def test_long_message(self) -> None:
        """A long message is truncated."""
        self.assertLess(len(str(diagnose(SERVER, wrapped(PostgreSQLError("x" * 10_000, "99999"))))), 500)
