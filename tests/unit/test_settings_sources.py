"""The sources of settings: files, environment, options."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import SettingError, SettingsError
from novasvc.settings import Settings, load, option_table


class SourcesCase(SynchronousTestCase):
    """A test that writes files and loads them."""

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of this name into a directory of its own."""
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        file = Path(directory.name, name)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def settings(self, *files: Path, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
        """Load with nothing but what is given."""
        return load(files, environ or {}, options).settings

    def error(self, *files: Path, environ: Mapping[str, str] | None = None, **options: Any) -> SettingError:
        """Load what has one thing wrong, and return what is said about it."""
        failure = self.assertRaises(SettingsError, load, files, environ or {}, options)
        (error,) = failure.errors
        return error


class TOMLTests(SourcesCase):
    """Tests for TOML files."""

    def test_types_are_meant(self) -> None:
        """A text is no number in TOML, and a boolean is none either."""
        for value in ('"10"', "true", "nan", "inf", "1979-05-27", "[1]"):
            with self.subTest(value=value):
                self.assertEqual(
                    self.error(self.write("a.toml", f"report_interval = {value}")).problem, "is not a number"
                )
        self.assertEqual(self.error(self.write("a.toml", "workers = 1.0")).problem, "is not a whole number")
        self.assertEqual(self.error(self.write("a.toml", 'migrate = "no"')).problem, "is not true or false")

    def test_syntax_error(self) -> None:
        """A line that is no TOML is named by its number."""
        error = self.error(self.write("a.toml", 'host = "h"\nreport_interval 3\n'))
        self.assertIn("line 2", error.problem)

    def test_unknown_table(self) -> None:
        """A table of another name is an error that suggests the right one."""
        error = self.error(self.write("a.toml", '[[services]]\ntopic = "agent"\n'))
        self.assertEqual((error.setting, error.remedy), ("[services]", "did you mean [[service]]?"))

    def test_names_of_nova(self) -> None:
        """Nova's name in a TOML file leads to ours."""
        error = self.error(self.write("a.toml", "rpc_thread_pool_size = 3"))
        self.assertEqual(error.remedy, "did you mean rpc_concurrency?")

    def test_unreadable(self) -> None:
        """A file that is missing, binary, or of an unknown kind is named, with what to do."""
        missing = self.error(Path("/nonexistent/a.toml"))
        self.assertEqual((missing.setting, missing.source), ("/nonexistent/a.toml", "configuration files"))
        self.assertIn("No such file", missing.problem)
        self.assertIn("UTF-8", self.error(self.write("a.toml", b"\xff")).problem)
        self.assertIn("UTF-8", self.error(self.write("a.ini", b"\xff")).problem)
        self.assertIn(".toml", self.error(self.write("a.yaml", "")).remedy)


class INITests(SourcesCase):
    """Tests for INI files with Nova's names."""

    def test_names_of_nova(self) -> None:
        """Nova's names and sections are understood."""
        settings = self.settings(
            self.write(
                "nova.conf",
                "[DEFAULT]\nrpc_thread_pool_size = 3\nstate_path = /srv\ncompute_manager = a.b.C\n"
                "periodic_interval_max = none\nrun_external_periodic_tasks = Off\n"
                "[database]\nconnection = postgresql://h/d%%x\n",
            )
        )
        self.assertEqual((settings.rpc_concurrency, settings.state_dir), (3, Path("/srv")))
        self.assertEqual(settings.managers, {"compute": "a.b.C"})
        self.assertIsNone(settings.periodic_interval_max)
        self.assertFalse(settings.run_external_periodic_tasks)
        self.assertEqual(settings.database_url, "postgresql://h/d%%x")

    def test_booleans(self) -> None:
        """true, yes, on, 1 and false, no, off, 0 are booleans, in any case; others are none."""
        for text, value in {"true": True, "YES": True, "on": True, "1": True, "False": False, "no": False}.items():
            self.assertIs(self.settings(self.write("a.ini", f"[DEFAULT]\nlog_json = {text}")).log_json, value)
        self.assertEqual(self.error(self.write("a.ini", "[DEFAULT]\nlog_json = 2")).problem, "is not true or false")

    def test_unknown_names(self) -> None:
        """A name, or a section, that does not exist is an error."""
        self.assertEqual(self.error(self.write("a.ini", "[DEFAULT]\nfoo = 1")).setting, "foo")
        self.assertEqual(self.error(self.write("a.ini", "[database]\nhost = h")).setting, "host")
        self.assertEqual(self.error(self.write("a.ini", "[datbase]\nx = h")).remedy, "did you mean [database]?")

    def test_syntax_errors(self) -> None:
        """A line that is no INI is named by its number, and not shown: it may hold a password."""
        for content, line in {
            "connection = mysql://u:secret@h/d": 1,
            "[database]\nmysql;u;secret@h/d": 2,
            "[database]\nconnection = a\nconnection = mysql://u:secret@h/d": 3,
            "[database]\n[DEFAULT]\n[database]": 3,
        }.items():
            error = self.error(self.write("a.ini", content))
            self.assertIn(f"line {line}", error.problem)
            self.assertNotIn("secret", str(error))


class EnvironmentTests(SourcesCase):
    """Tests for variables."""

    def test_file(self) -> None:
        """A variable that ends with _FILE names a file with the value."""
        file = self.write("secret", "mysql://u:p@h/d\n")
        configuration = load((), {"NOVASVC_DATABASE_URL_FILE": str(file)}, {})
        self.assertEqual(configuration.settings.database_url, "mysql://u:p@h/d")
        self.assertEqual(
            configuration.origins["database_url"], f"file {file}, named by variable NOVASVC_DATABASE_URL_FILE"
        )

    def test_file_and_value(self) -> None:
        """Both the value and its file are one too many."""
        environ = {"NOVASVC_HOST": "h", "NOVASVC_HOST_FILE": "/h"}
        self.assertIn("NOVASVC_HOST is given, too", self.error(environ=environ).problem)

    def test_unreadable_file(self) -> None:
        """A file that cannot be read is an error that names the variable and the file."""
        error = self.error(environ={"NOVASVC_HOST_FILE": "/nonexistent"})
        self.assertEqual((error.setting, error.value), ("NOVASVC_HOST_FILE", "/nonexistent"))
        binary = self.write("secret", b"\xff")
        self.assertIn("UTF-8", self.error(environ={"NOVASVC_HOST_FILE": str(binary)}).problem)

    def test_unknown_variable(self) -> None:
        """A variable of an unknown name is an error; those of other programs are not ours."""
        self.assertEqual(self.error(environ={"NOVASVC_X": "1"}).setting, "NOVASVC_X")
        self.settings(environ={"NOVA_X": "1", "XNOVASVC_X": "1"})

    def test_kubernetes(self) -> None:
        """What Kubernetes puts into a container for a Service named novasvc does no harm."""
        names = ("PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR")
        self.settings(environ={f"NOVASVC_{name}": "tcp://10.0.0.1:80" for name in names})

    def test_state_dir(self) -> None:
        """A user's state lies below the home directory, or where XDG_STATE_HOME says; root's in /var/lib."""
        for user, environ, expected in (
            (0, {"HOME": "/root"}, "/var/lib/novasvc"),
            (1, {"HOME": "/home/u"}, "/home/u/.local/state/novasvc"),
            (1, {"HOME": "/home/u", "XDG_STATE_HOME": "/state"}, "/state/novasvc"),
            (1, {"HOME": "/home/u", "XDG_STATE_HOME": "relative"}, "/home/u/.local/state/novasvc"),
            (1, {}, "/var/lib/novasvc"),
        ):
            self.patch(os, "geteuid", lambda user=user: user)
            self.assertEqual(self.settings(environ=environ).state_dir, Path(expected))


class OptionsTests(SourcesCase):
    """Tests for options."""

    def parse(self, *arguments: str) -> Settings:
        """Parse as twistd does, and load."""

        class Options(usage.Options):  # type: ignore[misc]
            optParameters: ClassVar = [
                [option.name, None, None, option.help] for option in option_table() if not option.flag
            ]
            optFlags: ClassVar = [[option.name, None, option.help] for option in option_table() if option.flag]

        parsed = Options()
        parsed.parseOptions(arguments)
        return load((), {}, parsed).settings

    def test_nothing_given(self) -> None:
        """Options that were not given leave the defaults."""
        self.assertEqual(self.parse(), load((), {}, {}).settings)

    def test_given(self) -> None:
        """An option's value and both flags of a boolean reach the setting."""
        settings = self.parse("--report-interval=5", "--no-migrate", "--fail-fast", "--periodic-fuzzy-delay=0")
        self.assertEqual((settings.report_interval, settings.migrate, settings.fail_fast), (5, False, True))
        self.assertEqual(settings.periodic_fuzzy_delay, 0)

    def test_contradiction(self) -> None:
        """A flag and its contrary exclude each other."""
        error = self.assertRaises(SettingsError, self.parse, "--migrate", "--no-migrate")
        self.assertIn("given, too", str(error))

    def test_python_values(self) -> None:
        """A program may give values of their types, and names with underscores."""
        settings = self.settings(migrate=False, report_interval=5, state_dir=Path("/srv"), log_json=True, host=None)
        self.assertEqual((settings.migrate, settings.report_interval, settings.log_json), (False, 5, True))

    def test_unknown_option(self) -> None:
        """An option that does not exist is an error that suggests one."""
        self.assertEqual(self.error(report_intervl=1).remedy, "did you mean --report-interval?")


class ValuesTests(SourcesCase):
    """Tests for the kinds of values."""

    def test_below_minimum(self) -> None:
        """A number below its minimum says what the minimum is."""
        error = self.error(report_interval="0.5")
        self.assertEqual((error.problem, error.remedy), ("is too small", "give a number of seconds, at least 1, or 0"))

    def test_names(self) -> None:
        """A host with a blank, a slash or a wildcard is refused: it names queues, and rows."""
        for host in ("a b", "a/b", "a*", "x" * 256, ""):
            self.assertIn("letters", self.error(host=host).remedy)

    def test_manager(self) -> None:
        """A manager that could not be imported is refused by its form."""
        for manager in ("Class", "a.b:c:d", "a b.C", "../x.C"):
            self.assertIn("package.module.Class", self.error(manager=manager).remedy)

    def test_transport(self) -> None:
        """A transport's URL has a scheme that is known, and hosts that can be read."""
        for url in ("rabbit://h/", "amqp://u:p@h:1,u:p@[::1]:2/v", "amqps://h", "memory:"):
            self.assertEqual(load((), {}, {"transport_url": url}).settings.transport_url, url)
        self.assertIn("none of amqp://", self.error(transport_url="redis://h/").problem)
        self.assertIn("percent-encoded", self.error(transport_url="amqp://u:se/cret@h/").problem)
        self.assertIn("no scheme", self.error(transport_url="host").problem)

    def test_database(self) -> None:
        """A URL of no database, or of a database in memory, is refused with an example of a right one."""
        for url in (
            "oracle://h/d",
            "/var/lib/x.sqlite",
            "sqlite://",
            "sqlite:///:memory:",
            "sqlite://x.sqlite",
            "mysql://h",
        ):
            self.assertIn("sqlite:////", self.error(database_url=url).remedy)
        for url in ("sqlite:///relative", "sqlite:////a", "postgresql+psycopg://u@h/d", "mariadb://h:3306/d"):
            self.assertEqual(self.settings(database_url=url).database_url, url)

    def test_driver(self) -> None:
        """The only driver of the service group is the database."""
        self.assertEqual(self.error(servicegroup_driver="mc").remedy, 'give "db"')
