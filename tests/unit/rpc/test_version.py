"""Tests for novasvc.rpc.version."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.version import compatible, parse_version

NUMBERS = st.integers(min_value=0, max_value=999_999_999)
VERSIONS = st.tuples(NUMBERS, NUMBERS, NUMBERS)


def text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


class CompatibleTests(SynchronousTestCase):
    def test_endpoint(self) -> None:
        """An endpoint serves its own major, up to its own minor and revision."""
        served = {want: compatible("1.3", want) for want in ("1.0", "1.2", "1.2.9", "1.3", "1.3.0")}
        refused = {want: compatible("1.3", want) for want in ("1.3.5", "1.4", "2.0", "0.9")}
        self.assertEqual((set(served.values()), set(refused.values())), ({True}, {False}))

    def test_cap(self) -> None:
        """A version cap allows the versions that an endpoint of that version would serve, and not None."""
        answers = [compatible("1.2", want) for want in ("1.2", "1.2.1", "1.3", "2.0", None)]
        self.assertEqual(answers, [True, False, False, False, False])

    def test_no_cap(self) -> None:
        """No cap allows every version."""
        self.assertEqual([compatible(None, want) for want in ("1.0", "99.9", None)], [True] * 3)

    @given(VERSIONS, VERSIONS)
    def test_order(self, have: tuple[int, int, int], want: tuple[int, int, int]) -> None:
        """Of two versions with the same major, the newer serves the older."""
        want = (have[0], *want[1:])
        newer, older = max(have, want), min(have, want)
        self.assertTrue(compatible(text(newer), text(older)))
        self.assertEqual(compatible(text(older), text(newer)), newer == older)

    @given(VERSIONS, VERSIONS)
    def test_major(self, have: tuple[int, int, int], want: tuple[int, int, int]) -> None:
        """Versions with different majors never serve each other."""
        if have[0] != want[0]:
            self.assertFalse(compatible(text(have), text(want)))

    @given(NUMBERS, NUMBERS)
    def test_revision(self, major: int, minor: int) -> None:
        """An omitted revision is 0."""
        self.assertEqual(parse_version(f"{major}.{minor}"), (major, minor, 0))

    def test_no_version(self) -> None:
        """A malformed version is refused; the error quotes it."""
        for wrong in ("", "1", "1.", ".1", "1.0.0.0", "a.b", "1.-1", " 1.0", "1.0\n", "\u0661.0", "1_0.0", "9" * 5000):
            error = self.assertRaises(ValueError, parse_version, wrong)
            self.assertIn(repr(wrong), str(error))
