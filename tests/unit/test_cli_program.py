"""The operators' command as a program: status, messages, and the commands that need no database."""

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from novasvc import __version__
from novasvc.cli.program import run


class Ran(NamedTuple):
    """What the command returned and wrote."""

    status: int
    stdout: str
    stderr: str


class ProgramCase(SynchronousTestCase):
    """A test that runs the command in this process."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def write(self, name: str, *lines: str) -> str:
        """Write a file, and return its path."""
        file = self.directory / name
        file.write_text("\n".join(lines), encoding="utf-8")
        return str(file)

    def run_program(self, *arguments: str, environ: dict[str, str] | None = None) -> Ran:
        """Run the command in an environment of its own."""
        self.patch(os, "environ", environ or {})
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = run(arguments)
        return Ran(status, out.getvalue(), err.getvalue())


class RunTests(ProgramCase):
    """Tests for novasvc.cli.program.run."""

    def test_version(self) -> None:
        """--version prints the version."""
        self.assertEqual(self.run_program("--version"), (0, f"novasvc {__version__}\n", ""))

    def test_help(self) -> None:
        """--help lists the commands; no command at all is an error with the same page."""
        asked, not_asked = self.run_program("--help"), self.run_program()
        self.assertEqual((asked.status, not_asked.status), (0, 2))
        for page in (asked.stdout, not_asked.stderr):
            for name in ("service", "workers", "drain", "reload", "dump", "db", "config", "completion"):
                self.assertIn(f"\n  {name} ", page)

    def test_usage_errors(self) -> None:
        """A command line that is wrong gives one line, which names the help, and status 2."""
        for arguments, command in (
            (["foo"], "novasvc"),
            (["--foo"], "novasvc"),
            (["service", "foo"], "novasvc service"),
            (["service", "show"], "novasvc service show"),
            (["service", "show", "h", "--host", "h"], "novasvc service show"),
            (["service", "show", "h", "b", "--binary", "b"], "novasvc service show"),
            (["service", "list", "-f", "xml"], "novasvc service list"),
            (["service", "disable", "1", "--reason", ""], "novasvc service disable"),
            (["service", "disable", "1", "--reason", "x" * 256], "novasvc service disable"),
            (["config", "show", "-c", "foo"], "novasvc config show"),
        ):
            ran = self.run_program(*arguments)
            self.assertEqual((ran.status, ran.stdout), (2, ""))
            self.assertRegex(ran.stderr, rf"^novasvc: .*`{command} --help` says how\.\n$")

    def test_wrong_settings(self) -> None:
        """Wrong settings are said without a traceback, and passwords are not."""
        ran = self.run_program("--database-url", "mysql:/u:secret@h", "service", "list")
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        self.assertRegex(ran.stderr, "^novasvc: the configuration has an error: --database-url = mysql:.*\n$")
        self.assertNotIn("secret", ran.stderr)


class ConfigTests(ProgramCase):
    """Tests for `novasvc config`."""

    def test_show(self) -> None:
        """Every setting is shown with its origin."""
        file = self.write("a.toml", "report_interval = 5", "service_down_time = 20.5", 'compute_manager = "a.B"')
        ran = self.run_program("--config", file, "config", "show", "-f", "value", environ={"NOVASVC_MIGRATE": "no"})
        self.assertIn(f"report_interval 5 file {file}\n", ran.stdout)
        self.assertIn(f"service_down_time 20.5 file {file}\n", ran.stdout)
        self.assertIn(f"compute_manager a.B file {file}\n", ran.stdout)
        self.assertIn("migrate false variable NOVASVC_MIGRATE\n", ran.stdout)
        self.assertIn("topic agent default\n", ran.stdout)

    def test_show_services(self) -> None:
        """With tables the services take the place of the only one; what they inherit keeps its origin."""
        file = self.write("a.toml", "report_interval = 5", "[[service]]", 'topic = "agent"', "options = {password = 1}")
        rows = json.loads(self.run_program("--config", file, "config", "show", "-f", "json").stdout)
        values = {row["Setting"]: (row["Value"], row["Origin"]) for row in rows}
        self.assertNotIn("topic", values)
        self.assertEqual(values["service[0].topic"], ("agent", f"file {file}, table service[0]"))
        self.assertEqual(values["service[0].report_interval"], (5.0, f"file {file}"))
        self.assertEqual(values["service[0].options"][0], {"password": "***"})

    def test_show_secrets(self) -> None:
        """Passwords are masked, in every format."""
        for output_format in ("table", "json", "csv", "value"):
            url = "postgresql://u:pAssw0rd@h/d"
            ran = self.run_program("--database-url", url, "config", "show", "-f", output_format)
            self.assertIn("u:***@h", ran.stdout)
            self.assertNotIn("pAssw0rd", ran.stdout)

    def test_check(self) -> None:
        """Files without an error are ok, whatever the environment says."""
        file = self.write("a.toml", "report_interval = 5")
        ran = self.run_program("config", "check", file, environ={"NOVASVC_WORKERS": "0"})
        self.assertEqual(ran, (0, f"ok: {file} (1 service)\n", ""))

    def test_check_errors(self) -> None:
        """All errors of all files are said at once."""
        toml = self.write("a.toml", "report_interval = 0.5")
        ini = self.write("a.ini", "[DEFAULT]", "hsot = x")
        ran = self.run_program("config", "check", toml, ini)
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        self.assertIn("2 errors:\n  - hsot (from", ran.stderr)

    def test_check_here(self) -> None:
        """Without files, the settings that would be used here are checked."""
        ran = self.run_program("config", "check", environ={"NOVASVC_WORKERS": "-1"})
        self.assertEqual(ran.status, 1)
        self.assertIn("variable NOVASVC_WORKERS", ran.stderr)


class CompletionTests(ProgramCase):
    """Tests for `novasvc completion`."""

    def test_scripts(self) -> None:
        """Each shell gets a script about novasvc."""
        for shell in ("bash", "zsh", "fish"):
            self.assertIn("_NOVASVC_COMPLETE", self.run_program("completion", shell).stdout)
