"""Tests for `novasvc fleet versions`, with a registry in memory."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.fleet import fleet
from novasvc.testing import MemoryRegistry
from tests.unit.cli.test_service import MemoryContext


class FleetVersionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = MemoryRegistry(self.clock)
        self.add("dead", 1)
        self.clock.advance(61)
        for number in range(10):
            self.add(f"old{number}", 2)
        for number in range(3):
            self.add(f"new{number}", 3)
        self.add("h1", 5, binary="stock")

    def add(self, host: str, version: int, binary: str = "shop") -> None:
        record = self.successResultOf(self.registry.register(host, binary, binary, version))
        self.successResultOf(self.registry.beat(record.id))

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = fleet.main(
                ["versions", *arguments], prog_name="fleet", standalone_mode=False, obj=MemoryContext(self.registry)
            )
        return int(status or 0), out.getvalue(), err.getvalue()

    def test_table(self) -> None:
        """The table has the versions of each binary with their counts, and some hosts that are behind."""
        status, text, _ = self.run_command()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[0] == "|"]
        self.assertEqual(rows[0], ["Binary", "Topic", "Version", "Services", "Up", "Behind"])
        behind = "old0, old1, old2, old3, old4, old5, old6, old7 and 2 more"
        self.assertEqual(
            rows[1:],
            [
                ["shop", "shop", "1", "1", "0", "-"],
                ["shop", "shop", "2", "10", "10", behind],
                ["shop", "shop", "3", "3", "3", "-"],
                ["stock", "stock", "5", "1", "1", "-"],
            ],
        )
        self.assertEqual(status, 0)

    def test_json(self) -> None:
        """JSON has all hosts that are behind; --binary and --topic filter."""
        rows = json.loads(self.run_command("-f", "json", "--binary", "shop")[1])
        self.assertEqual([row["Behind"] for row in rows], [[], [f"old{number}" for number in range(10)], []])
        self.assertEqual(len(json.loads(self.run_command("-f", "json", "--topic", "stock")[1])), 1)

    def test_check(self) -> None:
        """--check says with the exit status whether an upgrade is complete."""
        status, _, error = self.run_command("--check")
        self.assertEqual(status, 1)
        self.assertIn("10 behind the others: shop, version 2: old0, old1", error)
        self.assertEqual(
            self.run_command("--check", "--binary", "stock"), (0, self.run_command("--binary", "stock")[1], "")
        )
        status, _, error = self.run_command("--check", "--binary", "nobody")
        self.assertEqual((status, error), (1, "novasvc: no matching service is up\n"))
