"""Tests for `novasvc service verdicts` and `novasvc service confirm-down`."""

import json
import sys
from io import StringIO

import click

from tests.unit.cli.test_output import Terminal
from tests.unit.cli.test_service import ServiceCase


class VerdictsCase(ServiceCase):
    """Ten services of which half are cut off."""

    def setUp(self) -> None:
        super().setUp()
        self.registry.delete(self.lost.id)
        agents = [self.agent, *(self.registered(f"a{number}", "novasvc-agent", "agent") for number in range(9))]
        self.cut = agents[:5]
        for record in self.cut:
            self.registry.beat(record.id)
        for _ in range(13):
            for record in [self.compute, *agents[5:]]:
                self.registry.beat(record.id)
            self.clock.advance(5)


class ListTests(VerdictsCase):
    """Tests for `novasvc service verdicts`."""

    def test_list(self) -> None:
        """Each service has its verdict with the reason, and the outage is on standard error."""
        ran = self.run_command("verdicts", "-f", "json")
        rows = json.loads(ran.stdout)
        names = [(row["Binary"], row["Host"]) for row in rows]
        self.assertEqual(names, sorted(names))
        suspect = [row for row in rows if row["Verdict"] == "suspect"]
        self.assertEqual([row["Host"] for row in suspect], ["a0", "a1", "a2", "a3", "h1"])
        self.assertEqual([row["Reason"] for row in rows if row["Verdict"] == "alive"], [None] * 6)
        self.assertIn("as from 5 of 10 services of novasvc-agent", suspect[0]["Reason"])
        self.assertRegex(ran.stderr, r"\Anovasvc: 5 of 10 services of novasvc-agent became silent at the same time")

    def test_filters(self) -> None:
        """Services are selected by verdict, binary and a pattern of the host; the others still count for verdicts."""
        arguments = ("verdicts", "-f", "value", "-c", "Host")
        self.assertEqual(self.run_command(*arguments, "--host", "a[01]").stdout.split(), ["a0", "a1"])
        found = self.run_command(*arguments, "--verdict", "suspect", "--binary", "novasvc-agent").stdout.split()
        self.assertEqual(found, ["a0", "a1", "a2", "a3", "h1"])
        self.assertEqual(self.run_command(*arguments, "--topic", "compute").stdout.split(), ["h1"])

    def test_zones_and_tags(self) -> None:
        """Services are selected by the zone that is shown, and by tags of which they have all."""
        self.started("b0", "az1", "blue", "ssd")
        self.started("b1", "az1", "blue")
        arguments = ("verdicts", "-f", "value", "-c", "Host", "-c", "Zone")
        self.assertEqual(self.run_command(*arguments, "--zone", "az1").stdout, "b0 az1\nb1 az1\n")
        self.assertEqual(self.run_command(*arguments, "--zone", "nova").stdout, "h1 nova\n")
        self.assertEqual(self.run_command(*arguments, "--tag", "blue", "--tag", "ssd").stdout, "b0 az1\n")

    def test_service_list(self) -> None:
        """`novasvc service list`, which calls suspect services down, says below the table that they are suspect."""
        note = "novasvc: 5 of those that are down may run, and are only suspect: see `novasvc service verdicts`\n"
        self.assertEqual(self.run_command("list").stderr, note)
        self.assertIn(" 1 of those that are down may run, and is only suspect", self.listed("--host", "a0"))
        self.assertEqual(self.listed("--state", "up"), "")
        self.assertEqual(self.listed("-f", "json"), "")
        self.assertTrue(self.listed("-f", "csv", "--check").startswith(note))

    def listed(self, *options: str) -> str:
        """Return what `novasvc service list` prints on standard error."""
        return self.run_command("list", *options).stderr

    def test_check(self) -> None:
        """--check fails if a listed service is not alive, or if there is none."""
        self.assertEqual(self.run_command("verdicts", "--check").status, 1)
        self.assertEqual(self.run_command("verdicts", "--check", "--host", "nowhere").status, 1)
        self.assertEqual(self.run_command("verdicts", "--check", "--binary", "nova-compute").status, 0)


class ConfirmTests(VerdictsCase):
    """Tests for `novasvc service confirm-down`."""

    def test_confirm(self) -> None:
        """Suspect services are forced down, and no others."""
        ran = self.run_command("confirm-down", "--yes")
        self.assertIn("suspect: novasvc-agent@h1, novasvc-agent@a0", ran.stdout)
        self.assertIn("forced down: 5\n", ran.stdout)
        rows = self.successResultOf(self.registry.list(None, None, None))
        self.assertEqual({row.id for row in rows if row.forced_down}, {record.id for record in self.cut})

    def test_selected(self) -> None:
        """Only those on matching hosts are forced down; the share of the group stays that of all."""
        self.assertIn("forced down: 1\n", self.run_command("confirm-down", "--yes", "--host", "a0").stdout)
        self.assertTrue(self.row(self.cut[1]).forced_down)
        self.assertIn("forced down: 4\n", self.run_command("confirm-down", "--yes").stdout)

    def test_nothing(self) -> None:
        """Nothing is done if no service is suspect."""
        ran = self.run_command("confirm-down", "--binary", "nova-compute")
        self.assertIn("no service is suspect, so there is nothing to confirm", ran.stdout)

    def test_not_confirmed(self) -> None:
        """Without a yes nothing is changed."""
        self.patch(sys, "stdin", Terminal("n\n"))
        self.assertRaises(click.exceptions.Abort, self.run_command, "confirm-down")
        self.assertFalse(any(self.row(record).forced_down for record in self.cut))

    def test_no_terminal(self) -> None:
        """Without a terminal there is nobody to ask, which is a usage error."""
        self.patch(sys, "stdin", StringIO("y\n"))
        error = self.assertRaises(click.UsageError, self.run_command, "confirm-down")
        self.assertIn("add --yes", str(error))
        self.assertFalse(any(self.row(record).forced_down for record in self.cut))

    def test_question(self) -> None:
        """The question is on standard error, because the output may go to a file."""
        self.patch(sys, "stdin", Terminal("y\n"))
        ran = self.run_command("confirm-down")
        self.assertIn("Force 5 services down?", ran.stderr)
        self.assertNotIn("?", ran.stdout)

    def test_back_meanwhile(self) -> None:
        """A service that has come back while the operator thought is left alone."""

        def think(*_: object, **__: object) -> bool:
            self.registry.beat(self.cut[0].id)
            self.registry.delete(self.cut[1].id)
            return True

        self.patch(sys, "stdin", Terminal())
        self.patch(click, "confirm", think)
        ran = self.run_command("confirm-down")
        self.assertIn("forced down: 3; back or deleted, and left alone: 2", ran.stdout)
        self.assertFalse(self.row(self.cut[0]).forced_down)
