"""Tests for novasvc.periodic.cron: due times in time zones, and lines that are refused."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import DeclarationError
from novasvc.periodic import periodic_task
from novasvc.periodic.cron import CronLine, parse_cron

BERLIN = "Europe/Berlin"
SPRING, AUTUMN = "2026-03-29", "2026-10-25"
"""Days of 2026 on which Berlin's clocks skip 02:00 to 03:00, and repeat it."""


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class DueTests(SynchronousTestCase):
    """Tests for CronLine.after."""

    def due(self, line: str, start: str, count: int, zone: Any = BERLIN) -> list[str]:
        """Return due times after a start, in the zone's time."""
        cron, moment, found = parse_cron("m.C.f", line, zone), seconds(start), []
        for _ in range(count):
            later = cron.after(moment)
            self.assertGreater(later, moment)
            moment = later
            found.append(datetime.fromtimestamp(moment, cron.zone).isoformat(" ", "minutes"))
        return found

    def test_zone(self) -> None:
        """A line is due by the clocks of its zone, in summer and in winter."""
        self.assertEqual(self.due("30 3 * * *", "2026-06-01T00:00Z", 1), ["2026-06-01 03:30+02:00"])
        self.assertEqual(self.due("30 3 * * *", "2026-12-01T00:00Z", 1), ["2026-12-01 03:30+01:00"])
        self.assertEqual(self.due("30 3 * * *", "2026-12-01T00:00Z", 1, "UTC"), ["2026-12-01 03:30+00:00"])
        fixed = timezone(timedelta(hours=5, minutes=30))
        self.assertEqual(self.due("0 12 * * 1", "2026-12-01T00:00Z", 1, fixed), ["2026-12-07 12:00+05:30"])

    def test_strictly_after(self) -> None:
        """A due time is after the moment, even if the moment is a due time."""
        self.assertEqual(self.due("0 3 * * *", "2026-06-01T03:00+02:00", 1), ["2026-06-02 03:00+02:00"])

    def test_skipped_fixed(self) -> None:
        """A fixed time that the clocks skip is due at the first minute after the gap, once."""
        for line in ("30 2 * * *", "0,20,40 2 * * *", "59 2 29 3 *"):
            self.assertEqual(self.due(line, f"{SPRING}T00:00+01:00", 1), [f"{SPRING} 03:00+02:00"])
            after = self.due(line, f"{SPRING}T03:00+02:00", 1)[0]
            self.assertFalse(after.startswith(SPRING), after)

    def test_skipped_wildcard(self) -> None:
        """A line with "*" is due at the times that the clock shows: nothing in the gap is made up for."""
        self.assertEqual(
            self.due("*/30 * * * *", f"{SPRING}T01:15+01:00", 3),
            [f"{SPRING} 01:30+01:00", f"{SPRING} 03:00+02:00", f"{SPRING} 03:30+02:00"],
        )

    def test_repeated_fixed(self) -> None:
        """A fixed time that the clocks repeat is due the first time only."""
        self.assertEqual(
            self.due("30 2 * * *", f"{AUTUMN}T00:00+02:00", 2), [f"{AUTUMN} 02:30+02:00", "2026-10-26 02:30+01:00"]
        )

    def test_repeated_fixed_from_within(self) -> None:
        """From within the repeated hour, a fixed time that was due in the first one is not due again."""
        self.assertEqual(self.due("50 2 * * *", f"{AUTUMN}T02:40+01:00", 1), ["2026-10-26 02:50+01:00"])

    def test_repeated_wildcard(self) -> None:
        """A line with "*" is due in both of the repeated hours."""
        self.assertEqual(
            self.due("15 * * * *", f"{AUTUMN}T01:30+02:00", 3),
            [f"{AUTUMN} 02:15+02:00", f"{AUTUMN} 02:15+01:00", f"{AUTUMN} 03:15+01:00"],
        )

    def test_rare(self) -> None:
        """A day that comes once in many years is found."""
        self.assertEqual(self.due("0 0 * 2 MON#5", "2030-01-01T00:00Z", 1, "UTC"), ["2044-02-29 00:00+00:00"])

    def test_end_of_time(self) -> None:
        """Clocks that are far wrong are no error."""
        line = CronLine("0 3 * * *", UTC)
        self.assertEqual(line.after(-1e18), 3 * 3600.0)
        for moment in (1e12, 1e18, 253_402_300_799.0):
            self.assertEqual(line.after(moment), float("inf"))

    @given(st.integers(1_700_000_000, 2_000_000_000), st.sampled_from(["30 2 * * *", "*/7 * * * *", "5 */3 * * 1-5"]))
    def test_always_later(self, moment: int, text: str) -> None:
        """A due time is later than its moment, at a whole minute, and there is none in between."""
        line = parse_cron("m.C.f", text, BERLIN)
        due = line.after(moment)
        self.assertGreater(due, moment)
        self.assertEqual(due % 60, 0)
        self.assertEqual(line.after(due - 1), due)


