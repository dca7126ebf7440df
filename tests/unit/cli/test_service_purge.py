"""Tests for `novasvc service purge`, with rows that a registry stands in for."""

from click.testing import CliRunner
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli import service_purge
from novasvc.cli.service import service
from novasvc.registry.outages import VerdictRule
from novasvc.registry.purge import PurgeBatch, PurgedRow, PurgeRequest
from novasvc.registry.verdict import OutageKey
from novasvc.testing import MemoryRegistry
from tests.unit.cli.test_service import MemoryContext


class Purging(MemoryRegistry):
    """Has rows to purge."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.rows = [PurgedRow(id=each, host=f"h{each}", binary="b", why="silent", age=40 * 86400.0) for each in (1, 2)]
        self.requests: list[PurgeRequest] = []
        self.suspect: list[str] = []

    def find_purgeable(self, request: PurgeRequest, after: int) -> Deferred[PurgeBatch]:
        return succeed(self.batch(request, [row for row in self.rows if row.id > after][:1]))

    def purge(self, request: PurgeRequest, after: int) -> Deferred[PurgeBatch]:
        batch = self.batch(request, [row for row in self.rows if row.id > after][:1])
        self.rows = [row for row in self.rows if row not in batch.rows]
        return succeed(batch)

    def batch(self, request: PurgeRequest, rows: list[PurgedRow]) -> PurgeBatch:
        """Return a batch of one row; the last one has the suspect services."""
        self.requests.append(request)
        if rows:
            return PurgeBatch(rows=rows, last=rows[-1].id)
        outages: dict[OutageKey, str] = {("b", None): "6 of 8 services of b are silent"} if self.suspect else {}
        return PurgeBatch(suspect=self.suspect, outages=outages)


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
        self.assertEqual(self.registry.requests[0], PurgeRequest(seconds=30 * 86400.0, rule=VerdictRule()))

    def test_yes(self) -> None:
        """With --yes they are deleted, batch after batch."""
        self.assertIn("2 rows deleted", self.purge("--before", "2w", "--yes", "--include-nova"))
        self.assertEqual(self.registry.rows, [])
        expected = PurgeRequest(seconds=14 * 86400.0, rule=VerdictRule(), include_nova=True)
        self.assertEqual(self.registry.requests[0], expected)
        self.assertIn("0 rows deleted", self.purge("--before", "2w"))

    def test_asks(self) -> None:
        """Without --yes it shows the rows and asks; without a terminal, nothing is deleted."""
        self.assertIn("Without a terminal to confirm on, add --yes", self.purge("--before", "30d", status=2))
        self.assertEqual(len(self.registry.rows), 2)

    def test_suspect(self) -> None:
        """Services whose rows stay because they are suspect are named, with the outage, in a dry run, too."""
        self.registry.suspect = ["b@h3", "b@h4"]
        told = (
            "novasvc: suspect, not down, so their rows stay: b@h3, b@h4; see `novasvc service verdicts`\n"
            "novasvc: 6 of 8 services of b are silent\n"
        )
        for arguments, end in ((["--dry-run"], "2 rows would be"), (["--yes"], "2 rows"), ([], "0 rows")):
            shown = self.purge("--before", "30d", *arguments)
            self.assertEqual(shown.count(told), 1, shown)
            self.assertIn(f"{end} deleted", shown)

    def test_suspect_since(self) -> None:
        """Services that have become suspect since the question are named afterwards, and only they."""

        def answer(_: int) -> None:
            self.registry.suspect = ["b@h3", "b@h4"]

        self.patch(service_purge, "_confirm", answer)
        self.registry.suspect = ["b@h3"]
        shown = self.purge("--before", "30d")
        self.assertEqual(shown.count("rows stay: b@h3;"), 1, shown)
        self.assertEqual(shown.count("rows stay: b@h4;"), 1, shown)

    def test_ages(self) -> None:
        """An age has a number and a unit, and is not below service_down_time."""
        for text in ("30", "d", "0d", "-1d", "1.5d", "30 days", "30D"):
            self.assertIn("is not an age, such as", self.purge("--before", text, status=2).replace("\n", " "))
        self.assertIn("service_down_time (60 s)", self.purge("--before", "59s", status=2))
        self.assertIn("--before", self.purge(status=2))
