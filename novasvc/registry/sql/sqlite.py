"""SQLite files: creation, pragmas, and the reasons why they cannot be opened or written."""

import contextlib
import os
import sqlite3
import stat
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

_MODE = 0o600
_MAGIC = b"SQLite format 3\x00"
_NEWEST_FORMAT = 2
_IS_OURS = (
    "SELECT NOT EXISTS (SELECT 1 FROM sqlite_master) "
    "OR EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'novasvc_alembic_version')"
)
_PAGE = 4096
"""Bytes of a page, by default."""


def create(path: Path) -> None:
    """Create an empty database file that only its owner can read, unless there is a file already.

    SQLite gives the files beside it, ``-wal`` and ``-shm``, the same mode.

    :raises OSError: it cannot be created.
    """
    # O_EXCL: closing any descriptor of a file that SQLite has open in this process would drop its POSIX locks.
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            os.fchmod(descriptor, _MODE)  # independent of the umask
        finally:
            os.close(descriptor)


def watch(engine: sqlalchemy.Engine, path: Path) -> None:
    """Set up each new connection, and discard connections whose file was moved away or replaced.

    Otherwise a node would go on writing to a file that nobody else sees any more.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        record.info["file"] = _identity(path)
        cursor = connection.cursor()
        # WAL: readers and the writer do not block each other. The mode is a property of the file, and persists. A
        # connection that loses the race to set it, or may not write, works with the mode there is. (The busy
        # timeout does not cover this lock.) A file with other tables and none of ours, such as Nova's, keeps its mode.
        with contextlib.suppress(sqlite3.OperationalError):
            if cursor.execute(_IS_OURS).fetchone()[0]:
                cursor.execute("PRAGMA journal_mode = WAL")
        # In WAL mode a power cut loses at most the last heartbeats, never the file, and each heartbeat saves an fsync.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    @event.listens_for(engine, "checkout")
    def checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get("file") != _identity(path):
            message = f"{path} was replaced"
            raise DisconnectionError(message)


def prove_space(path: Path) -> None:
    """Check that the file system has space for one more page beside a file.

    A heartbeat alone does not prove that: its pages exist already, in the file and in an old
    write-ahead log, so it succeeds on a full disk.

    :raises OSError: there is no space, or it cannot be checked.
    """
    with tempfile.TemporaryFile(dir=path.parent, prefix=path.name, buffering=0) as file:
        file.write(bytes(_PAGE))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def unopenable(path: Path) -> tuple[str, bool]:
    """Return why SQLite could not open a file; SQLite itself does not say.

    :return: the reason, and whether the file could be opened for reading only.
    """
    try:
        path.parent.stat()
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return f"{error.strerror}: {error.filename}", False
    if is_directory:
        return f"{path} is a directory", False
    if not _may(path, os.R_OK):
        return f"this user has no permission to read {path}", False
    reason = unwritable(path)
    return (reason, True) if reason else (f"{path} cannot be opened", False)


def unwritable(path: Path) -> str | None:
    """Return why this user may not write to a file, or create files beside it; None if permitted."""
    for place in (path, path.parent):
        if not _may(place, os.W_OK):
            return f"this user has no permission to write to {place}"
    return None


def _may(path: Path, how: int) -> bool:
    return os.access(path, how, effective_ids=True)


def is_newer(path: Path) -> bool:
    """Return whether a file that SQLite rejects as a database was made by a newer SQLite.

    Source: the file format's header, byte 19, the "read version".
    """
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return False
    return header.startswith(_MAGIC) and len(header) == 20 and header[19] > _NEWEST_FORMAT  # noqa: PLR2004