class RefusedTests(SynchronousTestCase):
    """Lines that are refused when the task is declared."""

    def refused(self, **options: Any) -> str:
        def method(self: object, context: RequestContext) -> None: ...

        error = self.assertRaises(DeclarationError, periodic_task(**options), method)
        self.assertIn("refused.<locals>.method", error.subject)
        return f"{error.problem}; {error.remedy}"

    def test_never_due(self) -> None:
        """A line that is never due is refused."""
        for line in ("0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * */20 * 1L"):
            self.assertEqual(
                self.refused(cron=line), f"cron={line!r} is never due; name a day that exists, or leave out the task"
            )

    def test_malformed(self) -> None:
        """A malformed line is refused, and the error says which field is wrong."""
        for line, problem in (
            ("61 * * * *", "has an invalid minute"),
            ("0 24 * * *", "has an invalid hour"),
            ("0 0 32 * *", "has an invalid day-of-month"),
            ("0 0 * 13 *", "has an invalid month"),
            ("0 0 * * 8", "has an invalid day-of-week"),
            ("5-1 * * * *", "has an invalid minute"),
            ("daily", "has 1 fields, not 5"),
            ("", "has 0 fields, not 5"),
            ("* * * * * *", "has 6 fields, not 5"),
        ):
            self.assertIn(f"cron={line!r} {problem}; write", self.refused(cron=line))
        self.assertIn("for seconds, use spacing=", self.refused(cron="* * * * * *"))
        self.assertIn("cron=5 is not text", self.refused(cron=5))

    def test_name(self) -> None:
        """A name such as @daily is refused with the line that it stands for."""
        self.assertEqual(self.refused(cron="@daily"), "cron='@daily' is not supported; write cron=\"0 0 * * *\"")

    def test_zone(self) -> None:
        """An unknown time zone is refused."""
        for zone in ("Europe/Berlln", "../etc/passwd", "", "UTC+1", None, 3, "\0"):
            self.assertIn(f"timezone={zone!r} is not a time zone", self.refused(cron="0 3 * * *", timezone=zone))

    def test_contradiction(self) -> None:
        """Cron line and spacing exclude each other, and a time zone belongs to a cron line."""
        self.assertIn("contradict each other", self.refused(cron="0 3 * * *", spacing=60))
        self.assertIn("timezone is given without cron", self.refused(timezone=BERLIN))
        self.assertIn("timezone is given without cron", self.refused(timezone=BERLIN, spacing=60))

    @given(st.text(alphabet="0123456789*/,-LW#MONJAN ?", max_size=20))
    def test_any_text(self, text: str) -> None:
        """Any text is a line that is due at some time, or a DeclarationError."""
        try:
            line = parse_cron("m.C.f", text, "UTC")
        except DeclarationError:
            return
        self.assertLess(line.after(0.0), float("inf"))
