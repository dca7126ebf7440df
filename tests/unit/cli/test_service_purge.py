"""Tests for `novasvc service purge`, with rows that a registry stands in for."""

from click.testing import CliRunner
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.service import service
from novasvc.registry.purge import PurgedRow, PurgedRows, PurgeRequest
from novasvc.testing import MemoryRegistry
from tests.unit.cli.test_service import MemoryContext


class Purging(MemoryRegistry):
    """Has rows to purge."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.rows = [PurgedRow(id=each, host=f"h{each}", binary="b", why="silent", age=40 * 86400.0) for each in (1, 2)]
        self.requests: list[PurgeRequest] = []

    def find_purgeable(self, request: PurgeRequest, after: int) -> Deferred[PurgedRows]:
        self.requests.append(request)
        return succeed([row for row in self.rows if row.id > after][:1])

    def purge(self, request: PurgeRequest) -> Deferred[PurgedRows]:
        self.requests.append(request)
        return succeed([self.rows.pop(0)] if self.rows else [])


class PurgeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = Purging(Clock())

    def purge(self, *arguments: str, status: int = 0) -> str:
        ran = CliRunner().invoke(service, ["purge", *arguments], obj=MemoryContext(self.registry))
        self.assertEqual(ran.exit_code, status, ran.output)
        return ran.output

    def test_dry_run(self) -> None:
        """A dry run shows the rows, and deletes none."""
        shown = self.purge("--before", "30d", "--dry-run")
        self.assertRegex(shown, r"\| 1 +\| b +\| h1 +\| silent \| 40\.0 \|")
        self.assertIn("2 rows would be deleted", shown)
        self.assertEqual(len(self.registry.rows), 2)
        self.assertEqual(self.registry.requests[0], PurgeRequest(seconds=30 * 86400.0))

    def test_yes(self) -> None:
        """With --yes they are deleted, batch after batch."""
        self.assertIn("2 rows deleted", self.purge("--before", "2w", "--yes", "--include-nova"))
        self.assertEqual(self.registry.rows, [])
        self.assertEqual(self.registry.requests[0], PurgeRequest(seconds=14 * 86400.0, include_nova=True))
        self.assertIn("0 rows deleted", self.purge("--before", "2w"))

    def test_asks(self) -> None:
        """Without --yes it shows the rows and asks; without a terminal, nothing is deleted."""
        self.assertIn("Without a terminal to confirm on, add --yes", self.purge("--before", "30d", status=2))
        self.assertEqual(len(self.registry.rows), 2)

    def test_ages(self) -> None:
        """An age has a number and a unit, and is not below service_down_time."""
        for text in ("30", "d", "0d", "-1d", "1.5d", "30 days", "30D"):
            self.assertIn("is not an age, such as", self.purge("--before", text, status=2).replace("\n", " "))
        self.assertIn("service_down_time (60 s)", self.purge("--before", "59s", status=2))
        self.assertIn("--before", self.purge(status=2))
