"""Virtual hosts and databases of their own for tests that need RabbitMQ or a database server."""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Protocol, Self
from unittest import SkipTest, TestCase
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import attrs
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from novasvc.config.masking import masked_url
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.testing.errors import ServerSetupError

TIMEOUT = 30.0
"""Seconds for one request to a server."""


class VirtualHosts(Protocol):
    """Creates and deletes virtual hosts of a broker."""

    def create(self, name: str) -> None:
        """Create a virtual host in which the user of the broker's URL may do everything."""

    def delete(self, name: str) -> None:
        """Delete a virtual host with all that is in it."""


@attrs.frozen
class ManagementAPI:
    """Virtual hosts by RabbitMQ's management API. AMQP itself cannot create them.

    :param url: "http://user:password@host:15672"; the user needs the tag "administrator".
    :param user: who may do everything in the virtual hosts; None is the user of the URL.
    """

    url: str
    user: str | None = None

    @classmethod
    def of(cls, broker: str, url: str | None = None) -> Self:
        """Return the API of a broker.

        :param broker: its transport URL.
        :param url: None takes port 15672 of its host, and the user of the broker's URL.
        """
        netloc = urlsplit(broker).netloc.partition(",")[0]  # of a cluster the first broker
        user, at, _ = netloc.rpartition("@")
        if url is None:
            host = urlsplit(f"//{netloc}").hostname or "localhost"
            url = f"http://{user}{at}{f'[{host}]' if ':' in host else host}:15672"
        return cls(url, unquote(user.partition(":")[0] or "guest"))

    def create(self, name: str) -> None:
        """Create a virtual host; see :class:`VirtualHosts`."""
        self._request("PUT", f"/api/vhosts/{quote(name, '')}", {})
        user = self.user or unquote(urlsplit(self.url).username or "guest")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        try:
            self._request("PUT", f"/api/permissions/{quote(name, '')}/{quote(user, '')}", everything)
        except ServerSetupError:
            self.delete(name)
            raise

    def delete(self, name: str) -> None:
        """Delete a virtual host; see :class:`VirtualHosts`."""
        self._request("DELETE", f"/api/vhosts/{quote(name, '')}")

    def _request(self, method: str, path: str, body: object = None) -> None:
        parts = urlsplit(self.url)
        connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        remedy = "enable it with `rabbitmq-plugins enable rabbitmq_management`, or give another management URL"
        try:
            connection = connect(parts.hostname or "localhost", parts.port, timeout=TIMEOUT)
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                text = answer.read().decode(errors="replace").strip()
            finally:
                connection.close()
        except (OSError, HTTPException, ValueError) as error:
            problem = f"the management API of RabbitMQ is not reached: {error}"
            raise ServerSetupError(masked_url(self.url), problem, remedy) from error
        if answer.status >= 300:  # noqa: PLR2004 - HTTP
            problem = f"it answered {method} {path} with {answer.status} {answer.reason}: {text[:200]}"
            remedy = "check the URL, and that its user has the tag administrator"
            raise ServerSetupError(masked_url(self.url), problem, remedy)


@contextmanager
def virtual_host(broker: str, hosts: VirtualHosts) -> Iterator[str]:
    """Create a virtual host, and delete it at the end; blocks meanwhile.

    :param broker: a transport URL; its virtual host is replaced.
    :param hosts: creates it, such as :class:`ManagementAPI`.
    :return: the transport URL of the new virtual host.
    :raises ServerSetupError: it cannot be created, or deleted.
    """
    name = f"test-{uuid4().hex}"
    parts = urlsplit(broker)
    hosts.create(name)
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        hosts.delete(name)


@contextmanager
def database(server: str) -> Iterator[str]:
    """Create a database, and delete it at the end; blocks meanwhile.

    :param server: the URL of any database of the server, with a user who may create databases.
    :return: the URL of the new database, without tables.
    :raises ServerSetupError: it cannot be created, or deleted: somebody is still connected to it.
    """
    name = f"test_{uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        yield DatabaseAddress.parse(server).url.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP DATABASE {name}")


def _execute(server: str, statement: str) -> None:
    address = DatabaseAddress.parse(server)
    if address.path is not None:
        problem = "SQLite has no databases to create"
        raise ServerSetupError(address.masked, problem, "give a new file for each test: sqlite:///PATH")
    engine = address.make_engine(connections=1, wait_timeout=TIMEOUT).execution_options(isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))
    except SQLAlchemyError as error:
        problem = f"{statement.partition(' test_')[0]} failed: {' '.join(str(error).split())[:300]}"
        remedy = "give a user who may create databases, and close what is connected before the test ends"
        raise ServerSetupError(address.masked, problem, remedy) from error
    finally:
        engine.dispose()


def temporary_virtual_host(test: TestCase, broker: str | None = None, hosts: VirtualHosts | None = None) -> str:
    """Return the transport URL of a new virtual host, which is deleted after the test.

    :param test: a test case of unittest or trial. Call this before what connects to it, which is then closed first.
    :param broker: a transport URL; by default that in the variable TEST_NOVASVC_BROKER.
    :param hosts: creates it; by default the management API, see :meth:`novasvc.testing.servers.ManagementAPI.of`.
    :raises SkipTest: there is no URL.
    :raises ServerSetupError: it cannot be created.
    """
    broker = broker or _from_environment("BROKER", "RabbitMQ")
    hosts = hosts or ManagementAPI.of(broker, os.environ.get("TEST_NOVASVC_BROKER_MANAGEMENT"))
    stack = ExitStack()
    test.addCleanup(stack.close)
    return stack.enter_context(virtual_host(broker, hosts))


def temporary_database(test: TestCase, server: str | None = None) -> str:
    """Return the URL of a new database, which is deleted after the test.

    :param test: as for :func:`temporary_virtual_host`.
    :param server: the URL of any database of the server; by default that in the variable TEST_NOVASVC_DATABASE.
    :raises SkipTest: there is no URL.
    :raises ServerSetupError: it cannot be created.
    """
    stack = ExitStack()
    test.addCleanup(stack.close)
    return stack.enter_context(database(server or _from_environment("DATABASE", "a database server")))


def _from_environment(name: str, what: str) -> str:
    url = os.environ.get(f"TEST_NOVASVC_{name}")
    if not url:
        raise SkipTest(f"it needs {what}: set TEST_NOVASVC_{name} to its URL")
    return url
