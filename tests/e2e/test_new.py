"""Tests that create a project by `novasvc new`, and use it as its README says."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, Process, program, unmeasured
from tests.support.types import MYPY_CACHE

LIMIT = 200.0
"""Seconds for one command, on a machine that has other things to do."""
HOST = socket.gethostname()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class NewTests(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        # As a user's shell: novasvc and twistd are found, and a Python without novasvc comes first.
        self.path = f"{self.folder}/bin:{os.environ['PATH']}"
        (self.folder / "bin").mkdir()
        for name in ("novasvc", "twistd"):
            (self.folder / "bin" / name).symlink_to(program(name))
        self.environment = {"NOVASVC_STATE_DIR": str(self.folder / "state"), "PATH": self.path, "PYTHONPATH": ""}

    def begin(self, command: str, directory: Path | None = None, **environment: str) -> Process:
        return Process(self, ["bash", "-c", command], directory or self.folder, **{**self.environment, **environment})

    def ran(self, command: str, directory: Path | None = None, **environment: str) -> tuple[int, str]:
        """Run a command to its end, which may take long: venv, pip and mypy do."""
        given = {**unmeasured("NOVASVC_"), **self.environment, **environment}
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=directory or self.folder,
            env={**given, "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        return ran.returncode, ran.stdout

    def done(self, command: str, directory: Path | None = None, **environment: str) -> str:
        """Run a command that succeeds; return its output."""
        status, output = self.ran(command, directory, **environment)
        self.assertEqual(status, 0, output)
        return output

    def test_green_at_once(self) -> None:
        """The tests of a new project pass, with nothing installed."""
        output = self.done("novasvc new shop && cd shop && tests/run")
        self.assertIn("PASSED (successes=3)", output)
        # Arguments are trial's; and pytest runs the same tests.
        self.assertIn("PASSED (successes=1)", self.done("tests/run tests.test_stock.StockTests.test_types", self.shop))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
        subprocess.run(command, cwd=self.shop, check=True, stdout=subprocess.DEVNULL)

    @property
    def shop(self) -> Path:
        return self.folder / "shop"

    @pytest.mark.long
    def test_red(self) -> None:
        """A failing test fails the run: tests/run does not hide it."""
        self.done("novasvc new shop")
        manager = self.shop / "shop" / "stock.py"
        manager.write_text(manager.read_text().replace("left - amount", "left"))
        status, output = self.ran("tests/run", self.shop)
        self.assertEqual((status, "FAILED" in output), (1, True), output)

    @pytest.mark.long
    def test_elsewhere(self) -> None:
        """Where no Python has novasvc, tests/run says so, and how to name a place to install it from."""
        self.done("novasvc new shop")
        (self.shop / ".novasvc-python").unlink()
        nowhere = self.folder / "empty"
        nowhere.mkdir()
        command = f"PATH={sys.base_prefix}/bin:/usr/bin:/bin tests/run"
        status, output = self.ran(command, self.shop, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(nowhere), NOVASVC="")
        self.assertEqual(status, 69, output)
        self.assertIn("no Python here can import novasvc; installing it into .venv", output)
        self.assertIn("Say from where: NOVASVC=/path/to/novasvc tests/run", output)
        # The Python of the person who runs the tests comes first.
        self.assertIn("PASSED", self.done("tests/run", self.shop, PYTHON=sys.executable))

    def test_types_and_style(self) -> None:
        """Whatever its names, the code passes mypy --strict and ruff, with the project's own settings."""
        for name in ("mypy", "ruff"):
            if not Path(program(name)).exists():
                self.skipTest(f"{name} is not installed")
        for arguments in ("shop", "job_runner --manager NightlyJobManager"):
            self.done(f"novasvc new {arguments}")
            project = self.folder / arguments.partition(" ")[0]
            for command in ("ruff check", "ruff format --check", f"mypy --strict --cache-dir={MYPY_CACHE}"):
                # What mypy checks is not in the path of its own Python, but in this folder.
                self.done(f"{program(command.partition(' ')[0])} {command.partition(' ')[2]} .", project)

    def test_run(self) -> None:
        """README's commands work: run with reload, describe, call, shell; then the settings file, by twistd."""
        self.done("novasvc new shop")
        readme = (self.shop / "README.md").read_text()
        run, describe, reserve, count, shell, _tests, check, deploy = re.findall(r"^\$ (.*)$", readme, re.MULTILINE)
        self.assertEqual(run, "novasvc run shop.stock:Stock --reload")
        node = self.begin(f"exec {run}", self.shop)
        node.wait_for(" describe stock")
        self.assertIn("reserve(item: str, amount: int = 1) -> Reservation", self.done(describe, self.shop))
        self.assertEqual(reserve, "novasvc call stock reserve item=tea amount=2")
        self.assertIn('"left": 98', self.done(reserve, self.shop))
        self.assertIn('"tea": 98', self.done(count, self.shop))
        self.assertIn("98", self.done(f'echo \'await call("stock", "count")\' | {shell}', self.shop))
        self.assertEqual(node.stop(signal.SIGTERM), 128 + signal.SIGTERM)

        self.assertIn("ok: shop.toml (1 service)", self.done(check, self.shop))
        node = self.begin(f"exec env {deploy}", self.shop)
        node.wait_for(f"novasvc-stock@{HOST} is running")
        self.assertIn('"left": 98', self.done(reserve, self.shop))
        # A second one in the same folder meets the pid file, and is told what to do.
        status, output = self.ran(deploy, self.shop)
        self.assertEqual(status, 1)
        self.assertRegex(output, rf"^novasvc: pid file '.*/shop/twistd.pid': process {node.popen.pid} is running")
        self.assertIn("`twistd -n --pidfile= novasvc`; `novasvc run PACKAGE.MODULE:CLASS` never has one", output)
        self.assertEqual(output.count("\n"), 1, output)
        node.stop()

    def test_unit(self) -> None:
        """systemd accepts the unit file."""
        if shutil.which("systemd-analyze") is None:
            self.skipTest("systemd-analyze is not installed")
        self.done("novasvc new shop")
        unit = self.shop / "shop.service"
        unit.write_text(unit.read_text().replace("/opt/shop/bin/twistd", program("twistd")))
        ran = subprocess.run(
            ["systemd-analyze", "verify", str(unit)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertNotIn("shop.service", ran.stdout)
