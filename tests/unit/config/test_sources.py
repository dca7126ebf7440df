"""Tests for the sources of settings: files, environment, options."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import Settings, load, option_table
from novasvc.errors import ConfigurationError, SettingError


class SourcesCase(SynchronousTestCase):
    """A test that writes files and loads them."""

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file with this name in a new directory."""
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        file = Path(directory.name, name)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def settings(self, *files: Path, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
        """Load the settings from these sources only."""
        return load(files, environ or {}, options).settings

    def error(self, *files: Path, environ: Mapping[str, str] | None = None, **options: Any) -> SettingError:
        """Load a configuration with one error, and return its text."""
        failure = self.assertRaises(ConfigurationError, load, files, environ or {}, options)
        (error,) = failure.errors
        return error


class TOMLTests(SourcesCase):
    """Tests for TOML files."""

    def test_types_are_meant(self) -> None:
        """In TOML, neither a string nor a boolean is a number."""
        for value in ('"10"', "true", "nan", "inf", "1979-05-27", "[1]"):
            with self.subTest(value=value):
                self.assertEqual(
                    self.error(self.write("a.toml", f"report_interval = {value}")).problem, "is not a number"
                )
        self.assertEqual(self.error(self.write("a.toml", "workers = 1.0")).problem, "is not a whole number")
        self.assertEqual(self.error(self.write("a.toml", 'migrate = "no"')).problem, "is not true or false")

    def test_syntax_error(self) -> None:
        """Invalid TOML is reported with the line number."""
        error = self.error(self.write("a.toml", 'host = "h"\nreport_interval 3\n'))
        self.assertIn("line 2", error.problem)

    def test_unknown_table(self) -> None:
        """An unknown table is an error that suggests the right name."""
        error = self.error(self.write("a.toml", '[[services]]\ntopic = "agent"\n'))
        self.assertEqual((error.setting, error.remedy), ("[services]", "did you mean [[service]]?"))

    def test_section_as_table(self) -> None:
        """An INI section in a TOML file is an error that says where its settings belong."""
        for name in ("DEFAULT", "defaults", "database", "databse"):
            error = self.error(self.write("a.toml", f'[{name}]\nhost = "h"\n'))
            self.assertEqual(error.setting, f"[{name}]")
            self.assertEqual(error.remedy, "put the settings above the first table: only INI files have sections")

    def test_names_of_nova(self) -> None:
        """Nova's name in a TOML file is an error that suggests ours."""
        error = self.error(self.write("a.toml", "rpc_thread_pool_size = 3"))
        self.assertEqual(error.remedy, "did you mean rpc_concurrency?")

    def test_too_much(self) -> None:
        """Numbers that are too large, lists that are nested too deep, and NUL are errors like any other."""
        for line, problem in (
            (f"report_interval = 1{'0' * 400}", "is not a number"),
            (f"workers = 1{'0' * 5000}", "a number is too long"),
            (f"host = {'[' * 5000}", "nested too deep"),
            (r'state_dir = "/a\u0000b"', "is not a path"),
        ):
            self.assertIn(problem, self.error(self.write("a.toml", line)).problem)

    def test_unreadable(self) -> None:
        """A missing, binary or unknown file is an error that says what to do."""
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
        """true, yes, on, 1 and false, no, off, 0 are booleans in any case; other words are errors."""
        for text, value in {"true": True, "YES": True, "on": True, "1": True, "False": False, "no": False}.items():
            self.assertIs(self.settings(self.write("a.ini", f"[DEFAULT]\nlog_json = {text}")).log_json, value)
        self.assertEqual(self.error(self.write("a.ini", "[DEFAULT]\nlog_json = 2")).problem, "is not true or false")

    def test_of_other_programs(self) -> None:
        """Unknown options are ignored with one warning for each file, which suggests similar settings."""
        text = (
            "[DEFAULT]\nreport_intervall = 1\nmy_ip = 10.0.0.1\ndebug = true\n[libvirt]\n"
            "cpu_mode = none\nvirt_type=kvm\n"
            "[database]\nmax_pool_size = 5\n[datbase]\nconnection = x\n"
        )
        file = self.write("nova.conf", text)
        configuration = load([file], {}, {})
        self.assertEqual(configuration.settings.report_interval, 10)
        names = (
            "report_intervall (did you mean report_interval?), my_ip, debug, [libvirt], database/max_pool_size, "
            "[datbase] (did you mean [database]?)"
        )
        warning = f"file {file}: ignoring options that are not settings of novasvc: {names}"
        self.assertEqual(configuration.warnings, (warning,))

    def test_names_of_sections(self) -> None:
        """The warning suggests the section that a name resembles, in any case."""
        for written, meant in (
            ("defaults", "DEFAULT"),
            ("Default", "DEFAULT"),
            ("default", "DEFAULT"),
            ("DEFUALT", "DEFAULT"),
            ("datbase", "database"),
            ("oslo_messaging_rabit", "oslo_messaging_rabbit"),
            ("libvirt", None),
            ("api_database", None),
        ):
            (warning,) = load([self.write("a.ini", f"[{written}]\nhost = h\n")], {}, {}).warnings
            hint = f" (did you mean [{meant}]?)" if meant else ""
            section = written if written == "DEFAULT" else written.lower()
            self.assertTrue(warning.endswith(f": [{section}]{hint}"), warning)

    def test_comments_behind_values(self) -> None:
        """A comment after a value becomes part of it, as in oslo.config, with a warning."""
        for value in ('"/a" # mine', "'/a' ; mine", "/a # mine", "/a\t#mine", "/a\n  # mine"):
            form = "wsgi_log_format = %(client_ip)s # %(status_code)s"
            file = self.write("a.ini", f"[DEFAULT]\nstate_path = {value}\n{form}\n")
            configuration = load([file], {}, {})
            self.assertEqual(configuration.settings.state_dir, Path(value.replace("\n  ", "\n")).absolute())
            (warning,) = configuration.warnings
            self.assertIn(
                f"state_path (from file {file}, section DEFAULT): the value includes what looks like a comment", warning
            )
            self.assertNotIn("mine", warning)
        for value in ('"/a"', "/a#2", "/a;1"):
            self.assertEqual(load([self.write("a.ini", f"[DEFAULT]\nstate_path = {value}\n")], {}, {}).warnings, ())
        self.assertEqual(load([], {"NOVASVC_STATE_DIR": "/a # mine"}, {}).warnings, ())

    def test_comments_behind_wrong_values(self) -> None:
        """If the comment makes the value invalid, the error says so."""
        error = self.error(self.write("a.ini", "[DEFAULT]\nreport_interval = 10 # seconds\n"))
        self.assertRegex(
            error.remedy, r"^give a number of seconds, .*; the value includes what looks like a comment after it"
        )

    def test_families_of_other_programs(self) -> None:
        """An invalid `<topic>_manager` or `<api>_listen` is an error only if the settings name that topic or API."""
        text = "[DEFAULT]\nvolume_manager = x\nec2_listen = $my_ip\nec2_workers = many\n"
        file = self.write("nova.conf", text)
        configuration = load([file], {}, {})
        self.assertEqual((configuration.settings.managers, configuration.settings.apis), ({}, {}))
        volume, listen, workers = configuration.warnings
        self.assertIn("ignoring volume_manager = 'x' (from file", volume)
        self.assertIn("(no service or API in these settings is named 'volume')", volume)
        self.assertIn("$my_ip is not an option with a value", listen)
        self.assertIn("ec2_workers", workers)
        self.assertNotIn("volume_manager", configuration.origins)
        for name, value, count in (("topic", "volume", 1), ("binary", "nova-volume", 1), ("enabled_apis", ("ec2",), 2)):
            error = self.assertRaises(ConfigurationError, load, [file], {}, {name.replace("_", "-"): value})
            self.assertEqual(len(error.errors), count)
        tables = self.write("a.toml", '[[service]]\nbinary = "nova-volume"\n')
        self.assertIn("volume_manager = 'x'", str(self.assertRaises(ConfigurationError, load, [tables, file], {}, {})))

    def test_syntax_errors(self) -> None:
        """Invalid INI is reported with the line number, without the text, which may contain a password."""
        for content, line in {
            "connection = mysql://u:secret@h/d": 1,
            "[database]\nmysql;u;secret@h/d": 2,
            "[database\nconnection = mysql://u:secret@h/d": 1,
            "[]\nconnection = mysql://u:secret@h/d": 1,
            "[database]\n\n  secret": 3,
            "[database]\n= secret": 2,
        }.items():
            error = self.error(self.write("a.ini", content))
            self.assertIn(f"line {line}", error.problem)
            self.assertNotIn("secret", str(error))

    def test_quotes(self) -> None:
        """Quotes around a value are removed; those within it stay."""
        text = '[DEFAULT]\nstate_path = "/srv/x"\nhost=\'h1\'\nwsgi_log_format = %(client_ip)s "%(request_line)s"\n'
        settings = self.settings(self.write("a.ini", text))
        self.assertEqual((settings.state_dir, settings.host), (Path("/srv/x"), "h1"))
        self.assertEqual(settings.wsgi_log_format, '%(client_ip)s "%(request_line)s"')

    def test_repeated(self) -> None:
        """The last of several values counts, across repeated sections and under either name."""
        text = "[DEFAULT]\nhost = a\nstate_path = /a\n[DataBase]\n[DEFAULT]\nstate_dir = /b\nhost: c\n"
        settings = self.settings(self.write("a.ini", text))
        self.assertEqual((settings.host, settings.state_dir), ("c", Path("/b")))

    def test_sections_in_any_case(self) -> None:
        """Section names are case-insensitive, except for DEFAULT."""
        settings = self.settings(self.write("a.ini", "[DATABASE]\nconnection = sqlite:////a\n[default]\nhost = x\n"))
        self.assertEqual(settings.database_url, "sqlite:////a")
        self.assertNotEqual(settings.host, "x")

    def test_byte_order_mark(self) -> None:
        """A byte order mark is ignored."""
        self.assertEqual(self.settings(self.write("a.ini", b"\xef\xbb\xbf[DEFAULT]\nhost = h\n")).host, "h")

    def test_lists(self) -> None:
        """A list may have a trailing comma, and continue on the next line."""
        settings = self.settings(self.write("a.ini", "[DEFAULT]\nenabled_apis = osapi_compute,\n  metadata,\n"))
        self.assertEqual(settings.enabled_apis, ("osapi_compute", "metadata"))


class SubstitutionTests(SourcesCase):
    """Tests for $name in the values of INI files."""

    def url(self, text: str, **options: Any) -> str:
        """Return the database_url that such a file sets."""
        return self.settings(self.write("a.ini", text), **options).database_url

    def test_names(self) -> None:
        """$name and ${name} are replaced; $$ and \\$ are a dollar sign; a $ before no name stays."""
        head = "[DEFAULT]\nstate_path = /srv\n[database]\nconnection = "
        for text, expected in (
            ("sqlite:///$state_path/x", "sqlite:////srv/x"),
            ("sqlite:///${state_path}x", "sqlite:////srvx"),
            ("sqlite:////a$$b\\$c$1", "sqlite:////a$b$c$1"),
        ):
            self.assertEqual(self.url(head + text), expected)

    def test_whatever_source(self) -> None:
        """A reference yields the final value, from an option, another file or the default."""
        text = "[DEFAULT]\nstate_path = /srv\n[database]\nconnection = sqlite:///$state_path/$control_exchange"
        self.assertEqual(self.url(text, state_dir="/opt"), "sqlite:////opt/nova")
        toml = self.write("a.toml", 'state_dir = "/toml"')
        ini = self.write("a.ini", "[database]\nconnection = sqlite:///$state_dir/x")
        self.assertEqual(self.settings(toml, ini).database_url, "sqlite:////toml/x")
        self.assertEqual(self.settings(ini, environ={"HOME": "/h"}).database_url[-2:], "/x")

    def test_values_of_other_programs(self) -> None:
        """A reference may name a foreign option, of its own section first, whose references are replaced in turn."""
        text = (
            "[DEFAULT]\nmy_ip = 10.0.0.1\nport = 1\npeer = $my_ip:${x.port}\ntransport_url = rabbit://u:p@$peer/\n"
            "osapi_compute_listen = $my_ip\n[x]\nport = 7\n"
        )
        settings = self.settings(self.write("a.ini", text))
        self.assertEqual(settings.transport_url, "rabbit://u:p@10.0.0.1:7/")
        self.assertEqual(settings.api_named("osapi_compute").listen, "10.0.0.1")

    def test_typed(self) -> None:
        """Numbers, booleans and None are substituted as oslo.config does."""
        text = (
            "[DEFAULT]\nreport_interval = 5\n"
            "control_exchange = x$report_interval${wsgi.keep_alive}${periodic_interval_max}y\n"
            "[wsgi]\nkeep_alive = off\n"
        )
        self.assertEqual(self.settings(self.write("a.ini", text)).control_exchange, "x5Falsey")

    def test_unknown_name(self) -> None:
        """An undefined reference is an error that names it, and says how to write a dollar sign."""
        error = self.error(self.write("a.ini", "[DEFAULT]\nstate_path = /srv/$nothing/x"))
        self.assertEqual((error.setting, error.value), ("state_path", "'/srv/$nothing/x'"))
        self.assertIn("$nothing is not an option", error.problem)
        self.assertIn("$$", error.remedy)

    def test_password(self) -> None:
        """An undefined reference in a password is an error that does not show it."""
        error = self.error(self.write("a.ini", "[database]\nconnection = mysql://u:pa$s3cret@h/d"))
        self.assertNotIn("s3cret", str(error))
        self.assertIn("$$", error.remedy)

    def test_circle(self) -> None:
        """A circular reference is an error that shows the circle."""
        file = self.write("a.ini", "[DEFAULT]\nhost = $x\nx = ${y.z}\n[y]\nz = $host\n")
        self.assertIn("DEFAULT/host -> DEFAULT/x -> y/z -> DEFAULT/host", self.error(file).problem)

    def test_chain(self) -> None:
        """References that follow each other without end, or whose text doubles each time, are an error."""
        chain = "".join(f"a{number} = $a{number + 1}\n" for number in range(2000))
        file = self.write("a.ini", f"[DEFAULT]\nhost = $a0\n{chain}")
        self.assertIn("more than 30 references", self.error(file).problem)
        doubling = "".join(f"a{number} = $a{number + 1}$a{number + 1}\n" for number in range(25))
        for end, problem in (("x", "more than 100,000 characters"), ("", "is not a name")):
            text = f"[DEFAULT]\nhost = $a0\n{doubling}a25 = {end}\n"
            self.assertIn(problem, self.error(self.write("a.ini", text)).problem)

    def test_default_of_wrong_value(self) -> None:
        """A reference to a default that a wrong value would be part of adds nothing to the error in that value."""
        reference = self.write("a.ini", "[DEFAULT]\ntempdir = /tmp/$host\n")
        self.assertEqual(self.error(self.write("a.toml", "binary = 5"), reference).setting, "binary")
        self.assertEqual(self.error(reference, environ={"NOVASVC_STATE_DIR": ""}).setting, "NOVASVC_STATE_DIR")

    def test_elsewhere(self) -> None:
        """In TOML, variables and options nothing is substituted."""
        toml = self.write("a.toml", 'state_dir = "/srv/$host"')
        self.assertEqual(self.settings(toml).state_dir, Path("/srv/$host"))
        self.assertEqual(self.settings(environ={"NOVASVC_STATE_DIR": "/srv/$host"}).state_dir, Path("/srv/$host"))


class QuotesTests(SourcesCase):
    """Tests for values in quotes."""

    def test_refused(self) -> None:
        """Nested quotes, and quotes where none are removed, are an error."""
        file = self.write("a.toml", "state_dir = '\"/srv\"'")
        secret = self.write("secret", "'sqlite:////srv'\n")
        for error in (
            self.error(file),
            self.error(environ={"NOVASVC_STATE_DIR": '"/srv"'}),
            self.error(environ={"NOVASVC_DATABASE_URL_FILE": str(secret)}),
            self.error(state_dir="'/srv'"),
        ):
            self.assertIn("is enclosed in quotes", error.problem)
            self.assertIn("remove the inner quotes", error.remedy)

    def test_meant(self) -> None:
        """A log format may begin and end with quotes."""
        file = self.write("a.toml", "wsgi_log_format = '\"%(client_ip)s\"'")
        self.assertEqual(self.settings(file).wsgi_log_format, '"%(client_ip)s"')


class EnvironmentTests(SourcesCase):
    """Tests for variables."""

    def test_file(self) -> None:
        """A variable that ends in _FILE names a file with the value."""
        file = self.write("secret", "mysql://u:p@h/d\n")
        configuration = load((), {"NOVASVC_DATABASE_URL_FILE": str(file)}, {})
        self.assertEqual(configuration.settings.database_url, "mysql://u:p@h/d")
        self.assertEqual(
            configuration.origins["database_url"], f"file {file}, named by variable NOVASVC_DATABASE_URL_FILE"
        )

    def test_file_and_value(self) -> None:
        """A value and its file together are an error."""
        environ = {"NOVASVC_HOST": "h", "NOVASVC_HOST_FILE": "/h"}
        self.assertIn("NOVASVC_HOST is also set", self.error(environ=environ).problem)

    def test_unreadable_file(self) -> None:
        """A file that cannot be read is an error that names the variable and the file."""
        error = self.error(environ={"NOVASVC_HOST_FILE": "/nonexistent"})
        self.assertEqual((error.setting, error.value), ("NOVASVC_HOST_FILE", "/nonexistent"))
        binary = self.write("secret", b"\xff")
        self.assertIn("UTF-8", self.error(environ={"NOVASVC_HOST_FILE": str(binary)}).problem)

    def test_secret_instead_of_file(self) -> None:
        """A secret in a variable for a file is masked in errors, also if the setting itself is not secret."""
        for name, value in (("DATABASE_URL", "sqlite:////d"), ("HOST", "h")):
            environ = {f"NOVASVC_{name}_FILE": "mysql://u:s3cret@h/d"}
            self.assertIn("mysql://u:***@h/d", str(self.error(environ=environ)))
            self.assertIn("mysql://u:***@h/d", str(self.error(environ={**environ, f"NOVASVC_{name}": value})))

    def test_unknown_variable(self) -> None:
        """An unknown NOVASVC_ variable is an error; other variables are ignored."""
        self.assertEqual(self.error(environ={"NOVASVC_X": "1"}).setting, "NOVASVC_X")
        self.settings(environ={"NOVA_X": "1", "XNOVASVC_X": "1"})

    def test_kubernetes(self) -> None:
        """Kubernetes' variables for Services named novasvc and novasvc-api are ignored; misspelt settings are not."""
        names = ("PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR")
        for prefix in ("NOVASVC_", "NOVASVC_API_"):
            self.settings(environ={f"{prefix}{name}": "tcp://10.0.0.1:80" for name in names})
        self.assertEqual(self.settings(environ={"NOVASVC_API_LISTEN_PORT": "80"}).api_listen_port, 80)
        self.assertIn("did you mean", self.error(environ={"NOVASVC_API_LISTN_PORT": "80"}).remedy)

    def test_state_dir(self) -> None:
        """state_dir is in the home directory or XDG_STATE_HOME; for root it is in /var/lib."""
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
        """Options that are not given leave the defaults."""
        self.assertEqual(self.parse(), load((), {}, {}).settings)

    def test_given(self) -> None:
        """Options with values, and both flags of a boolean, set their settings."""
        settings = self.parse("--report-interval=5", "--no-migrate", "--fail-fast", "--periodic-fuzzy-delay=0")
        self.assertEqual((settings.report_interval, settings.migrate, settings.fail_fast), (5, False, True))
        self.assertEqual(settings.periodic_fuzzy_delay, 0)

    def test_contradiction(self) -> None:
        """A flag and its --no- flag together are an error."""
        error = self.assertRaises(ConfigurationError, self.parse, "--migrate", "--no-migrate")
        self.assertIn("also given", str(error))

    def test_python_values(self) -> None:
        """Options may have typed values, and names with underscores."""
        settings = self.settings(migrate=False, report_interval=5, state_dir=Path("/srv"), log_json=True, host=None)
        self.assertEqual((settings.migrate, settings.report_interval, settings.log_json), (False, 5, True))

    def test_unknown_option(self) -> None:
        """An unknown option is an error that suggests a similar one."""
        self.assertEqual(self.error(report_intervl=1).remedy, "did you mean --report-interval?")


class ValuesTests(SourcesCase):
    """Tests for the value types."""

    def test_below_minimum(self) -> None:
        """A number below its minimum is an error that names the minimum."""
        error = self.error(report_interval="0.5")
        self.assertEqual((error.problem, error.remedy), ("is too small", "give a number of seconds, at least 1, or 0"))

    def test_names(self) -> None:
        """A host with a space, slash or wildcard is an error, because it names queues and rows."""
        for host in ("a b", "a/b", "a*", "x" * 256, ""):
            self.assertIn("letters", self.error(host=host).remedy)

    def test_manager(self) -> None:
        """A malformed class name is an error."""
        for manager in ("Class", "a.b:c:d", "a b.C", "../x.C"):
            self.assertIn("package.module.Class", self.error(manager=manager).remedy)

    def test_transport(self) -> None:
        """A transport URL needs a known scheme and valid hosts."""
        for url in ("rabbit://h/", "amqp://u:p@h:1,u:p@[::1]:2/v", "amqps://h", "memory:"):
            self.assertEqual(load((), {}, {"transport_url": url}).settings.transport_url, url)
        for url in ("memory", "Memory:", "MEMORY://"):
            settings = self.settings(transport_url=url)
            self.assertEqual((settings.transport_url, settings.uses_broker), ("memory:", False))
        self.assertIn("not one of amqp://", self.error(transport_url="redis://h/").problem)
        self.assertIn("percent-encoded", self.error(transport_url="amqp://u:se/cret@h/").problem)
        self.assertIn("no scheme", self.error(transport_url="host").problem)

    def test_database(self) -> None:
        """An invalid database URL, or one in memory, is an error with an example."""
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
        """The only servicegroup_driver is db."""
        self.assertEqual(self.error(servicegroup_driver="mc").remedy, 'give "db"')
