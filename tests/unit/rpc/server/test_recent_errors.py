from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.server.recent_errors import MOST, RecentErrors


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class RecentErrorsTests(SynchronousTestCase):
    def test_row(self) -> None:
        """An error is told with when, of which call, its class, its text in one line and the duration."""
        errors = RecentErrors(lambda: 0.0)
        errors.add("greet", "shop", "req-1", ValueError("two\nlines"), 0.25)
        expected = {
            "time": "1970-01-01T00:00:00.000+00:00",
            "method": "greet",
            "namespace": "shop",
            "request_id": "req-1",
            "error": "ValueError",
            "text": "two lines",
            "seconds": 0.25,
        }
        self.assertEqual(errors.rows(), [expected])

    def test_bounded(self) -> None:
        """The last ones are kept, with texts of bounded length."""
        errors = RecentErrors()
        for number in range(MOST + 10):
            errors.add(str(number), None, "r" * 999, ValueError("x" * 9999), 0.0)
        rows = errors.rows()
        self.assertEqual((len(rows), rows[-1]["method"]), (MOST, str(MOST + 9)))
        self.assertEqual((len(rows[0]["text"]), len(rows[0]["request_id"])), (300, 300))

    def test_no_text(self) -> None:
        """An error whose text cannot be made is told all the same."""
        errors = RecentErrors()
        errors.add("greet", None, "req-1", UnprintableError(), 0.0)
        self.assertEqual(errors.rows()[0]["text"], "its text cannot be shown")
