"""Tests for docs/errors.md: its services in processes of their own, and their errors at the command."""

import re
import tempfile
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import ROOT, Process, program
from tests.servers import shared_broker, vhost_url


class ErrorsTests(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        text = (ROOT / "docs" / "errors.md").read_text()
        for name, code in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, re.DOTALL):
            (self.folder / name).write_text(code)
        self.url = vhost_url(self, shared_broker())

    def start(self, host: str, topic: str, *options: str) -> None:
        """Start a node that runs the manager of a topic."""
        manager = f"shop_{topic}.{topic.title()}"
        given = ["--host", host, "--topic", topic, "--binary", topic, "--manager", manager, *options]
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--transport-url", self.url, *given]
        environment = {"NOVASVC_STATE_DIR": str(self.folder / f"state-{host}"), "PYTHONPATH": str(self.folder)}
        Process(self, command, self.folder, **environment).wait_for("is running")

    def run_command(self, *arguments: str) -> tuple[int, str]:
        command = Process(self, [program("novasvc"), "--transport-url", self.url, *arguments], self.folder)
        return command.wait(), command.output

    @pytest.mark.long
    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_guide(self) -> None:
        """An error crosses processes as itself; the command shows its class, text, host, worker and request id."""
        self.start("h2", "stock", "--workers", "1")
        self.start("h1", "order")
        self.assertEqual(self.run_command("call", "order", "buy", "item=tea", "amount=2"), (0, "2 tea\n"))
        self.assertEqual(self.run_command("call", "order", "buy", "item=tea", "amount=9"), (0, "3 tea instead of 9\n"))
        request = r"request req-[0-9a-f-]{36}"
        for target, method, origin in (
            ("stock", "reserve", "stock.reserve on h2 worker 1"),
            ("order", "buy_all", "stock.reserve on h2 worker 1, through order.buy_all on h1"),
        ):
            status, output = self.run_command("call", target, method, "item=tea", "amount=9")
            self.assertEqual(status, 1)
            shown = f"novasvc: remote error: OutOfStock only 3 of tea left (from {origin}; "
            self.assertRegex(output, f"^{re.escape(shown)}{request}\\)\n$")
        status, output = self.run_command("call", "stock", "reserve", "amount=many", "item=tea")
        self.assertEqual(status, 1)
        self.assertRegex(
            output, rf"invalid arguments for 'reserve': amount: .* \(from stock.reserve on h2 worker 1; {request}\)"
        )
        status, output = self.run_command("call", "order", "buy_all", "item=7", "amount=9")
        self.assertRegex(output, r"invalid arguments for 'buy_all': .*\(from order.buy_all on h1;")
        _, output = self.run_command("describe", "stock")
        self.assertIn("raises OutOfStock", output)
        self.assertIn(
            "errors\n  OutOfStock(item: str, left: int = 0)  shop_errors\n"
            "      There is less of an item than was asked for.\n",
            output,
        )
