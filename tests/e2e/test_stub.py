"""Tests for `novasvc stub`, with a real node."""

import tempfile
from pathlib import Path
from unittest import TestCase

from tests.e2e.process import Process, program

MANAGER = '''
from dataclasses import dataclass
from novasvc import Manager, RequestContext, rpc

@dataclass
class Line:
    item: str
    amount: int = 1

class Stock(Manager):
    @rpc.expose
    def reserve(self, context: RequestContext, line: Line) -> int:
        """Reserve an item."""
        return line.amount

class OtherStock(Manager):
    @rpc.expose
    def reserve(self, context: RequestContext, item: str) -> int:
        """Reserve an item."""
        return 1
'''

CALLER = """
from novasvc import RequestContext, blocking
import stock_api

with blocking.connect() as client:
    stock = stock_api.stock(client)
    print(stock.reserve(RequestContext(), stock_api.Line("tea", 2)))
"""


class StubTests(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "shop.py").write_text(MANAGER)

    def serve(self, name: str) -> Process:
        command = [program("novasvc"), "run", f"shop:{name}", "--topic", "stock", "--binary", "stock"]
        node = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
        node.wait_for("is running")
        return node

    def run_command(self, *command: str) -> tuple[int, str]:
        process = Process(self, [program(command[0]), *command[1:]], self.folder, NOVASVC_STATE_DIR="state")
        return process.wait(), process.output

    def test_life(self) -> None:
        """A program calls through the interface that was written; --check tells when the service has changed.

        The file says for which client it was written, so --check needs no --blocking.
        """
        node = self.serve("Stock")
        written = self.run_command("novasvc", "stub", "stock", "--blocking", "--output", "stock_api.py")
        self.assertEqual(written, (0, ""))
        shown = self.run_command("novasvc", "stub", "stock", "--blocking")
        self.assertEqual(shown, (0, (self.folder / "stock_api.py").read_text()))
        self.assertEqual(self.run_command("python", "-W", "error", "-c", CALLER), (0, "2\n"))
        check = ("novasvc", "stub", "stock", "--check", "stock_api.py")
        self.assertEqual(self.run_command(*check), (0, ""))
        node.stop()
        self.serve("OtherStock")
        status, output = self.run_command(*check)
        self.assertEqual(status, 1)
        self.assertIn("stock_api.py: it is not the interface of stock as it runs now; write it again", output)
        self.assertIn("write it again: novasvc stub stock --blocking --output stock_api.py", output)
        status, output = self.run_command("python", "-c", CALLER)
        self.assertEqual(status, 1)
        self.assertIn("InvalidArgumentsError: invalid arguments for 'reserve': missing: item; unknown: line", output)
        self.assertIn("the interface stock_api.Stock.reserve differs from the service", output)

    def test_nobody(self) -> None:
        """Without a service the error says what to do, and no file is written."""
        self.serve("Stock")
        status, output = self.run_command("novasvc", "stub", "stok", "--output", "stock_api.py")
        self.assertEqual(status, 1)
        self.assertIn("no server for stok", output)
        self.assertFalse((self.folder / "stock_api.py").exists())
