"""What is special about a database that is a file."""

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
    """Make an empty database file that only its owner can read, unless there is a file already.

    SQLite gives the files beside it, ``-wal`` and ``-shm``, the same mode.

    :raises OSError: it cannot be made.
    """
    # O_EXCL: to open and close a file that SQLite has open in this process would drop its locks.
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            os.fchmod(descriptor, _MODE)  # whatever the umask took away
        finally:
            os.close(descriptor)


def watch(engine: sqlalchemy.Engine, path: Path) -> None:
    """Set up each new connection, and drop those whose file was moved away or replaced.

    Without the second, a node would go on writing to a file that nobody else can see any more.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        record.info["file"] = _identity(path)
        cursor = connection.cursor()
        # Write-ahead log: readers and the writer do not wait for each other. The mode is the file's, and
        # stays; whoever loses the race to set it, or may not write, has it or lives without it. (The busy
        # timeout does not cover this lock.) A file that has other tables and not ours, such as Nova's, keeps its own.
        with contextlib.suppress(sqlite3.OperationalError):
            if cursor.execute(_IS_OURS).fetchone()[0]:
                cursor.execute("PRAGMA journal_mode = WAL")
        # In WAL this risks the last beats in a power cut, never the file, and saves a sync per beat.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    @event.listens_for(engine, "checkout")
    def checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get("file") != _identity(path):
            message = f"{path} was replaced"
            raise DisconnectionError(message)


def prove_room(path: Path) -> None:
    """See that there is room beside a file for one page more.

    A heartbeat alone does not show that: its pages are there already, in the file and in an old write-ahead log,
    and it succeeds on a full disk.

    :raises OSError: there is none, or it cannot be seen.
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
    """Say why SQLite could not open a file, which it does not itself.

    :return: the reason, and whether it is one of writing only.
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
    """Say whether the permissions keep this user from writing to a file, or from making one beside it."""
    for place in (path, path.parent):
        if not _may(place, os.W_OK):
            return f"this user has no permission to write to {place}"
    return None


def _may(path: Path, how: int) -> bool:
    return os.access(path, how, effective_ids=True)


def is_newer(path: Path) -> bool:
    """Tell whether a file that SQLite does not take for a database was made by a newer SQLite.

    Source: the file format's header, byte 19, the "read version".
    """
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return False
    return header.startswith(_MAGIC) and len(header) == 20 and header[19] > _NEWEST_FORMAT  # noqa: PLR2004
