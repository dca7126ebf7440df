"""Where a database is, and what SQLAlchemy is told when it goes there."""

from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote

import attrs
import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from novasvc.config.masking import masked_url
from novasvc.errors import DatabaseDriverError, DatabaseRefusedError
from novasvc.registry.sql import sqlite

# Named, because SQLAlchemy's own choice for a bare "postgresql" differs from release to release.
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
"""What pip is to install for a driver."""


@attrs.frozen
class DatabaseAddress:
    """A database's URL, read once.

    :param url: as SQLAlchemy takes it, password and all.
    :param masked: for people: the password is ``***``.
    :param path: of the file, absolute; None unless it is SQLite.
    """

    url: URL = attrs.field(repr=False)
    masked: str
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL as a person writes it.

        :param text: "sqlite:////absolute/path", "postgresql://user:password@host/name", or any other
            URL of SQLAlchemy's. A relative path is taken from the present directory, now.
        :raises DatabaseRefusedError: not a URL, or SQLite without a file.
        """
        try:
            url = make_url(text)
        except (SQLAlchemyError, ValueError):
            problem = "this is not a URL such as sqlite:////var/lib/novasvc/novasvc.sqlite"
            raise DatabaseRefusedError(masked_url(text), problem) from None
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        if url.get_backend_name() == "sqlite":
            return cls._file(url)
        return cls(url, masked_url(text))

    @classmethod
    def _file(cls, url: URL) -> Self:
        name = url.database or ":memory:"
        if ":memory:" in name or url.query.get("mode") == "memory":
            problem = "a database in memory is shared with no other process, and is lost at exit; give a file"
            raise DatabaseRefusedError(masked_url(str(url)), problem)
        path = Path(unquote(name.removeprefix("file:")) if name.startswith("file:") else name).absolute()
        # mode=rw: a file that was moved away must not come back as an empty one, open to all.
        query = {"mode": "rw", **url.query, "uri": "true"}
        return cls(url.set(database=f"file:{quote(str(path))}", query=query), f"sqlite:///{path}", path)

    def render(self) -> str:
        """Return the URL with its password, for another process to parse."""
        return self.url.render_as_string(hide_password=False)

    def make_engine(self, *, connections: int, patience: float) -> sqlalchemy.Engine:
        """Make SQLAlchemy's engine; nothing is opened yet.

        :param connections: open at the same time, at the most, > 0.
        :param patience: seconds that the database may let us wait for a connection, a lock or a statement.
        :raises DatabaseDriverError: the dialect's driver is not installed.
        :raises DatabaseRefusedError: no such dialect.
        """
        try:
            engine = sqlalchemy.create_engine(
                self.url,
                pool_size=connections,
                max_overflow=0,
                pool_timeout=patience,
                # A file does not hang up; a server does, and an idle connection finds out too late.
                pool_pre_ping=self.path is None,
                connect_args=_connect_args(self.url.get_backend_name(), patience),
            )
        except ImportError as error:
            raise self._no_driver(error) from None
        except (SQLAlchemyError, TypeError) as error:
            raise DatabaseRefusedError(self.masked, f"no driver for it: {error}") from None
        if self.path is not None:
            sqlite.watch(engine, self.path)
        return engine

    def _no_driver(self, error: ImportError) -> DatabaseDriverError:
        name = self.url.drivername
        requirement = _REQUIREMENTS.get(name)
        remedy = f"`pip install '{requirement}'`" if requirement else f"install the driver of {name}"
        return DatabaseDriverError(self.masked, f"its driver cannot be imported: {error}", remedy)


def _connect_args(backend: str, patience: float) -> dict[str, Any]:
    seconds = max(1, round(patience))
    milliseconds = int(patience * 1000)
    match backend:
        case "sqlite":
            # IMMEDIATE: a transaction that writes waits for the lock at its begin. Taken later, in WAL, the
            # lock is refused at once if another has written since, busy timeout or not.
            return {"timeout": patience, "isolation_level": "IMMEDIATE"}
        case "postgresql":
            # A lock is given up a little before its statement is, so that the reason gets its name.
            bounds = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds * 4 // 5}"
            alive = {"keepalives_idle": seconds, "keepalives_interval": 1, "keepalives_count": 3}
            return {"connect_timeout": seconds, "options": bounds, "tcp_user_timeout": milliseconds, **alive}
        case "mysql" | "mariadb":
            return {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds}
        case _:
            return {}
