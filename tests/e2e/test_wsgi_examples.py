"""Tests for the examples with Flask and Django: HTTP, WSGI application, RPC, manager, and back."""

import json
import shutil
import tempfile
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, ROOT, Process, program
from tests.servers import shared_broker, vhost_url
from tests.servers.process import free_ports


class ExampleCase(TestCase):
    """Runs an example in a copy of its folder."""

    def start(self, name: str, *, alone: bool = False, **environment: str) -> Process:
        """Start an example.

        :param alone: without its service.
        """
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        folder = Path(holder.name) / name
        shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (settings,) = folder.glob("*.toml")
        (self.port,) = free_ports(1)
        text = settings.read_text().replace("8080", str(self.port))
        settings.write_text(text.partition("[[service]]")[0] if alone else text)
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--config", settings.name]
        process = Process(self, command, folder, PYTHONPATH=".", NOVASVC_STATE_DIR="state", **environment)
        for _ in range(1 if alone else 2):
            process.wait_for("is running")
        return process

    def ask(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def check(self) -> None:
        """Order as the README does, and make mistakes."""
        self.assertEqual(self.ask("GET", "/goods"), (200, {"tea": 10, "cup": 3}))
        self.assertEqual(self.ask("POST", "/orders", item="tea", amount=2), (201, {"left": 8}))
        sold_out = {"error": "4 of 'cup' wanted, 3 left"}
        self.assertEqual(self.ask("POST", "/orders", item="cup", amount=4), (409, sold_out))
        status, answer = self.ask("POST", "/orders", item="tea", amount="many")
        self.assertEqual((status, "amount: expected int, got str" in answer["error"]), (400, True), answer)
        status, answer = self.ask("POST", "/orders", item="tea", amout=1)
        self.assertEqual((status, "amout" in answer["error"]), (400, True), answer)
        self.assertEqual(self.ask("GET", "/goods"), (200, {"tea": 8, "cup": 3}))


class FlaskTests(ExampleCase):
    def test_orders(self) -> None:
        """Orders are taken, and mistakes answered, without a broker; the process ends when it is told to."""
        process = self.start("flask_api")
        self.check()
        process.stop()
        self.assertNotIn("Traceback", process.output)

    @pytest.mark.timeout(120)
    def test_broker(self) -> None:
        """The same over RabbitMQ."""
        process = self.start("flask_api", NOVASVC_TRANSPORT_URL=vhost_url(self, shared_broker()))
        self.check()
        process.stop()
        self.assertNotIn("Traceback", process.output)

    def test_no_service(self) -> None:
        """Without the service a request gets a 503 that says so."""
        self.start("flask_api", alone=True)
        status, answer = self.ask("GET", "/goods")
        self.assertEqual(status, 503)
        self.assertIn("no server for stock", answer["error"])


class DjangoTests(ExampleCase):
    def test_orders(self) -> None:
        """Orders are taken, and mistakes answered, without a broker; the process ends when it is told to."""
        process = self.start("django_api")
        self.check()
        process.stop()
        self.assertNotIn("Traceback", process.output)
