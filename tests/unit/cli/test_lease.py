"""Tests for `novasvc lease`, with a registry in memory."""

import json
from contextlib import redirect_stdout
from io import StringIO

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.lease import lease
from novasvc.registry.lease import LeaseRequest
from novasvc.testing import MemoryRegistry
from tests.unit.cli.test_service import MemoryContext


class LeaseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = MemoryRegistry(self.clock)
        self.hold("shop", "h1", "nightly", "weekly")
        self.hold("bank", "h2", "audit")
        self.registry.release_leases("shop", "id of h1", ["weekly"])
        self.clock.advance(10)

    def hold(self, topic: str, host: str, *tasks: str) -> None:
        runs = {tasks[0]: 3600.0}
        request = LeaseRequest(topic=topic, holder=host, owner=f"id of {host}", seconds=30, tasks=tasks, runs=runs)
        self.successResultOf(self.registry.hold_leases(request))

    def output(self, *arguments: str) -> str:
        with redirect_stdout(StringIO()) as out:
            lease.main(["list", *arguments], prog_name="lease", standalone_mode=False, obj=MemoryContext(self.registry))
        return out.getvalue()

    def test_table(self) -> None:
        """The table has who has which lease, since when; a free lease has no holder."""
        lines = [line.split("|")[1:-1] for line in self.output().splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line] for line in lines]
        self.assertEqual(cells[0], ["Topic", "Task", "Holder", "Since", "Fencing", "Expires In", "Last Run At"])
        start = "1970-01-01 00:00:00 UTC"
        self.assertEqual(cells[1], ["bank", "audit", "h2", start, "1", "20.0", start])
        self.assertEqual(cells[2], ["shop", "nightly", "h1", start, "1", "20.0", start])
        self.assertEqual(cells[3], ["shop", "weekly", "-", "-", "1", "-", "-"])

    def test_json(self) -> None:
        """JSON has null for what is unknown; --topic filters, and -c chooses columns."""
        (row,) = json.loads(self.output("-f", "json", "--topic", "bank"))
        self.assertEqual((row["Holder"], row["Fencing"], row["Expires In"]), ("h2", 1, 20.0))
        rows = json.loads(self.output("-f", "json", "-c", "Holder", "-c", "Last Due At"))
        self.assertEqual([row["Holder"] for row in rows], ["h2", "h1", None])
        self.assertEqual(rows[0]["Last Due At"], "1970-01-01T01:00:00.000+00:00")

    def test_ended(self) -> None:
        """A lease that has ended is held by nobody."""
        self.clock.advance(30)
        self.assertEqual(self.output("-f", "value", "-c", "Holder"), "None\n" * 3)

    def test_none(self) -> None:
        """Without leases the list is empty."""
        self.registry = MemoryRegistry(self.clock)
        self.assertEqual(json.loads(self.output("-f", "json")), [])
        self.assertEqual(json.loads(self.output("-f", "json", "-c", "Last Due At")), [])
