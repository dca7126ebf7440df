"""Tests for novasvc.run.watch."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from novasvc.run import watch
from novasvc.run.watch import first_change, snapshot, syntax_error


class SnapshotTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def write(self, name: str, text: str = "") -> str:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def test_changes(self) -> None:
        """A file that is changed, added or removed differs; any other does not."""
        one, _ = self.write("a.py"), self.write("pack/b.py")
        before = snapshot(self.directory)
        self.assertIsNone(first_change(before, snapshot(self.directory)))
        os.utime(one, ns=(1, 1))
        self.assertEqual(first_change(before, snapshot(self.directory)), one)
        before = snapshot(self.directory)
        new = self.write("pack/c.py")
        self.assertEqual(first_change(before, snapshot(self.directory)), new)
        Path(new).unlink()
        self.assertIsNone(first_change(before, snapshot(self.directory)))
        Path(one).unlink()
        self.assertEqual(first_change(before, snapshot(self.directory)), one)

    def test_skipped(self) -> None:
        """Other files, hidden directories and virtual environments are not watched."""
        own = self.write("a.py")
        for name in ("a.txt", ".git/x.py", "venv/lib/x.py", "node_modules/x.py", "venv/pyvenv.cfg"):
            self.write(name)
        self.assertEqual(list(snapshot(self.directory)), [own])

    def test_bound(self) -> None:
        """No more files are watched than the bound allows."""
        self.patch(watch, "FILES", 3)
        for number in range(5):
            self.write(f"{number}.py")
        self.assertEqual(len(snapshot(self.directory)), 3)

    def test_syntax_error(self) -> None:
        """The changed files are checked for syntax errors, and only they."""
        self.write("old.py", "def (")
        before = snapshot(self.directory)
        good = self.write("good.py", 'x = "\\d"  # warns\n')
        self.assertIsNone(syntax_error(before, snapshot(self.directory)))
        bad = self.write("bad.py", "class Stock(:\n")
        found = str(syntax_error(before, snapshot(self.directory)))
        self.assertIn(f"SyntaxError: invalid syntax ({bad}:1: class Stock(:)", found)
        after = {**snapshot(self.directory), f"{self.directory}/removed.py": 1}
        Path(bad).write_bytes(b"x = 1\0")
        self.assertIn("null bytes", str(syntax_error(before, after)))
        Path(bad).unlink()
        Path(good).unlink()
        self.assertIsNone(syntax_error(before, after))
