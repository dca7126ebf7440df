"""Database URLs, and the SQLAlchemy engine and driver options for each backend."""

from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote

import attrs
import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from novasvc.config.masking import masked_url
from novasvc.registry.errors import DatabaseDriverError, DatabaseRefusedError
from novasvc.registry.sql import sqlite

# Explicit, because SQLAlchemy's default driver for a bare "postgresql" depends on its release.
_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}

_REQUIREMENTS = {
    "postgresql+psycopg": "novasvc[postgresql]",
    "mysql+pymysql": "novasvc[mysql]",
    "mariadb+pymysql": "novasvc[mysql]",
}
"""The extra that installs a driver."""


@attrs.frozen
class DatabaseAddress:
    """A parsed database URL.

    :param url: the URL for SQLAlchemy, with the password.
    :param masked: the URL for logs and errors, with the password masked.
    :param path: the absolute path of an SQLite file; None for other databases.
    """

    url: URL = attrs.field(repr=False)
    masked: str
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL.

        :param text: "sqlite:////absolute/path", "postgresql://user:password@host/name", or any other
            SQLAlchemy URL. A relative path is resolved against the current directory, now.
        :raises DatabaseRefusedError: not a URL, or SQLite without a file.
        """
        try:
            url = make_url(text)
        except (SQLAlchemyError, ValueError):
            problem = "not a database URL such as sqlite:////var/lib/novasvc/novasvc.sqlite"
            raise DatabaseRefusedError(masked_url(text), problem) from None
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        if url.get_backend_name() == "sqlite":
            return cls._file(url)
        return cls(url, masked_url(text))

    @classmethod
    def _file(cls, url: URL) -> Self:
        name = url.database or ":memory:"
        if ":memory:" in name or url.query.get("mode") == "memory":
            problem = "a database in memory is not shared with other processes, and is lost at exit; give a file"
            raise DatabaseRefusedError(masked_url(str(url)), problem)
        path = Path(unquote(name.removeprefix("file:")) if name.startswith("file:") else name).absolute()
        # mode=rw: if the file was moved away, SQLite must not create an empty one, readable by everybody.
        query = {"mode": "rw", **url.query, "uri": "true"}
        return cls(url.set(database=f"file:{quote(str(path))}", query=query), f"sqlite:///{path}", path)

    def render(self) -> str:
        """Return the URL with its password, for another process to parse."""
        return self.url.render_as_string(hide_password=False)

    def make_engine(self, *, connections: int, wait_timeout: float, autocommit: bool = False) -> sqlalchemy.Engine:
        """Make an SQLAlchemy engine; nothing is opened yet.

        :param connections: the largest number of open connections, > 0.
        :param wait_timeout: seconds to wait for a connection, a lock or a statement.
        :param autocommit: whether each statement is a transaction of its own.
        :raises DatabaseDriverError: the dialect's driver is not installed.
        :raises DatabaseRefusedError: there is no such dialect.
        """
        try:
            engine = sqlalchemy.create_engine(
                self.url,
                pool_size=connections,
                max_overflow=0,
                pool_timeout=wait_timeout,
                # A server may close an idle connection, which shows only when it is used. A file cannot.
                pool_pre_ping=self.path is None,
                connect_args=_connect_args(self.url.get_backend_name(), wait_timeout),
                **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}),
            )
        except ImportError as error:
            raise self._no_driver(error) from None
        except (SQLAlchemyError, TypeError) as error:
            raise DatabaseRefusedError(self.masked, f"no driver for this URL: {error}") from None
        if self.path is not None:
            sqlite.watch(engine, self.path)
        elif engine.dialect.name in {"mysql", "mariadb"}:
            _limit_waits(engine, wait_timeout)
        return engine

    def _no_driver(self, error: ImportError) -> DatabaseDriverError:
        name = self.url.drivername
        requirement = _REQUIREMENTS.get(name)
        remedy = f"`pip install '{requirement}'`" if requirement else f"install the driver of {name}"
        return DatabaseDriverError(self.masked, f"its driver cannot be imported: {error}", remedy)


def lock_timeout(wait_timeout: float) -> float:
    """Return the seconds to wait for a lock: fewer than for a statement, so that the error names the lock."""
    return wait_timeout * 4 / 5


def _connect_args(backend: str, wait_timeout: float) -> dict[str, Any]:
    seconds = max(1, round(wait_timeout))
    milliseconds = int(wait_timeout * 1000)
    match backend:
        case "sqlite":
            # IMMEDIATE: a writing transaction waits for the write lock at BEGIN. Taken later, in WAL mode, the lock
            # is refused at once if another connection has written since, regardless of the busy timeout.
            return {"timeout": wait_timeout, "isolation_level": "IMMEDIATE"}
        case "postgresql":
            bounds = f"-c statement_timeout={milliseconds} -c lock_timeout={int(lock_timeout(milliseconds))}"
            alive = {"keepalives_idle": seconds, "keepalives_interval": 1, "keepalives_count": 3}
            return {"connect_timeout": seconds, "options": bounds, "tcp_user_timeout": milliseconds, **alive}
        case "mysql" | "mariadb":
            return {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds}
        case _:
            return {}


def _limit_waits(engine: sqlalchemy.Engine, wait_timeout: float) -> None:
    """Have MySQL or MariaDB end a statement that waits for too long, before the client gives up.

    The server would go on with the statement of a client that has closed its connection, and keep the locks of its
    transaction: InnoDB waits 50 s for a lock.
    """
    seconds = max(1, int(lock_timeout(wait_timeout)))  # InnoDB takes only whole ones

    # Not connect_args: an init_command there would replace that of the URL.
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        limits = f"innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}"
        if engine.dialect.is_mariadb:  # type: ignore[attr-defined]
            limits += f", max_statement_time = {wait_timeout * 9 / 10:g}"
        cursor = connection.cursor()
        cursor.execute(f"SET SESSION {limits}")
        cursor.close()
