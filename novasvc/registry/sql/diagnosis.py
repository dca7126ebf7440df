"""Maps drivers' exceptions to our errors: by error code, or by text where there is no code."""

import errno
import re
import sqlite3
from pathlib import Path

from sqlalchemy import exc

from novasvc.registry.errors import (
    DatabaseConflictError,
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseRefusedError,
    DatabaseServerReadOnlyError,
    DatabaseUnavailableError,
    MigrationNeededError,
)
from novasvc.registry.sql import sqlite
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.schema import HEAD

_LONGEST = 300
"""Characters of a driver's message that our errors quote."""

_SQLITE = {
    sqlite3.SQLITE_BUSY: DatabaseLockedError,
    sqlite3.SQLITE_LOCKED: DatabaseLockedError,
    sqlite3.SQLITE_READONLY: DatabaseReadOnlyError,
    sqlite3.SQLITE_READONLY_DBMOVED: DatabaseUnavailableError,
    sqlite3.SQLITE_FULL: DatabaseFullError,
    sqlite3.SQLITE_CORRUPT: DatabaseCorruptError,
    sqlite3.SQLITE_NOTADB: DatabaseCorruptError,
    sqlite3.SQLITE_IOERR: DatabaseUnavailableError,
    sqlite3.SQLITE_IOERR_SHORT_READ: DatabaseCorruptError,
    sqlite3.SQLITE_NOMEM: DatabaseUnavailableError,
    sqlite3.SQLITE_INTERRUPT: DatabaseUnavailableError,
    sqlite3.SQLITE_PROTOCOL: DatabaseLockedError,
    sqlite3.SQLITE_CANTOPEN: DatabaseRefusedError,
    sqlite3.SQLITE_PERM: DatabaseRefusedError,
    sqlite3.SQLITE_AUTH: DatabaseRefusedError,
}
"""By extended result code or, failing that, by primary result code."""

_SQLSTATE = {
    "08": DatabaseUnavailableError,
    "25006": DatabaseServerReadOnlyError,
    "28": DatabaseRefusedError,
    "3D": DatabaseRefusedError,
    "40": DatabaseLockedError,
    "42501": DatabaseRefusedError,
    "42P01": MigrationNeededError,
    "42703": MigrationNeededError,
    "53": DatabaseUnavailableError,
    "53100": DatabaseFullError,
    "55P03": DatabaseLockedError,
    "57": DatabaseUnavailableError,
    "XX001": DatabaseCorruptError,
    "XX002": DatabaseCorruptError,
}
"""PostgreSQL: by SQLSTATE, or by SQLSTATE class (its first two characters)."""

_MYSQL = {
    **dict.fromkeys((1040, 1053, 1927, 1969, 2002, 2003, 2006, 2013, 3024), DatabaseUnavailableError),
    **dict.fromkeys((1020, 1205, 1213), DatabaseLockedError),
    **dict.fromkeys((1290, 1792, 1836), DatabaseServerReadOnlyError),
    **dict.fromkeys((1021, 1041, 1114), DatabaseFullError),
    **dict.fromkeys((1034, 1035, 1194, 1712), DatabaseCorruptError),
    **dict.fromkeys((1044, 1045, 1049, 1142, 1698), DatabaseRefusedError),
    **dict.fromkeys((1054, 1146), MigrationNeededError),
}
"""By error number."""

_DEADLOCKS = (1020, 1213)
"""By error number: a row was changed since this transaction has read it; a deadlock."""

_OS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), DatabaseFullError),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), DatabaseReadOnlyError),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG), DatabaseRefusedError),
}

# For errors without a code: SQLite's general error, and a connection that PostgreSQL refused.
_TEXTS = (
    (re.compile(r"no such (table|column)|has no column"), MigrationNeededError),
    (re.compile(r"authentication failed|no password supplied|no pg_hba\.conf entry"), DatabaseRefusedError),
    (re.compile(r"(role|database|user) .* does not exist|permission denied|not permitted"), DatabaseRefusedError),
    (re.compile(r"certificate|SSL .* (required|not supported)"), DatabaseRefusedError),
)


