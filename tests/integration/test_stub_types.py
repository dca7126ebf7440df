"""What a type checker says of calls through novasvc.rpc.stub."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.support.types import MYPY_CACHE

PROGRAM = """
from typing import Protocol
from twisted.internet.defer import Deferred
from novasvc import RequestContext, rpc

class Stock(Protocol):
    def reserve(self, context: RequestContext, item: str, amount: int = 1) -> Deferred[str]: ...

async def use(client: rpc.Client, context: RequestContext) -> str:
    stock = rpc.stub(Stock, client)
    return await stock.{call}
"""


class TypesTests(SynchronousTestCase):
    """Tests for the types of rpc.stub. Not a unit test: those also run where the tools are not installed."""

    @pytest.mark.timeout(180)
    @pytest.mark.slow
    def test_mypy(self) -> None:
        """A type checker finds a misspelt method, a missing argument and a wrong type, and accepts a right call."""
        if find_spec("mypy") is None and "CI" not in os.environ:
            self.skipTest("mypy is not installed")
        directory = Path(self.mktemp())
        directory.mkdir()
        right = 'reserve(context, "tea", amount=2)'
        for number, call in enumerate(
            (right, 'resrve(context, "tea")', "reserve(context)", 'reserve(context, "tea", "2")')
        ):
            (directory / f"use{number}.py").write_text(PROGRAM.replace("{call}", call))
        files = sorted(map(str, directory.iterdir()))
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={MYPY_CACHE}", *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
        found = [line for line in done.stdout.splitlines() if "error:" in line and "[no-any-return]" not in line]
        self.assertEqual(len(found), 3, done.stdout + done.stderr)
        errors = 'has no attribute "resrve"', 'Missing positional argument "item"', "has incompatible type"
        self.assertEqual([text for text in errors if text not in done.stdout], [])
