"""Tests for `novasvc new`."""

import configparser
import os
import tomllib
from pathlib import Path
from unittest.mock import patch

import click.testing
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.new import check_class, check_name, filled
from novasvc.cli.program import program
from novasvc.config import load
from novasvc.errors import ProblemError


class NameTests(SynchronousTestCase):
    """Tests for the names of projects and managers."""

    def test_good(self) -> None:
        """Names of packages and classes are accepted."""
        for name in ("shop", "s", "my_shop2"):
            check_name(name)
        for name in ("Stock", "TeaShopManager", "Job2"):
            check_class(name)

    def test_bad_names(self) -> None:
        """A name that no package can have, or that hides a module, is refused, and a better one suggested."""
        for name, shown in (
            ("Shop", "try 'shop'"),
            ("my-shop", "try 'my_shop'"),
            ("/srv/my shop", "try 'my_shop'"),
            ("7up", "begins with a letter; give another name"),
            ("", "give another name"),
            ("s" * 65, "lower-case letters"),
            ("class", "a keyword of Python"),
            ("match", "a keyword of Python"),
            ("asyncio", "hide a module of Python's standard library"),
            ("click", "hide the installed package"),
            ("novasvc", "hide the installed package"),
            ("tests", "another purpose"),
        ):
            self.assertIn(shown, str(self.assertRaises(ProblemError, check_name, name)))

    def test_bad_classes(self) -> None:
        """The same for the class of the manager."""
        for name, shown in (
            ("stock", "try --manager Stock"),
            ("tea-shop", "try --manager TeaShop"),
            ("7", "begins with a capital letter; give another"),
            ("Class", "'class', a keyword"),
            ("None", "a keyword"),
            ("Manager", "uses this name otherwise"),
        ):
            self.assertIn(shown, str(self.assertRaises(ProblemError, check_class, name)))


class ProjectTests(SynchronousTestCase):
    """Tests for what is written; tests/e2e/test_new.py runs it. Each test has a directory of its own."""

    def new(self, *arguments: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(program, ["new", *arguments])

    def test_files(self) -> None:
        """Every placeholder is filled, and only tests/run can be executed."""
        said = self.new("lamps", "--manager", "TableLamp").output
        self.assertIn("novasvc run lamps.table_lamp:TableLamp --reload", said)
        project = Path("lamps")
        files = sorted(str(path.relative_to(project)) for path in project.rglob("*") if path.is_file())
        self.assertEqual(
            files,
            [
                ".gitignore", ".novasvc-python", "README.md", "lamps.service", "lamps.toml", "lamps/__init__.py",
                "lamps/table_lamp.py", "pyproject.toml", "tests/__init__.py", "tests/run", "tests/test_table_lamp.py",
            ],
        )  # fmt: skip
        for name in files:
            self.assertNotIn("{{", (project / name).read_text())
            self.assertEqual(os.access(project / name, os.X_OK), name == "tests/run", name)
            # No path of this machine is in a file that git keeps.
            if name != ".novasvc-python":
                self.assertNotIn(str(Path.cwd()), (project / name).read_text())

    def test_settings(self) -> None:
        """The settings are valid, and name the manager; the unit reads them."""
        self.new("lamps", "--manager", "TableLamp")
        (service,) = load([Path("lamps/lamps.toml")], {}, {}).settings.services
        self.assertEqual(
            (service.binary, service.topic, service.manager),
            ("novasvc-table_lamp", "table_lamp", "lamps.table_lamp.TableLamp"),
        )
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read("lamps/lamps.service")
        self.assertEqual(unit["Service"]["ExecStart"], "/opt/lamps/bin/twistd --nodaemon --pidfile= novasvc")
        self.assertEqual(tomllib.loads(Path("lamps/pyproject.toml").read_text())["project"]["name"], "lamps")

    def test_exists(self) -> None:
        """A folder or file of the name is left alone."""
        Path("shop").mkdir()
        Path("mill").write_text("flour")
        for name in ("shop", "mill"):
            self.assertIn("it exists already; give another name", str(self.new(name).exception))
        self.assertEqual((list(Path("shop").iterdir()), Path("mill").read_text()), ([], "flour"))

    def test_full_disk(self) -> None:
        """If a file cannot be written, nothing is left, so that the command can be repeated."""
        with patch.object(Path, "write_text", side_effect=OSError(28, "No space left on device")):
            self.assertIn("No space left on device; make room", str(self.new("shop").exception))
        self.assertFalse(Path("shop").exists())
        self.assertEqual(self.new("shop").exit_code, 0)

    def test_not_writable(self) -> None:
        """A directory in which no folder can be made is named."""
        with patch.object(Path, "mkdir", side_effect=PermissionError(13, "Permission denied")):
            self.assertIn("cannot be created: Permission denied; run the command", str(self.new("shop").exception))

    def test_unknown_placeholder(self) -> None:
        """A placeholder without a value is an error, and braces of other languages are left."""
        self.assertEqual(filled("{a} ${b} {{c}}", {"c": "1"}), "{a} ${b} 1")
        self.assertRaises(KeyError, filled, "{{d}}", {"c": "1"})
