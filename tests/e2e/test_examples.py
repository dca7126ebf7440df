"""Tests that run each example as its README says."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, ROOT
from tests.servers import vhost_url
from tests.servers.process import free_ports, missing
from tests.support.walkthrough import Command, Walkthrough

EXAMPLES = ROOT / "examples"
WAIT = ["sh", "-c", "echo $$ > program.pid; for i in $(seq 900); do test -e go && exit; sleep 0.1; done; exit 1"]
"""A program that ends when the test creates the file "go", or fails after 90 s. It writes its process id."""
LINES = 150
"""Lines of an example, without its README: fewer than this."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class ExampleTests(TestCase):
    """The examples, each in a copy of its folder."""

    def copy(self, name: str) -> None:
        """Copy the folder of an example."""
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name) / name
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def follow(self, **settings: str) -> Walkthrough:
        """Follow the README of the example that was copied."""
        reader = Walkthrough(self, self.folder, settings, {"127.0.0.1:8080": f"127.0.0.1:{settings.get('PORT', '')}"})
        reader.follow((self.folder / "README.md").read_text())
        self.addCleanup(reader.stop)
        return reader

    def test_shop(self) -> None:
        """Two managers call each other; an order that cannot be filled changes nothing; the example's tests pass."""
        self.copy("shop")
        reader = self.follow()
        self.assertEqual(reader.ran, 6)
        reader.run(Command("novasvc call stock left --json", ('{"tea": 8, "cup": 2}',)))
        reader.run(Command("python -m pytest -q -p no:cacheprovider test_shop.py", ("...", "2 passed in ...")))

    @pytest.mark.long
    def test_scheduler(self) -> None:
        """Instances go to the live host with the fewest; a disabled host gets none."""
        self.copy("scheduler")
        self.follow().run(Command("novasvc call compute.node1 count", ("1",)))

    def test_composed(self) -> None:
        """A node in another application's tree answers that application's web server, and stops with it."""
        self.copy("composed")
        reader = self.follow(PORT=str(free_ports(1)[0]))
        (process,) = reader.running.values()
        reader.stop()
        self.assertRegex(process.output, r"visits-greeter@\S+ .*is draining|visits-greeter@\S+ is stopped")

    @pytest.mark.long
    def test_jobs(self) -> None:
        """A job whose worker is killed runs again in another worker, and its result is kept."""
        self.copy("jobs")
        # The job lasts until the test lets it end.
        settings, nap = self.folder / "jobs.toml", 'nap = ["sleep", "3"]'
        self.assertIn(nap, settings.read_text())
        settings.write_text(settings.read_text().replace(nap, f"nap = {json.dumps(WAIT)}"))
        reader = self.follow(NOVASVC_TRANSPORT_URL=vhost_url(self))
        reader.run(
            Command(
                "novasvc call jobs result id=counted --json",
                ('{"status": 0, "output": "0% step 1 of 4\\n...75% step 4 of 4\\n", "worker": ...}',),
            )
        )
        pid, result = (self.folder / "jobs" / f"nightly.{kind}" for kind in ("pid", "json"))
        self.wait_until(lambda: pid.exists() and pid.read_text() != "")
        first = pid.read_text()
        os.kill(int(first), signal.SIGKILL)
        self.wait_until(lambda: pid.read_text() not in {"", first})
        self.assertFalse(result.exists())
        (self.folder / "go").touch()
        self.wait_until(result.exists)
        self.assertEqual(json.loads(result.read_text())["status"], 0)
        reader.run(
            Command("novasvc call jobs result id=nightly --json", ('{"status": 0, "output": "", "worker": ...}',))
        )
        (self.folder / "go").unlink()
        (self.folder / "program.pid").unlink()
        calling = reader.begin("exec novasvc call jobs run id=long program=nap")
        self.wait_until((self.folder / "program.pid").exists)
        self.wait_until(lambda: (self.folder / "program.pid").read_text() != "")
        program = Path("/proc", (self.folder / "program.pid").read_text().strip())
        calling.popen.send_signal(signal.SIGINT)
        self.wait_until(lambda: not program.exists())
        calling.wait()
        refused = Command(
            "novasvc call jobs run id=b program=rm", ("novasvc: ... LookupError ... no program 'rm'; ...",)
        )
        reader.run(refused)
        reader.run(Command("novasvc call jobs result id=../b", ("novasvc: invalid arguments for 'result': id: ...",)))

    def test_oslo(self) -> None:
        """A client and a server written with oslo.messaging share the broker with a node between them."""
        if find_spec("oslo_messaging") is None:
            raise missing("oslo.messaging; pip install -e '.[interop]'")
        url = vhost_url(self).replace("amqp:", "rabbit:")
        self.copy("oslo")
        self.assertEqual(self.follow(NOVASVC_TRANSPORT_URL=url).ran, 5)

    def test_lines(self) -> None:
        """Each example is short, has a README, and is in the table of examples/README.md."""
        table = (EXAMPLES / "README.md").read_text()
        for folder in EXAMPLES.iterdir():
            if folder.is_dir() and not folder.name.startswith((".", "_")):
                self.assertIn(f"({folder.name}/README.md)", table)
                self.assertTrue((folder / "README.md").exists())
                files = [path for path in folder.rglob("*") if path.suffix in {".py", ".toml", ".tac", ".ini"}]
                self.assertLess(sum(len(path.read_text().splitlines()) for path in files), LINES, folder.name)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
