"""Tests that run README's commands in a clean clone."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase
from urllib.request import Request, urlopen

import pytest

from tests.e2e.process import PATIENCE, ROOT, Process
from tests.servers import vhost_url

HOST = socket.gethostname()
RUN = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/twistd -n novasvc"


class ReadmeTests(TestCase):
    """Tests that follow README."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.clone = Path(folder.name) / "novasvc"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)], check=True)
        self.readme = (self.clone / "README.md").read_text()
        self.state = Path(folder.name) / "state"
        self.environment: dict[str, str] = {}

    def commands(self, heading: str) -> list[str]:
        """Return the commands under a heading, without their prompts."""
        section = self.readme.split(f"## {heading}\n")[1].split("\n## ")[0]
        blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
        return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]

    def shell(self, command: str) -> Process:
        """Run a command in a shell, with its state in the test's directory."""
        path = f"{sys.base_prefix}/bin:{os.environ['PATH']}"
        environment = {"PATH": path, "NOVASVC_STATE_DIR": str(self.state), "PYTHONPATH": "", "PIP_QUIET": "1"}
        return Process(self, ["bash", "-c", command], self.clone, **environment, **self.environment)

    def done(self, command: str) -> str:
        """Run a command that succeeds; return its output."""
        process = self.shell(command)
        self.assertEqual(process.wait(), 0, f"{command}:\n{process.output}")
        return process.output

    def write_examples(self) -> None:
        """Save the examples whose first line names their file."""
        named = r"```(?:python|toml|ini)\n# (\S+\.(?:py|toml|ini))\n(.*?)```"
        for name, text in re.findall(named, self.readme, re.DOTALL):
            (self.clone / name).write_text(text)

    @pytest.mark.slow
    @pytest.mark.timeout(420)
    def test_commands(self) -> None:
        """README's first command starts a node, and its other commands work with it."""
        first, *others = self.commands("Run a node")
        self.assertEqual(first, RUN)
        node = self.shell(first)
        node.wait_for("is running", patience=300)
        for command in others:
            self.done(command)
        os.killpg(node.popen.pid, signal.SIGTERM)
        node.wait()
        self.write_examples()
        self.first_service()
        self.fleet()

    def first_service(self) -> None:
        """Run the shop, call it, and ask what it offers."""
        run, *others = self.commands("Write a service")
        shop = self.shell(run)
        shop.wait_for("is running")
        self.assertEqual(
            [self.done(command).split("\n")[0] for command in others], ["2 tea", f"stock on {HOST} (novasvc-stock)"]
        )
        os.killpg(shop.popen.pid, signal.SIGTERM)
        shop.wait()

    def fleet(self) -> None:
        """Run README's commands for a fleet, with the tests' broker, and open the page, on a free port."""
        url, run, *others = self.commands("Run a fleet")
        self.assertEqual(url, "export NOVASVC_TRANSPORT_URL=amqp://guest:guest@127.0.0.1:5672/")
        self.environment |= {"NOVASVC_TRANSPORT_URL": vhost_url(self), "NOVASVC_API_LISTEN_PORT": "0"}
        supervisor = self.shell(run)
        address = supervisor.wait_for(r"listening on (127\.0\.0\.1:\d+)").group(1)
        supervisor.wait_for("the supervisor is running")
        for command in others:
            self.done(command)
        with urlopen(Request(f"http://{address}/", headers={"Accept": "text/html"}), timeout=PATIENCE) as page:
            self.assertIn("<h1", page.read().decode())
        os.killpg(supervisor.popen.pid, signal.SIGTERM)
        supervisor.wait()

    def test_test_command(self) -> None:
        """README's test command can be run."""
        (command,) = self.commands("Test")
        self.assertTrue(os.access(self.clone / command, os.X_OK))

    def test_links(self) -> None:
        """Every file that README links to exists."""
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", self.readme):
            self.assertTrue((self.clone / link).exists(), link)
