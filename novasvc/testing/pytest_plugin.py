"""The pytest plugin of novasvc: the fixtures ``fleet``, ``novasvc_virtual_host`` and ``novasvc_database``.

pytest loads it in every project whose environment has novasvc. So it imports nothing of the package before a test asks
for a fixture, and it leaves all tests alone that ask for none.
"""

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from novasvc.testing.fleet import Fleet

# Note [Async tests]
#
# Only one plugin can run an `async def` test. This one runs those that have a Fleet among their arguments, and that no
# other plugin has claimed: pytest-asyncio and anyio wrap or mark the tests that are theirs. Under them
# `await fleet.call(...)` works as well, because it does not suspend the test; see novasvc.testing.waiting.Answer.

_MARKERS = "asyncio", "anyio", "trio", "twisted"
"""Markers of the tests that other plugins run."""

_TWISTED = "_pytest_twisted_mark"
"""The attribute by which pytest-twisted knows the tests that it runs: those with its decorators."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name servers."""
    group = parser.getgroup("novasvc", "servers for the fixtures of novasvc")
    group.addoption(
        "--novasvc-broker",
        metavar="URL",
        help="RabbitMQ for the fixture novasvc_virtual_host: amqp://user:password@host:5672/. Default: the variable"
        " TEST_NOVASVC_BROKER",
    )
    group.addoption(
        "--novasvc-broker-management",
        metavar="URL",
        help="its management API. Default: the variable TEST_NOVASVC_BROKER_MANAGEMENT, or port 15672 of its host",
    )
    group.addoption(
        "--novasvc-database",
        metavar="URL",
        help="database server for the fixture novasvc_database: postgresql://user:password@host/name. Default: the"
        " variable TEST_NOVASVC_DATABASE, or an SQLite file for each test",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test that has a fleet among its arguments; see Note [Async tests]."""
    module = sys.modules.get("novasvc.testing.fleet")
    if module is None or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None  # without the module no fixture has made a fleet
    fleet = next((value for value in pyfuncitem.funcargs.values() if isinstance(value, module.Fleet)), None)
    claimed = hasattr(pyfuncitem.obj, _TWISTED) or any(pyfuncitem.get_closest_marker(name) for name in _MARKERS)
    if fleet is None or claimed:
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    fleet.run(pyfuncitem.obj(**{name: value for name, value in pyfuncitem.funcargs.items() if name in names}))
    return True


@pytest.fixture
def fleet() -> "Iterator[Fleet]":
    """Run managers together in memory, on a clock that the test advances; see :class:`novasvc.testing.Fleet`.

    A test fails if a handler of an event or a periodic task has failed, unless it calls ``fleet.flush_failures()``.
    """
    from novasvc.testing.fleet import Fleet  # noqa: PLC0415 - see the module's docstring

    with Fleet() as fleet:
        yield fleet
        fleet.check_failures()


@pytest.fixture
def novasvc_virtual_host(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a new virtual host of RabbitMQ, deleted after the test; without a broker skip the test."""
    broker = _given(request, "broker")
    if broker is None:
        pytest.skip("it needs RabbitMQ: give --novasvc-broker URL, or the variable TEST_NOVASVC_BROKER")
    from novasvc.testing.servers import ManagementAPI, virtual_host  # noqa: PLC0415 - see the module's docstring

    with virtual_host(broker, ManagementAPI.of(broker, _given(request, "broker_management"))) as url:
        yield url


@pytest.fixture
def novasvc_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a new, empty database, deleted after the test; an SQLite file without a server."""
    server = _given(request, "database")
    if server is None:
        yield f"sqlite:///{tmp_path}/novasvc.sqlite"
        return
    from novasvc.testing.servers import database  # noqa: PLC0415 - see the module's docstring

    with database(server) as url:
        yield url


def _given(request: pytest.FixtureRequest, name: str) -> str | None:
    """Return an option, or else its environment variable. Not NOVASVC_..., which are the settings of services."""
    option: Any = request.config.getoption(f"novasvc_{name}")
    return option or os.environ.get(f"TEST_NOVASVC_{name.upper()}") or None
