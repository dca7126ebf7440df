"""Tests for the command as a program: exit status, messages, and commands without a database."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unittest.mock import patch

import sqlalchemy.dialects.postgresql  # noqa: F401 - imported while a driver is hidden, it would be made twice
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, __version__
from novasvc.cli.program import main, run
from novasvc.registry.sql import migrate


class Ran(NamedTuple):
    """The exit status and output of the command."""

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
        # A user without a home directory, but root, has no state directory of its own.
        self.patch(os, "environ", {"HOME": str(self.directory), **(environ or {})})
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = run(arguments)
        return Ran(status, out.getvalue(), err.getvalue())


class RunTests(ProgramCase):
    """Tests for novasvc.cli.program.run."""

    def test_not_unicode(self) -> None:
        """An argument with an octet that is not UTF-8 is a usage error, which shows the octet."""
        url = f"sqlite:///{self.directory}/novasvc.sqlite"
        migrate.create(url)
        for arguments in (["list", "--host", "h\udcff"], ["show", "h\udcff"]):
            ran = self.run_program("--database-url", url, "service", *arguments)
            self.assertEqual(ran, (2, "", "novasvc: an argument is not valid UTF-8: it has '\\udcff'\n"))

    def test_version(self) -> None:
        """--version prints the version."""
        self.assertEqual(self.run_program("--version"), (0, f"novasvc {__version__}\n", ""))

    def test_closed_streams(self) -> None:
        """A command whose standard streams the shell has closed does its work, and succeeds."""
        url = f"sqlite:///{self.directory}/novasvc.sqlite"
        migrate.create(url)
        for arguments in (["--version"], ["--database-url", url, "service", "list"]):
            for name in ("stdin", "stdout", "stderr"):
                self.patch(sys, name, None)
            self.patch(sys, "argv", ["novasvc", *arguments])
            status = self.assertRaises(SystemExit, main).code
            for stream in (sys.stdin, sys.stdout, sys.stderr):
                stream.close()
            self.assertEqual(status, 0)

    def test_help(self) -> None:
        """--help lists the commands; no command at all is an error with the same page."""
        asked, not_asked = self.run_program("--help"), self.run_program()
        self.assertEqual((asked.status, not_asked.status), (0, 2))
        for page in (asked.stdout, not_asked.stderr):
            for name in ("service", "workers", "drain", "reload", "dump", "db", "broker", "config", "completion"):
                self.assertIn(f"\n  {name} ", page)

    def test_usage_errors(self) -> None:
        """A usage error is one line that names --help, with status 2."""
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
            self.assertRegex(ran.stderr, rf"^novasvc: .*`{command} --help`\.\n$")

    def test_wrong_settings(self) -> None:
        """Invalid settings are reported without a traceback, passwords masked."""
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
        """With [[service]] tables their services are shown; inherited values keep their origin."""
        file = self.write("a.toml", "report_interval = 5", "[[service]]", 'topic = "agent"', "options = {password = 1}")
        rows = json.loads(self.run_program("--config", file, "config", "show", "-f", "json").stdout)
        values = {row["Setting"]: (row["Value"], row["Origin"]) for row in rows}
        self.assertNotIn("topic", values)
        self.assertEqual(values["service[0].topic"], ("agent", f"file {file}, table service[0]"))
        self.assertEqual(values["service[0].report_interval"], (5.0, f"file {file}"))
        self.assertEqual(values["service[0].options"][0], {"password": "***"})

    def test_show_files(self) -> None:
        """`show` takes files as `check` does: as arguments, by --config, and by --config in front of `config`."""
        one, two = self.write("a.toml", "report_interval = 5"), self.write("b.toml", "report_interval = 6")
        for arguments in (
            ("config", "show", one, two),
            ("config", "show", "--config", one, two),
            ("config", "show", "--config", one, "--config", two),
            ("--config", one, "config", "show", two),
        ):
            ran = self.run_program(*arguments, "-f", "value")
            self.assertIn(f"report_interval 6 file {two}\n", ran.stdout)
            ran = self.run_program(*("check" if word == "show" else word for word in arguments), "--running")
            self.assertIn(f"{two} (1 service)\n", ran.stdout)

    def test_show_secrets(self) -> None:
        """Passwords are masked, in every format."""
        for output_format in ("table", "json", "csv", "value"):
            url = "postgresql://u:pAssw0rd@h/d"
            ran = self.run_program("--database-url", url, "config", "show", "-f", output_format)
            self.assertIn("u:***@h", ran.stdout)
            self.assertNotIn("pAssw0rd", ran.stdout)

    def test_check(self) -> None:
        """Valid files are ok."""
        file = self.write("a.toml", "report_interval = 5")
        ran = self.run_program("config", "check", file, environ={"NOVASVC_WORKERS": "0"})
        self.assertEqual(ran, (0, f"ok: {file} (1 service)\n", ""))

    def test_check_as_a_node_reads(self) -> None:
        """With a file, variables and options count as for a node started with `--config FILE`."""
        file = self.write("a.toml", "report_interval = 5")
        other = self.write("b.toml", "report_interval = 0.5")
        ran = self.run_program("config", "check", file, environ={"NOVASVC_STATE_DIR": f"{file}/state"})
        self.assertEqual(ran.status, 1)
        self.assertIn(f"{file} is not a directory; set state_dir to another directory", ran.stderr)
        ran = self.run_program("config", "check", file, environ={"NOVASVC_WORKERS": "-1"})
        self.assertIn("variable NOVASVC_WORKERS", ran.stderr)
        ran = self.run_program("--state-dir", f"{file}/state", "config", "check", file)
        self.assertIn(f"{file} is not a directory", ran.stderr)
        self.assertEqual(self.run_program("config", "check", file, environ={"NOVASVC_CONFIG": other}).status, 0)
        self.assertEqual(self.run_program("--config", other, "config", "check", self.write("c.toml")).status, 1)

    def test_check_errors(self) -> None:
        """All errors of all files are reported together."""
        toml = self.write("a.toml", "report_interval = 0.5")
        ini = self.write("a.ini", "[DEFAULT]", "workers = x")
        ran = self.run_program("config", "check", toml, ini)
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        self.assertIn("2 errors:\n  - report_interval", ran.stderr)

    def test_check_here(self) -> None:
        """Without files, the default settings of this environment are checked."""
        ran = self.run_program("config", "check", environ={"NOVASVC_WORKERS": "-1"})
        self.assertEqual(ran.status, 1)
        self.assertIn("variable NOVASVC_WORKERS", ran.stderr)


class PreflightTests(ProgramCase):
    """Tests for `novasvc config check`: valid settings that would fail a start on this host."""

    def check(self, *lines: str, arguments: Sequence[str] = (), name: str = "a.toml") -> Ran:
        """Check a file, with state_dir in the test's directory."""
        state = f'state_dir = "{self.directory}/state"'
        return self.run_program("config", "check", *arguments, self.write(name, state, *lines))

    def problem(self, *lines: str) -> str:
        """Check a file with one problem, and return its message."""
        before = sorted(self.directory.rglob("*"))
        ran = self.check(*lines)
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        self.assertRegex(ran.stderr, r"^novasvc: a start would fail: [^\n]+\n$")
        made = set(self.directory.rglob("*")) - {*before, self.directory / "a.toml"}
        self.assertEqual(made, set(), "a check makes nothing")
        return ran.stderr

    def test_nothing_is_made(self) -> None:
        """Valid settings are ok; nothing is started, and no file is created."""
        self.assertEqual(self.check("api = true", "api_listen_port = 0").status, 0)
        self.assertEqual([path.name for path in self.directory.iterdir()], ["a.toml"])

    def test_managers(self) -> None:
        """A manager that cannot be imported is named, with the reason."""
        self.assertIn("there is no module 'nosuch'", self.problem('manager = "nosuch.Manager"'))
        self.assertIn("novasvc.host_agent has no 'Agent'", self.problem('manager = "novasvc.host_agent.Agent"'))
        self.assertIn("it does not provide IManager", self.problem('manager = "pathlib.Path"'))

    def test_options(self) -> None:
        """Unknown and missing options of a constructor are named with its signature; no manager is made."""
        table = ("[[service]]", 'topic = "x"', f'manager = "{__name__}.Choosy"')
        with patch.dict(sys.modules, {__name__: sys.modules[__name__]}):
            self.assertIn("missing a required argument: 'disks'", self.problem(*table))
            self.assertIn(
                "unexpected keyword argument 'path'", self.problem(*table, "options = { disks = 1, path = 2 }")
            )
            self.assertIn(
                "takes (host, disks, fast=False), but was given (host, slow)",
                self.problem(*table, "options = { slow = true }"),
            )
            self.assertEqual(self.check(*table, "options = { disks = 1, fast = true }").status, 0)

    def test_several(self) -> None:
        """All problems and warnings are reported together."""
        file = self.write(
            "nova.conf",
            "[DEFAULT]",
            f"state_path = {self.directory}",
            "my_ip = 10.0.0.1",
            "enabled_apis = metadata",
            "metadata_listen_port = 0",
            f"tempdir = {self.directory}/none",
            "[wsgi]",
            f"api_paste_config = {self.directory}/paste.ini",
        )
        ran = self.run_program("config", "check", file)
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        self.assertRegex(ran.stderr, r"^novasvc: file .*nova.conf: ignoring options that are not .*: my_ip\n")
        self.assertIn("my_ip\nnovasvc: a start would fail:\n  - ", ran.stderr)
        self.assertIn(f"\n  - temporary directory '{self.directory}/none': no such directory; create it", ran.stderr)
        self.assertRegex(ran.stderr, r"\n  - .*metadata.*paste.ini.*cannot be read: No such file")

    def also(self, *lines: str) -> list[str]:
        """Check a file with errors; return the further problems."""
        ran = self.check(*lines)
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        errors, _, also = ran.stderr.partition("novasvc: a start would also fail:")
        self.assertRegex(errors, r"^novasvc: the configuration has ")
        return [line.removeprefix("  - ").strip() for line in also.splitlines() if line.strip()]

    def test_beside_errors(self) -> None:
        """Invalid values do not hide problems of managers, files and addresses."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            said = self.also(
                'report_intervall = "soon"',
                "rpc_concurrency = -1",
                "api = true",
                f"api_listen_port = {taken.getsockname()[1]}",
                'transport_url = "amqps://h"',
                f'rabbit_ssl_ca_file = "{self.directory}/ca"',
                "[[service]]",
                'topic = "x"',
                'manager = "nosuch.Manager"',
                "report_interval = 0.1",
                "[[service]]",
                'topic = "y"',
                'manager = "novasvc.host_agent.Agent"',
            )
        for part, line in zip(
            ("'nosuch'", "has no 'Agent'", "rabbit_ssl_ca_file", "already in use"), said, strict=True
        ):
            self.assertIn(part, line)

    def test_beside_wrong_names(self) -> None:
        """The manager of a table with an unknown key is checked, with its valid options."""
        table = ("[[service]]", 'topic = "x"', f'manager = "{__name__}.Choosy"')
        (said,) = self.also(*table, "hosst = 1", "options = { fast = true }")
        self.assertIn("missing a required argument: 'disks'", said)
        self.assertEqual(self.also(*table, 'options = { disks = 1, topic = "x" }'), [])

    def test_beside_what_is_unsure(self) -> None:
        """Checks that depend on an invalid value are skipped; after an unreadable file, all are."""
        file = self.write("file")
        for wrong in (
            ["api = true", "api_listen_port = 99999999"],
            ["tempdir = 1"],
            ["[[service]]", 'topic = "x"', "manager = 1"],
            ["[[service]]", 'topic = "x"', f'manager = "{__name__}.Choosy"', "options = 1"],
        ):
            self.assertEqual(self.also(*wrong), [])
        for unreadable in (self.write("b.toml", "host ="), str(self.directory / "none.toml"), self.write("b.yaml")):
            ran = self.run_program("--state-dir", f"{file}/state", "config", "check", unreadable)
            self.assertEqual(ran.status, 1)
            self.assertNotIn("a start would", ran.stderr)
        single = self.write("c.toml", "[service]", 'manager = "nosuch.Manager"')
        self.assertNotIn("a start would", self.run_program("config", "check", single).stderr)

    def test_files(self) -> None:
        """Unreadable certificates and token files, of API and broker, are named with their settings."""
        missing = [f"{self.directory}/{name}" for name in ("ca", "cert", "key")]
        secure = ("api = true", "api_listen_port = 0", "api_use_ssl = true")
        files = (f'ssl_cert_file = "{missing[1]}"', f'ssl_key_file = "{missing[2]}"')
        self.assertIn(f"ssl_cert_file = '{missing[1]}'", self.problem(*secure, *files))
        self.assertIn("api_token_file", self.problem(*secure[:2], f'api_token_file = "{missing[0]}"'))
        broker = ('transport_url = "amqps://h"', f'rabbit_ssl_ca_file = "{missing[0]}"')
        self.assertIn(f"rabbit_ssl_ca_file = {missing[0]}", self.problem(*broker))
        # Files that a start would not read, are not looked for.
        self.assertEqual(self.check(*files).status, 0)

    def test_ports(self) -> None:
        """An address in use is named; with --running it is not checked."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            lines = ("api = true", f"api_listen_port = {port}")
            self.assertIn(
                f"cannot listen on 127.0.0.1:{port}: Address already in use; end the process", self.problem(*lines)
            )
            self.assertEqual(self.check(*lines, arguments=["--running"]).status, 0)
        self.assertEqual(self.check(*lines).status, 0)

    def test_port_of_two(self) -> None:
        """Two APIs with the same address are named."""
        paste = self.write("paste.ini", "[app:metadata]", "paste.app_factory = x:y")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ports = (f"api_listen_port = {port}", f"metadata_listen_port = {port}")
        said = self.problem("api = true", 'enabled_apis = ["metadata"]', f'api_paste_config = "{paste}"', *ports)
        self.assertIn("both api and metadata are configured to listen there", said)

    def test_port_of_wildcard(self) -> None:
        """Two APIs conflict if the wildcard address of one includes the other's."""
        paste = self.write("paste.ini", "[app:metadata]", "paste.app_factory = novasvc.testing:memory_runtime")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        common = ("api = true", 'enabled_apis = ["metadata"]', f'api_paste_config = "{paste}"')
        ports = (f"api_listen_port = {port}", f"metadata_listen_port = {port}")

        def listening(api: str, metadata: str) -> tuple[str, ...]:
            return (*common, *ports, f'api_listen = "{api}"', f'metadata_listen = "{metadata}"')

        for api, metadata in (("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "::"), ("::1", "::"), ("localhost", "127.0.0.1")):
            self.assertIn(
                "both api and metadata are configured to listen there", self.problem(*listening(api, metadata))
            )
        said = self.problem(*listening("127.0.0.1", "0.0.0.0"))
        self.assertIn(f"cannot listen on 0.0.0.0:{port}: both", said)
        self.assertIn(f"there, api on 127.0.0.1:{port}; give one of them another port", said)
        for api, metadata in (("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1"), ("::1", "0.0.0.0")):
            self.assertEqual(self.check(*listening(api, metadata)).stderr, "")

    def test_directories_in_use(self) -> None:
        """Directories that these settings do not use are not checked."""
        file = self.write("file")
        elsewhere = (f'state_dir = "{file}/state"', f'database_url = "sqlite:///{self.directory}/x.sqlite"')

        def said(*lines: str) -> str:
            return self.run_program("config", "check", self.write("a.toml", *lines)).stderr

        self.assertEqual(said(*elsewhere), "")
        self.assertEqual(said(elsewhere[0], "db_allowed = false", 'transport_url = "amqp://h"'), "")
        self.assertEqual(said(*elsewhere, "service = []", "api = true", "api_listen_port = 0").count("state_dir"), 1)
        self.assertIn("state_dir", said(elsewhere[0]))
        temporary = f'tempdir = "{self.directory}/none"'
        self.assertIn("temporary directory", said(*elsewhere, temporary))
        self.assertEqual(said(*elsewhere, temporary, "service = []"), "")

    def test_control_socket(self) -> None:
        """A path that is too long for a socket is named, if there is a supervisor."""
        long = f'control_socket = "{self.directory / ("x" * 100)}"'
        self.assertIn("exceeds the maximum for a unix socket, 107", self.problem(long, "workers = 1"))
        self.assertEqual(self.check(long).status, 0)

    def test_directories(self) -> None:
        """A missing directory, and a file in its place, are named."""
        file = self.write("file")
        said = self.run_program("config", "check", self.write("a.toml", f'state_dir = "{file}/state"')).stderr
        self.assertIn(f"{file} is not a directory; set state_dir to another directory", said)
        self.assertIn("is a directory", self.problem(f'database_url = "sqlite:///{self.directory}"'))
        self.assertIn(
            "no such directory; create it, or set database_url",
            self.problem(f'database_url = "sqlite:///{self.directory}/a/b"'),
        )

    def test_driver(self) -> None:
        """A missing database driver is named with the extra to install."""
        with patch.dict(sys.modules, {"psycopg": None}):
            self.assertIn("pip install 'novasvc[postgresql]'", self.problem('database_url = "postgresql://h/d"'))


class Choosy(Manager):
    """A manager that must not be instantiated."""

    def __init__(self, host: str, disks: object, *, fast: bool = False) -> None:
        raise AssertionError("a check makes no manager")


class CompletionTests(ProgramCase):
    """Tests for `novasvc completion`."""

    def test_scripts(self) -> None:
        """Each shell gets a completion script for novasvc."""
        for shell in ("bash", "zsh", "fish"):
            self.assertIn("_NOVASVC_COMPLETE", self.run_program("completion", shell).stdout)
