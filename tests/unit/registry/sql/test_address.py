"""Tests for database URLs."""

import sys
from pathlib import Path
from unittest.mock import patch

import sqlalchemy.dialects.mysql
import sqlalchemy.dialects.postgresql  # noqa: F401 - imported while a driver is hidden, they would be made twice
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseDriverError, DatabaseRefusedError
from novasvc.registry.sql.address import DatabaseAddress


class DatabaseAddressTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.address.DatabaseAddress."""

    def test_file(self) -> None:
        """A file is named by its absolute path, and opened only if it exists."""
        address = DatabaseAddress.parse("sqlite:////var/lib/x/y.sqlite")
        self.assertEqual(address.path, Path("/var/lib/x/y.sqlite"))
        self.assertEqual(address.masked, "sqlite:////var/lib/x/y.sqlite")
        self.assertEqual(dict(address.url.query), {"mode": "rw", "uri": "true"})

    def test_relative_file(self) -> None:
        """A relative path is made absolute when it is parsed, because a daemon changes its directory later."""
        self.assertEqual(DatabaseAddress.parse("sqlite:///x.sqlite").path, Path.cwd() / "x.sqlite")

    def test_odd_names(self) -> None:
        """A path may contain characters that are special in URLs."""
        for name in ("a b", "per%cent", "50%25", "ques?tion"):
            address = DatabaseAddress.parse(f"sqlite:////tmp/{name.replace('?', '%3F')}")
            again = DatabaseAddress.parse(address.render())
            self.assertEqual(again, address)

    def test_render(self) -> None:
        """A rendered address is parsed to the same address, password included."""
        for text in ("sqlite:////x/y z", "postgresql://u:p%40ss@h:5433/n?sslmode=require", "mysql://u@h/n"):
            address = DatabaseAddress.parse(text)
            self.assertEqual(DatabaseAddress.parse(address.render()).url, address.url)

    def test_asked_for_read_only(self) -> None:
        """A mode in the URL is kept."""
        self.assertEqual(DatabaseAddress.parse("sqlite:////x?mode=ro").url.query["mode"], "ro")

    def test_memory(self) -> None:
        """A database in memory is refused, with the reason."""
        for text in ("sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"):
            error = self.assertRaises(DatabaseRefusedError, DatabaseAddress.parse, text)
            self.assertIn("memory", str(error))

    def test_driver(self) -> None:
        """A URL without a driver gets the supported one; a given driver is kept."""
        for text, driver in (
            ("postgresql://h/n", "postgresql+psycopg"),
            ("mysql://h/n", "mysql+pymysql"),
            ("mariadb://h/n", "mariadb+pymysql"),
            ("sqlite:////x", "sqlite+pysqlite"),
            ("postgresql+pg8000://h/n", "postgresql+pg8000"),
        ):
            self.assertEqual(DatabaseAddress.parse(text).url.drivername, driver)

    def test_secrets(self) -> None:
        """The password is in neither the masked URL, nor the repr, nor the error for an invalid URL."""
        address = DatabaseAddress.parse("postgresql://u:hunter2@h/n?sslpassword=hunter2&password=hunter2")
        self.assertIn("u:***@h/n", address.masked)
        self.assertNotIn("hunter2", f"{address} {address!r} {address.masked}")
        error = self.assertRaises(DatabaseRefusedError, DatabaseAddress.parse, "postgresql//u:hunter2@h/n")
        self.assertNotIn("hunter2", f"{error} {error!r}")

    def test_no_driver(self) -> None:
        """An unknown dialect is refused before anything is opened."""
        address = DatabaseAddress.parse("nosuch://u:hunter2@h/n")
        error = self.assertRaises(DatabaseRefusedError, address.make_engine, connections=1, wait_timeout=1.0)
        self.assertIn("no driver", str(error))
        self.assertNotIn("hunter2", str(error))

    def test_driver_to_install(self) -> None:
        """A missing driver is named with the command that installs it."""
        for text, module, remedy in (
            ("postgresql://u:hunter2@h/n", "psycopg", "`pip install 'novasvc[postgresql]'`"),
            ("mysql://u:hunter2@h/n", "pymysql", "`pip install 'novasvc[mysql]'`"),
            ("mariadb://u:hunter2@h/n", "pymysql", "`pip install 'novasvc[mysql]'`"),
            ("postgresql+pg8000://u:hunter2@h/n", "pg8000", "install the driver of postgresql+pg8000"),
        ):
            address = DatabaseAddress.parse(text)
            with patch.dict(sys.modules, {module: None}):
                error = self.assertRaises(DatabaseDriverError, address.make_engine, connections=1, wait_timeout=1.0)
            self.assertIn(module, error.problem)
            self.assertEqual(error.remedy, remedy)
            self.assertNotIn("hunter2", str(error))

    def test_not_a_url(self) -> None:
        """Text that is not a URL is refused, and the error shows an example."""
        for text in ("", "/var/lib/x", "postgresql://h:port/n"):
            error = self.assertRaises(DatabaseRefusedError, DatabaseAddress.parse, text)
            self.assertIn("sqlite:////", str(error))
