"""The interface that a live node has written of itself: checked by tools, and called through."""

import datetime as dt
import importlib.util
import os
import subprocess
import sys
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc import RequestContext, rpc
from novasvc.cli.interface_source import write_interface
from novasvc.errors import InvalidArgumentsError, MessageFormatError, NoSuchMethodError, UnsupportedVersionError
from novasvc.service import Service
from novasvc.testing import memory_runtime
from tests.support.types import MYPY_CACHE
from tests.support.wild_manager import OtherWild, Wild

NUMBER = UUID("6c84fb90-12c4-11e1-840d-7b25c5ee775a")
EAST = dt.timezone(dt.timedelta(hours=2))
CONTEXT = RequestContext()

CALLER = """
import wild_api as api
from novasvc import RequestContext, rpc

async def use(client: rpc.Client, context: RequestContext) -> list[api.Line]:
    wild = api.wild(client)
    await wild.trees(context, api.Tree([api.Tree([])]))
    return await wild.{call}
"""
RIGHT = "list(context, limit=3)"
WRONG = {
    "lst(context)": 'has no attribute "lst"',
    'list(context, limit="3")': "has incompatible type",
    "place(context)": 'Missing positional argument "order"',
    "trees(context, api.Tree([1]))": "has incompatible type",
}


class LiveCase(SynchronousTestCase):
    def serve(self, manager: type, topic: str = "wild") -> rpc.Client:
        """Start a node; return a client that reaches it."""
        self.runtime = memory_runtime()
        service = Service("h1", f"novasvc-{topic}", topic, manager, runtime=self.runtime)
        self.successResultOf(service.start())
        self.addCleanup(service.stop)
        transport = self.successResultOf(Deferred.fromCoroutine(self.runtime.broker.acquire()))
        return rpc.Client(transport, clock=self.runtime.reactor)

    def done(self, calling: Any) -> Any:
        self.runtime.reactor.pump([0] * 20)
        return calling

    def source(self, *, blocking: bool = False) -> str:
        """Write the interface of Wild, as its node sends it."""
        client = self.serve(Wild).prepare(topic="wild", namespace="node", version="1.1")
        answer = self.successResultOf(self.done(client.call(CONTEXT, "interface")))
        return write_interface(answer, blocking=blocking)

    def module(self, source: str) -> ModuleType:
        """Import a written interface."""
        path = Path(self.mktemp())
        path.mkdir()
        file = path / "wild_api.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location("wild_api", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["wild_api"] = module
        self.addCleanup(sys.modules.pop, "wild_api")
        spec.loader.exec_module(module)
        return module


class RoundTripTests(LiveCase):
    def test_calls(self) -> None:
        """What is sent through the interface arrives as its type, and comes back as the interface's."""
        source = self.source()
        api: Any = self.module(source)
        client = self.serve(Wild)
        wild = api.wild(client)

        def call(method: str, *args: Any, **kwargs: Any) -> Any:
            return self.successResultOf(self.done(getattr(wild, method)(CONTEXT, *args, **kwargs)))

        line = api.Line("tea", 2)
        due = dt.datetime(2026, 11, 29, 14, tzinfo=EAST)
        order = api.Order(NUMBER, [line], Decimal("1.20"), due)
        placed = call("place", order, urgent=True, unit=api.Unit.PC)
        self.assertEqual((placed.number, placed.lines, placed.price), (NUMBER, [line], Decimal("1.20")))
        self.assertEqual((placed.due, placed.due.utcoffset()), (due, dt.timedelta(0)))
        # The service knows the default of this field: it was not sent.
        self.assertEqual((placed.first.item, placed.level), ("first", api.Level.VALUE_MINUS_1))
        self.assertEqual(call("list"), [line])
        self.assertEqual(call("dict", {"a": due}), {"a": due})
        self.assertEqual(call("anything", 7), [7, 3])
        self.assertEqual(call("many", 1, a=2), {"first": 1, "a": 2})
        tree = api.Tree([api.Tree([])])
        self.assertEqual(call("trees", tree), tree)
        self.assertEqual(call("odd", {"class": "x", "tree": tree}, None, (1, 2.0), 'b"'), {"class": "x", "tree": tree})
        self.assertEqual(call("odd", {}, api.Dog(3)), {"tree": api.Tree([])})
        self.assertIsNone(call("nothing"))
        self.assertEqual(self.successResultOf(self.done(api.wild_v2(client).newer(CONTEXT))), (1, "a"))
        self.assertEqual(self.successResultOf(self.done(api.wild_admin(client, "h1").reset(CONTEXT))), [1])

    def test_other_version(self) -> None:
        """A service that differs from the interface is told from one that fails: each error says so."""
        api: Any = self.module(self.source())
        client = self.serve(OtherWild)
        wild = api.wild(client)

        def error(calling: Any, kind: type[Exception]) -> Any:
            return self.failureResultOf(self.done(calling), kind).value

        for calling, kind in (
            (wild.trees(CONTEXT, api.Tree([])), InvalidArgumentsError),
            (wild.list(CONTEXT, 3), InvalidArgumentsError),
            (wild.nothing(CONTEXT), NoSuchMethodError),
            (api.wild_v2(client).newer(CONTEXT), UnsupportedVersionError),
        ):
            (note,) = (each for each in error(calling, kind).__notes__ if "wild_api.Wild" in each)
            self.assertIn("may be of another version: `novasvc stub TOPIC` writes it anew", note)
        wrong = error(wild.list(CONTEXT), MessageFormatError)
        self.assertIn("the result of 'list' is not of the type that the interface says: Expected", str(wrong))
        self.assertIn("`novasvc stub TOPIC` writes it anew", str(wrong))


@pytest.mark.timeout(180)
class ToolTests(LiveCase):
    """Not unit tests: those also run where the tools are not installed."""

    def setUp(self) -> None:
        if (find_spec("mypy") is None or find_spec("ruff") is None) and "CI" not in os.environ:
            self.skipTest("mypy or ruff is not installed")
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        (self.directory / "wild_api.py").write_text(self.source())
        (self.directory / "wild_blocking.py").write_text(self.source(blocking=True))

    def run_tool(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )

    @pytest.mark.slow
    def test_mypy(self) -> None:
        """mypy --strict accepts the interfaces and a right call, and finds what is wrong in others."""
        for number, call in enumerate((RIGHT, *WRONG)):
            (self.directory / f"use{number}.py").write_text(CALLER.replace("{call}", call))
        files = sorted(path.name for path in self.directory.iterdir())
        done = self.run_tool("mypy", "--strict", "--config-file=", f"--cache-dir={MYPY_CACHE}", *files)
        self.assertEqual([text for text in WRONG.values() if text not in done.stdout], [], done.stdout + done.stderr)
        found = [line for line in done.stdout.splitlines() if "error:" in line]
        clean = ("wild_api.py", "wild_blocking.py", "use0.py")
        self.assertEqual([line for line in found if line.startswith(clean)], [])

    def test_ruff(self) -> None:
        """Ruff accepts it, with every rule but that on docstrings of classes, and so does its formatter."""
        # D203 and D213 contradict others; CPY is about a notice; ANN401 is about Any, which a peer may say.
        ignored = "--ignore=D101,D203,D213,COM812,CPY,ANN401"
        done = self.run_tool("ruff", "check", "--isolated", "--select=ALL", ignored, ".")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        done = self.run_tool("ruff", "format", "--isolated", "--check", ".")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
