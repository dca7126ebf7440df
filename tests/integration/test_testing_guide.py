"""The code of docs/testing.md, run as its reader would."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import TestCase

import pytest

from tests.servers import PostgreSQL, managed_broker, shared_database

GUIDE = Path(__file__).parents[2] / "docs" / "testing.md"
NAMED = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)

WRONG = """
from novasvc.testing import Fleet
from shop import Stock

def test_it(fleet: Fleet) -> None:
    stock = fleet.start(Stock)
    assert stock.manager.coffee == 3
"""


class GuideTests(TestCase):
    """Tests for docs/testing.md."""

    def test_named(self) -> None:
        """Each block of Python says which file it is, so that it is run below."""
        text = GUIDE.read_text(encoding="utf-8")
        self.assertEqual(text.count("```python\n"), len(NAMED.findall(text)))

    @pytest.mark.long
    @pytest.mark.slow
    @pytest.mark.timeout(240)
    def test_run(self) -> None:
        """The tests of the guide pass in an empty folder, without configuration; none is skipped."""
        self.write_files()
        database = shared_database(PostgreSQL)
        environment = {
            **os.environ,
            "TEST_NOVASVC_BROKER": managed_broker().url(),
            "TEST_NOVASVC_BROKER_MANAGEMENT": managed_broker().management_url,
            "TEST_NOVASVC_DATABASE": database.url(database.system),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-W", "error"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"(?m)^\d+ passed in ")
        command = [sys.executable, "-m", "twisted.trial", "test_trial", "test_real"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
        self.assertRegex(done.stdout, r"PASSED \(successes=3\)", done.stderr)

    @pytest.mark.long
    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_types(self) -> None:
        """The tests of the guide pass mypy strict, and a misspelt attribute of a node's manager is found."""
        if find_spec("mypy") is None and "CI" not in os.environ:
            self.skipTest("mypy is not installed")
        self.write_files()
        self.assertEqual(self.check_types(), "")
        Path("test_wrong.py").write_text(WRONG, encoding="utf-8")
        self.assertRegex(self.check_types(), r'^test_wrong.py:7: error: "Stock" has no attribute "coffee" .*\n$')

    def write_files(self) -> None:
        for name, text in NAMED.findall(GUIDE.read_text(encoding="utf-8")):
            Path(name).write_text(text, encoding="utf-8")

    def check_types(self) -> str:
        """Return mypy's errors. The assertions of trial have no annotations, and so may be called."""
        options = ["--strict", "--allow-untyped-calls", "--no-error-summary", "--config-file="]
        command = [sys.executable, "-m", "mypy", *options, *sorted(path.name for path in Path.cwd().glob("*.py"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
        self.assertEqual(done.stderr, "")
        return done.stdout