def diagnose(address: DatabaseAddress, error: BaseException) -> DatabaseError:
    """Convert an exception of SQLAlchemy, a driver or the system to an error that says what to do.

    :param address: the database.
    :param error: the exception. An SQLAlchemy error that wraps a driver's counts as the driver's.
    :return: the error, not raised: DatabaseError itself if nothing more specific is known.
    """
    cause = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    problem = _one_line(address, cause)
    kind = _kind(error, cause, problem)
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None and address.path is not None:
        kind, problem = _of_file(address.path, code, kind, problem)
    if issubclass(kind, MigrationNeededError):
        return MigrationNeededError(address.masked, problem, found=None, known=HEAD)
    diagnosed = kind(address.masked, problem)
    if isinstance(diagnosed, DatabaseLockedError) and _is_deadlock(cause):
        diagnosed.is_deadlock, diagnosed.remedy = True, "try again"
    return diagnosed


def _is_deadlock(cause: BaseException) -> bool:
    sqlstate = getattr(cause, "sqlstate", None) or ""
    return sqlstate.startswith("40") or any(number in _DEADLOCKS for number in cause.args[:1])


def _kind(error: BaseException, cause: BaseException, problem: str) -> type[DatabaseError]:
    if isinstance(error, exc.IntegrityError):
        return DatabaseConflictError
    if isinstance(error, exc.TimeoutError | exc.DisconnectionError):
        return DatabaseUnavailableError
    if isinstance(cause, OSError):
        return _OS.get(cause.errno or 0, DatabaseUnavailableError)
    sqlstate = getattr(cause, "sqlstate", None) or ""
    code = getattr(cause, "sqlite_errorcode", -1)
    number = cause.args[0] if cause.args and isinstance(cause.args[0], int) else None
    found = (
        _SQLITE.get(code) or _SQLITE.get(code & 0xFF) or _SQLSTATE.get(sqlstate) or _SQLSTATE.get(sqlstate[:2])
    ) or _MYSQL.get(number or 0)
    if found is not None:
        return found
    for pattern, kind in _TEXTS:
        if pattern.search(problem):
            return kind
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    # A server's OperationalError without a code is a connection that could not be made.
    uncoded = isinstance(error, exc.OperationalError | exc.InterfaceError) and code == -1 and not sqlstate
    return DatabaseUnavailableError if lost or uncoded else DatabaseError


def _of_file(path: Path, code: int, kind: type[DatabaseError], problem: str) -> tuple[type[DatabaseError], str]:
    match code & 0xFF:
        case sqlite3.SQLITE_CANTOPEN:
            reason, writing = sqlite.unopenable(path)
            return DatabaseReadOnlyError if writing else kind, f"{problem}: {reason}"
        case sqlite3.SQLITE_READONLY:
            why = sqlite.unwritable(path)
            return kind, f"{problem}: {why}" if why else problem
        case sqlite3.SQLITE_NOTADB if sqlite.is_newer(path):
            return DatabaseRefusedError, f"the file was made by a newer SQLite than {sqlite3.sqlite_version}"
        case sqlite3.SQLITE_ERROR if "unsupported file format" in problem:
            return DatabaseRefusedError, f"the file was made by a newer SQLite than {sqlite3.sqlite_version}"
    return kind, problem


def _one_line(address: DatabaseAddress, cause: BaseException) -> str:
    # psycopg's text includes the statement; its primary message is one line.
    text = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause)
    if isinstance(cause, OSError) and cause.strerror:
        text = f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
    elif len(cause.args) > 1 and isinstance(cause.args[0], int):
        text = f"{cause.args[1]} ({cause.args[0]})"
    text = " ".join(text.split()) or type(cause).__name__
    if address.url.password:
        text = text.replace(str(address.url.password), "***")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
