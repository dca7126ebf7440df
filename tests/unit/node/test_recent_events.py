from twisted.trial.unittest import SynchronousTestCase

from novasvc.node.recent_events import event_rows
from novasvc.telemetry.flight import Event


class EventRowsTests(SynchronousTestCase):
    def rows(self, *events: tuple[str, str]) -> list[tuple[object, ...]]:
        """Return the rows of events a second apart: kind, text, outcome, seconds, request id."""
        rows = event_rows(Event(1000.0 + number, kind, text) for number, (kind, text) in enumerate(events))
        return [tuple(row.get(name) for name in ("kind", "text", "outcome", "seconds", "request_id")) for row in rows]

    def test_calls(self) -> None:
        """A call is one line with its duration, where it ended; calls that run are where they began."""
        self.assertEqual(
            self.rows(
                ("call", "copy began req-1"),
                ("call", "greet began req-2"),
                ("broker", "connected"),
                ("call", "greet done req-2"),
                ("call", "greet began req-3"),
                ("call", "greet failed req-3 ValueError"),
                ("call", "wait began req-4"),
                ("call", "wait timed out req-4"),
                ("call", "stop began req-5"),
                ("call", "stop was cancelled by its caller req-5"),
            ),
            [
                ("call", "copy", "running", None, "req-1"),
                ("broker", "connected", None, None, None),
                ("call", "greet", "done", 2.0, "req-2"),
                ("call", "greet: ValueError", "failed", 1.0, "req-3"),
                ("call", "wait", "timed out", 1.0, "req-4"),
                ("call", "stop", "was cancelled by its caller", 1.0, "req-5"),
            ],
        )

    def test_tasks(self) -> None:
        """A run of a task is one line, too; its error is not taken for a request id."""
        found = self.rows(("task", "sweep began"), ("task", "sweep failed OSError"), ("task", "sweep is led here"))
        self.assertEqual(
            found, [("task", "sweep: OSError", "failed", 1.0, None), ("task", "sweep is led here", None, None, None)]
        )

    def test_beginning_lost(self) -> None:
        """An end whose beginning has left the ring is told without a duration."""
        self.assertEqual(self.rows(("call", "greet done req-2")), [("call", "greet", "done", None, "req-2")])

    def test_same_id(self) -> None:
        """Calls of one request to several methods are told apart; so is the same call done twice."""
        found = self.rows(
            ("call", "a began req-1"),
            ("call", "b began req-1"),
            ("call", "a done req-1"),
            ("call", "b done req-1"),
            ("call", "a began req-1"),
            ("call", "a done req-1"),
        )
        self.assertEqual([(row[1], row[3]) for row in found], [("a", 2.0), ("b", 2.0), ("a", 1.0)])

    def test_bounded(self) -> None:
        """The last hundred are told."""
        found = self.rows(*(("test", str(number)) for number in range(300)))
        self.assertEqual((len(found), found[-1][1]), (100, "299"))
