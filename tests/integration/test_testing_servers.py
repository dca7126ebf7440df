"""Virtual hosts and databases of their own, on real servers."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from unittest import SkipTest, TestCase
from urllib.parse import urlsplit

import pytest
import sqlalchemy

from novasvc.errors import ServerSetupError
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.testing import temporary_database, temporary_virtual_host
from novasvc.testing.servers import ManagementAPI, database, virtual_host
from tests.servers import MariaDB, PostgreSQL, managed_broker, shared_broker, shared_database


class VirtualHostTests(TestCase):
    """Tests for novasvc.testing.servers.virtual_host."""

    @pytest.mark.long
    @pytest.mark.slow
    def test_management(self) -> None:
        """A virtual host is created by the management API, can be used, and is deleted at the end."""
        broker = managed_broker()
        with virtual_host(broker.url(), ManagementAPI.of(broker.url(), broker.management_url)) as url:
            vhost = urlsplit(url).path.removeprefix("/")
            self.assertEqual(broker.queues(vhost), {})
            self.assertIn("true", broker.eval(f'rabbit_vhost:exists(<<"{vhost}">>).'))
        self.assertIn("false", broker.eval(f'rabbit_vhost:exists(<<"{vhost}">>).'))

    @pytest.mark.long
    @pytest.mark.slow
    def test_refused(self) -> None:
        """A wrong password, and a port that nobody listens on, are errors that say what to do, without the password."""
        broker = managed_broker()
        for url, problem in (
            (broker.management_url.replace("guest:guest", "guest:s3cret"), "with 401 Unauthorized"),
            ("http://guest:s3cret@127.0.0.1:1", "is not reached"),
        ):
            with self.assertRaises(ServerSetupError) as caught, virtual_host(broker.url(), ManagementAPI(url)):
                self.fail("it was created")
            self.assertIn(problem, str(caught.exception))
            self.assertNotIn("s3cret", str(caught.exception))

    def test_default_url(self) -> None:
        """The management API is expected at port 15672 of the first broker, with the user of its URL."""
        for broker, url in (
            ("amqp://u:p@one:5672,v:q@two/vhost", "http://u:p@one:15672"),
            ("amqps://u:p@[::1]:5671/", "http://u:p@[::1]:15672"),
            ("amqp://localhost", "http://localhost:15672"),
        ):
            self.assertEqual(ManagementAPI.of(broker).url, url)

    def test_user(self) -> None:
        """The user of the broker's URL gets the permissions, also if the management API has another user."""
        for broker, user in (("amqp://u%40x:p@one:5672,v:q@two", "u@x"), ("amqp://localhost", "guest")):
            self.assertEqual(ManagementAPI.of(broker, "http://admin:secret@one:15672").user, user)

    def test_no_user(self) -> None:
        """If the user of the broker's URL cannot get the permissions, the virtual host is deleted again."""
        answered: list[str] = []

        class Answer(BaseHTTPRequestHandler):
            def answer(self) -> None:
                answered.append(f"{self.command} {self.path.rpartition('/')[0]}")
                self.send_response(400 if "permissions" in self.path else 201)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_DELETE = answer  # noqa: N815 - names of http.server

            def log_message(self, *_: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Answer)
        self.addCleanup(server.server_close)
        thread = Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        api = ManagementAPI(f"http://127.0.0.1:{server.server_port}", "nobody")
        self.assertRaisesRegex(ServerSetupError, "answered PUT /api/permissions/x/nobody with 400", api.create, "x")
        self.assertEqual(answered, ["PUT /api/vhosts", "PUT /api/permissions/x", "DELETE /api/vhosts"])

    def test_other_maker(self) -> None:
        """Virtual hosts can be made by other means than the management API."""
        broker = shared_broker()
        with virtual_host(broker.url(), broker) as url:
            self.assertEqual(broker.queues(urlsplit(url).path.removeprefix("/")), {})


class DatabaseTests(TestCase):
    """Tests for novasvc.testing.servers.database."""

    def test_lifetime(self) -> None:
        """A database is created, can be used, and is deleted at the end."""
        for kind in (PostgreSQL, MariaDB):
            server = shared_database(kind)
            with database(server.url(server.system)) as url:
                self.assertEqual(self.ask(url), 1)
            with self.assertRaises(sqlalchemy.exc.OperationalError):
                self.ask(url)

    @pytest.mark.long
    def test_in_use(self) -> None:
        """A database that somebody is still connected to is not deleted; the error says so."""
        server = shared_database(PostgreSQL)
        url = server.url(server.system)
        with (
            self.assertRaisesRegex(ServerSetupError, "DROP DATABASE failed.*close what is connected"),
            database(url) as own,
        ):
            engine = DatabaseAddress.parse(own).make_engine(connections=1, wait_timeout=5)
            self.addCleanup(server.execute, f"DROP DATABASE {urlsplit(own).path[1:]}")
            self.addCleanup(engine.dispose)
            engine.connect()

    def test_sqlite(self) -> None:
        """SQLite has no databases to create; the error says what to do."""
        with self.assertRaisesRegex(ServerSetupError, "give a new file"), database("sqlite:////tmp/x"):
            self.fail("it was created")

    def ask(self, url: str) -> int:
        engine = DatabaseAddress.parse(url).make_engine(connections=1, wait_timeout=5)
        try:
            with engine.connect() as connection:
                return int(connection.execute(sqlalchemy.text("SELECT 1")).scalar_one())
        finally:
            engine.dispose()


class WithoutServersTests(TestCase):
    """What a test gets whose environment names no server."""

    def test_skipped(self) -> None:
        """The test is skipped, with the name of the variable."""
        for name in ("TEST_NOVASVC_BROKER", "TEST_NOVASVC_DATABASE"):
            if name in os.environ:
                self.addCleanup(os.environ.__setitem__, name, os.environ.pop(name))
        for make in (temporary_database, temporary_virtual_host):
            with self.assertRaisesRegex(SkipTest, "set TEST_NOVASVC_"):
                make(self)
