"""Tests for novasvc.testing.pytest_plugin, in runs of pytest of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from unittest import TestCase

import pytest

PART = """
import pytest
from novasvc import Manager, RequestContext, rpc
from novasvc.testing import Fleet

class Stock(Manager):
    @rpc.expose
    def reserve(self, context: RequestContext, amount: int = 1) -> int:
        return amount
"""

IMPORTED = """
import json, sys
import pytest
before = set(sys.modules)
import novasvc.testing.pytest_plugin
print(json.dumps(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in ("novasvc", "twisted"))))
"""


@pytest.mark.timeout(240)
class PluginTests(TestCase):
    """Tests for the pytest plugin."""

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TEST_NOVASVC_")}
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)

    def pytest(self, text: str, *options: str) -> tuple[dict[str, str], str]:
        """Run a file of tests; return the outcome of each test, and the output."""
        Path("test_it.py").write_text(PART + dedent(text), encoding="utf-8")
        # Without the many other plugins of this environment. That pytest finds ours is a test of docs/testing.md.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        self.addCleanup(os.environ.pop, "PYTEST_DISABLE_PLUGIN_AUTOLOAD", None)
        plugins = ("-p", "no:cacheprovider", "-p", "novasvc.testing.pytest_plugin", "-p", "anyio")
        done = self.python("-m", "pytest", "-rA", "--tb=short", "-W", "error", *plugins, *options, "test_it.py")
        lines = [
            line.split(" ", 2) for line in done.stdout.splitlines() if "test_it.py::" in line and line[0] in "PFES"
        ]
        outcomes: dict[str, str] = {}
        for outcome, name, *_ in lines:
            outcomes.setdefault(name.removeprefix("test_it.py::"), outcome)
        return outcomes, done.stdout + done.stderr

    def test_imports_little(self) -> None:
        """Loading the plugin imports neither Twisted nor more of novasvc than it has to."""
        done = self.python("-c", IMPORTED)
        expected = ["novasvc", "novasvc._moved", "novasvc._version", "novasvc.testing", "novasvc.testing.pytest_plugin"]
        self.assertEqual(json.loads(done.stdout), expected, done.stderr)

    def test_failures(self) -> None:
        """A test whose handler or task fails does so too, unless it looks; what a caller gets is its own affair."""
        outcomes, output = self.pytest(
            """
            from novasvc import periodic_task
            from novasvc.errors import InvalidArgumentsError

            class Sweeper(Manager):
                @periodic_task(spacing=10)
                def sweep(self, context: RequestContext) -> None:
                    raise KeyError("shelf 7")

                @rpc.event("tea.sold")
                def count(self, context: RequestContext, payload: object) -> None:
                    raise LookupError("no tea")

                @rpc.event("tea.packed")
                def weigh(self, context: RequestContext, payload: int) -> None:
                    pass

                @rpc.expose
                def fail(self, context: RequestContext) -> None:
                    raise LookupError("for the caller")

            def test_task(fleet: Fleet) -> None:
                fleet.start(Sweeper)
                fleet.advance(15)

            def test_handler(fleet: Fleet) -> None:
                fleet.start(Sweeper, periodic_enable=False)
                fleet.run(fleet.emit("tea.sold", {}))
                fleet.advance(1)

            def test_payload(fleet: Fleet) -> None:
                fleet.start(Sweeper, periodic_enable=False)
                fleet.run(fleet.emit("tea.packed", "much"))
                fleet.settle()

            def test_not_settled(fleet: Fleet) -> None:
                fleet.start(Sweeper, periodic_enable=False)
                fleet.run(fleet.emit("tea.sold", {}))

            class Opener(Manager):
                @periodic_task(spacing=10, run_immediately=True)
                def open(self, context: RequestContext) -> None:
                    raise KeyError("door")

            def test_first_run(fleet: Fleet) -> None:
                fleet.start(Opener)

            def test_payload_expected(fleet: Fleet) -> None:
                fleet.start(Sweeper, periodic_enable=False)
                fleet.run(fleet.emit("tea.packed", "much"))
                fleet.settle()
                (error,) = fleet.flush_failures(InvalidArgumentsError)
                assert "payload: expected int, got str" in str(error)

            def test_expected(fleet: Fleet) -> None:
                fleet.start(Sweeper, periodic_fuzzy_delay=0)
                fleet.advance(15)
                assert not fleet.flush_failures(ValueError)
                assert "shelf 7" in str(fleet.flush_failures(KeyError)[0])

            def test_caller(fleet: Fleet) -> None:
                fleet.start(Sweeper, periodic_enable=False)
                with pytest.raises(LookupError):
                    fleet.run(fleet.call("sweeper", "fail"))
            """
        )
        self.assertIn("sweep: it failed with KeyError: 'shelf 7'", output)
        self.assertIn("count: it failed with LookupError: no tea", output)
        self.assertRegex(output, "weigh: it failed with .*payload: expected int, got str")
        # A test whose teardown fails has passed before that.
        errors = {line.split("::")[1].split(" ")[0] for line in output.splitlines() if line.startswith("ERROR test_it")}
        unseen = {"test_task", "test_handler", "test_payload", "test_not_settled", "test_first_run"}
        self.assertEqual(errors, unseen)
        seen = ("test_expected", "test_payload_expected", "test_caller")
        self.assertEqual({name: outcomes[name] for name in seen}, dict.fromkeys(seen, "PASSED"), output)

    def test_async(self) -> None:
        """Tests that have a fleet may be async, also as methods and with parameters; other tests are left alone."""
        outcomes, output = self.pytest(
            """
            async def test_call(fleet: Fleet) -> None:
                fleet.start(Stock)
                assert await fleet.call("stock", "reserve") == 1

            async def test_fails(fleet: Fleet) -> None:
                fleet.start(Stock)
                assert await fleet.call("stock", "reserve") == 2

            class TestStock:
                @pytest.mark.parametrize("amount", [3, 4])
                async def test_method(self, fleet: Fleet, amount: int) -> None:
                    fleet.start(Stock)
                    assert await fleet.call("stock", "reserve", amount=amount) == amount

            def test_sync(fleet: Fleet) -> None:
                fleet.start(Stock)
                assert fleet.run(fleet.call("stock", "reserve")) == 1

            @pytest.fixture
            def shop():
                with Fleet(service_down_time=90) as shop:
                    yield shop

            async def test_own_fixture(shop: Fleet) -> None:
                assert shop.runtime().settings.service_down_time == 90

            async def test_no_fleet() -> None:
                pass

            def test_other() -> None:
                pass
            """
        )
        expected = {
            "test_call": "PASSED",
            "test_fails": "FAILED",
            "TestStock::test_method[3]": "PASSED",
            "TestStock::test_method[4]": "PASSED",
            "test_sync": "PASSED",
            "test_own_fixture": "PASSED",
            "test_no_fleet": "FAILED",
            "test_other": "PASSED",
        }
        self.assertEqual(outcomes, expected, output)
        self.assertIn("async def functions are not natively supported", output)
        self.assertIn("assert 1 == 2", output)

    def test_claimed(self) -> None:
        """Tests that anyio or pytest-twisted run are theirs; await works there, too."""
        outcomes, output = self.pytest(
            """
            import asyncio

            @pytest.fixture
            def anyio_backend():
                return "asyncio"

            @pytest.mark.anyio
            async def test_anyio(fleet: Fleet, anyio_backend) -> None:
                fleet.start(Stock)
                await asyncio.sleep(0)
                assert await fleet.call("stock", "reserve") == 1

            async def test_twisted(fleet: Fleet) -> None:
                pass

            test_twisted._pytest_twisted_mark = "async_test"
            """
        )
        self.assertEqual(outcomes, {"test_anyio": "PASSED", "test_twisted": "FAILED"}, output)
        self.assertIn("async def functions are not natively supported", output)

    def test_end(self) -> None:
        """At the end the fixture stops the nodes, and fails for a fault that no message met."""
        outcomes, output = self.pytest(
            """
            started = []

            async def test_fault(fleet: Fleet) -> None:
                started.append(fleet.start(Stock))
                fleet.faults.drop("stock", "resrve")

            def test_stopped() -> None:
                assert started[0].service.state == "stopped"
            """
        )
        self.assertEqual(outcomes["test_stopped"], "PASSED", output)
        self.assertRegex(output, r"ERROR at teardown of test_fault(.|\n)*drop\(topic='stock', method='resrve'\)")

    def test_servers(self) -> None:
        """Without servers, a test that needs a broker is skipped, and one that needs a database gets a file."""
        text = """
            def test_broker(novasvc_virtual_host: str) -> None:
                pass

            def test_database(novasvc_database: str, tmp_path) -> None:
                assert novasvc_database == f"sqlite:///{tmp_path}/novasvc.sqlite"
            """
        outcomes, output = self.pytest(text)
        self.assertEqual(outcomes["test_database"], "PASSED", output)
        self.assertRegex(output, r"SKIPPED .*it needs RabbitMQ: give --novasvc-broker URL")
        outcomes, output = self.pytest(
            text, "--novasvc-broker=amqp://u:s3cret@127.0.0.1:1/", "--novasvc-broker-management=http://127.0.0.1:1"
        )
        self.assertIn("the management API of RabbitMQ is not reached", output)
