"""PostgreSQL and MariaDB: a server of one's own.

In a script::

    with PostgreSQL(directory) as server:
        print(server.url(server.system))
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import sqlalchemy

from tests.servers.installation import Installation
from tests.servers.process import end, free_ports, missing, spawn

PATIENCE = 30.0
"""Seconds in which a server has to be ready; 0.2 are usual."""


class DatabaseServer:
    """A server whose administrator needs no password; it listens on loopback.

    Its methods block; only :meth:`start` has to be called in the main thread.

    :param directory: is made; everything of the server is in it.
    :param durable: commits reach the disk, as in production; without it a test is quicker.
    """

    program: ClassVar[str]
    """Pattern of the server's path."""
    package: ClassVar[str]
    scheme: ClassVar[str]
    """Of its URLs, with the administrator: "postgresql://postgres"."""
    system: ClassVar[str]
    """The database that is always there."""

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        self._durable = durable
        self._installation = Installation.chosen()
        found = self._installation.find(self.program)
        if not found:
            raise missing(f"{self.package}; apt-get install {self.package}")
        self._program = found[-1]
        self._directory = directory
        directory.mkdir(parents=True)
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._prepare()

    def _prepare(self) -> None:
        """Make the server's files."""
        raise NotImplementedError

    def _command(self) -> Sequence[str]:
        """Return the command that becomes the server."""
        raise NotImplementedError

    def _run(self, *words: str) -> None:
        """Run one of the server's programs to its end."""
        command = self._installation.command(words, self._directory)
        done = subprocess.run(command, cwd=self._directory, capture_output=True, timeout=120, check=False, text=True)
        if done.returncode != 0:
            raise AssertionError(f"{words[0]} ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")

    # -- the process ---------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """All that the server wrote."""
        path = self._directory / "stdout"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it, with the data that it had, and wait until it is ready."""
        assert self._process is None
        command = self._installation.command(self._command(), self._directory)
        self._process = spawn(command, self._directory, {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"})
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.execute("SELECT 1")
            except sqlalchemy.exc.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the server is not ready:\n{self.log}") from error
                time.sleep(0.05)
            else:
                return

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill it at once. No error if it does not run."""
        if self._process is not None:
            end(self._process, signal.SIGKILL)
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    # -- what an operator does -------------------------------------------------------------------

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"{self.scheme}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> list[str]:
        """Execute a statement outside of transactions; return the first column of what it finds."""
        driver = self.url(self.system).replace("postgresql:", "postgresql+psycopg:").replace("mysql:", "mysql+pymysql:")
        engine = sqlalchemy.create_engine(driver, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return [str(row[0]) for row in result] if result.returns_rows else []

    @property
    def version(self) -> str:
        """The server's version, as it says it itself."""
        (version,) = self.execute("SHOW server_version" if self.scheme.startswith("postgresql") else "SELECT VERSION()")
        found = re.match(r"[\d.]+", version)
        assert found is not None
        return found[0]


class PostgreSQL(DatabaseServer):
    """PostgreSQL, as an administrator ``postgres``. The first start takes 1.5 s."""

    program = "/usr/lib/postgresql/*/bin/postgres"
    package = "postgresql"
    scheme = "postgresql://postgres"
    system = "postgres"

    _SETTINGS = ("listen_addresses = '127.0.0.1'", "shared_buffers = 32MB", "dynamic_shared_memory_type = mmap")
    _NOT_DURABLE = ("fsync = off", "synchronous_commit = off", "full_page_writes = off")

    def _as_owner(self) -> list[str]:
        """Return what runs a program as the user of the package: PostgreSQL refuses to be root."""
        if os.getuid() != 0:
            return []
        # Changing the user takes away what spawn has set, so that is set again.
        owner = ["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL"]
        return ["setpriv", *owner, "--"]

    def _prepare(self) -> None:
        data = self._directory / "data"
        data.mkdir(0o700)
        if os.getuid() == 0:
            # Its user has to reach its files, through the directories that the tests have made.
            for parent in (self._directory, *self._directory.parents):
                if parent == Path(tempfile.gettempdir()):
                    break
                parent.chmod(parent.stat().st_mode | 0o111)
            self._run("chown", "postgres:", str(self._directory), str(data))
        initdb = str(self._program.with_name("initdb"))
        options = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        self._run(*self._as_owner(), initdb, "-D", str(data), *options)
        with (data / "postgresql.conf").open("a") as file:
            settings = self._SETTINGS if self._durable else self._SETTINGS + self._NOT_DURABLE
            file.write("".join(f"{line}\n" for line in settings))

    def _command(self) -> Sequence[str]:
        place = ("-D", str(self._directory / "data"), "-p", str(self.port), "-k", str(self._directory))
        return [*self._as_owner(), str(self._program), *place]


class MariaDB(DatabaseServer):
    """MariaDB, as an administrator ``root``. The first start takes 2 s."""

    program = "/usr/sbin/mariadbd"
    package = "mariadb-server"
    scheme = "mysql://root"
    system = "mysql"

    def _prepare(self) -> None:
        directory = self._directory
        user = "root" if os.getuid() == 0 else str(os.getuid())
        lines = (
            "[mariadbd]",
            f"user = {user}",
            f"datadir = {directory}/data",
            f"socket = {directory}/sock",
            f"pid-file = {directory}/pid",
            f"tmpdir = {directory}",
            f"port = {self.port}",
            "bind-address = 127.0.0.1",
            "skip-name-resolve",
            "skip-log-bin",
            "innodb_buffer_pool_size = 32M",
            "innodb_log_file_size = 16M",
            f"innodb_flush_log_at_trx_commit = {int(self._durable)}",
            f"innodb_doublewrite = {int(self._durable)}",
            "innodb_use_native_aio = 0",
            "performance_schema = OFF",
        )
        self._file = directory / "my.cnf"
        self._file.write_text("".join(f"{line}\n" for line in lines))
        options = (f"--datadir={directory}/data", "--auth-root-authentication-method=normal", "--skip-test-db")
        self._run("mariadb-install-db", f"--defaults-file={self._file}", *options)

    def _command(self) -> Sequence[str]:
        return [str(self._program), f"--defaults-file={self._file}"]
