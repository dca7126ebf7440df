"""Tests for loading: precedence of the sources, services, rules."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import Configuration, ServiceSettings, Settings, load
from novasvc.errors import ConfigurationError, SettingError


class SettingsCase(SynchronousTestCase):
    """A test that writes files and loads them."""

    def write(self, name: str, *lines: str) -> Path:
        """Write a file with this name in a new directory."""
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        file = Path(directory.name, name)
        file.write_text("\n".join(lines), encoding="utf-8")
        return file

    def load(
        self, *files: Path, environ: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
    ) -> Configuration:
        """Load the settings from these sources only."""
        return load(files, environ or {}, options or {})

    def errors(
        self, *files: Path, environ: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
    ) -> list[SettingError]:
        """Load an invalid configuration, and return its errors."""
        error = self.assertRaises(ConfigurationError, self.load, *files, environ=environ, options=options)
        return list(error.errors)

    def error(self, *files: Path, **sources: Any) -> SettingError:
        """Load a configuration with one error, and return its text."""
        (error,) = self.errors(*files, **sources)
        return error


class PrecedenceTests(SettingsCase):
    """Tests for the order of the sources."""

    def test_defaults(self) -> None:
        """Without sources each setting has its default, and the origin "default"."""
        configuration = self.load()
        self.assertEqual(configuration.settings.report_interval, 10)
        self.assertEqual(configuration.settings.service_down_time, 60)
        self.assertEqual(set(configuration.origins.values()), {"default"})

    def test_each_source_beats_the_one_before(self) -> None:
        """In the order default, TOML, INI, environment, options, a later source wins."""
        toml = self.write("a.toml", "report_interval = 1", 'host = "toml"', "workers = 1", "rpc_concurrency = 2")
        ini = self.write("a.ini", "[DEFAULT]", "report_interval = 2", "host = ini", "rpc_concurrency = 3")
        environ = {"NOVASVC_HOST": "environment", "NOVASVC_REPORT_INTERVAL": "3"}
        configuration = self.load(ini, toml, environ=environ, options={"report-interval": "4"})
        settings, origins = configuration.settings, configuration.origins
        self.assertEqual(
            (settings.workers, settings.rpc_concurrency, settings.host, settings.report_interval),
            (1, 3, "environment", 4),
        )
        self.assertEqual(
            [origins[name] for name in ("workers", "rpc_concurrency", "host", "report_interval", "migrate")],
            [
                f"file {toml}",
                f"file {ini}, section DEFAULT",
                "variable NOVASVC_HOST",
                "option --report-interval",
                "default",
            ],
        )

    def test_later_file_wins(self) -> None:
        """Of two files of one format the later one wins."""
        first = self.write("a.toml", 'host = "first"', "report_interval = 3")
        second = self.write("b.toml", 'host = "second"')
        settings = self.load(first, second).settings
        self.assertEqual((settings.host, settings.report_interval), ("second", 3))

    def test_files_of_the_environment(self) -> None:
        """NOVASVC_CONFIG names the files if no others are given."""
        one, two, three = (self.write(f"{name}.toml", f'host = "{name}"') for name in ("one", "two", "three"))
        environ = {"NOVASVC_CONFIG": f"{one}:{two}"}
        self.assertEqual(self.load(environ=environ).settings.host, "two")
        self.assertEqual(self.load(three, environ=environ).settings.host, "three")

    def test_overridden_value_may_be_wrong(self) -> None:
        """An invalid value that another source overrides is no error."""
        toml = self.write("a.toml", "workers = 0")
        self.assertEqual(self.load(toml, options={"workers": 1}).settings.workers, 1)

    def test_database_follows_state_dir(self) -> None:
        """The SQLite file is in the state directory by default."""
        settings = self.load(options={"state-dir": "/srv/state"}).settings
        self.assertEqual(settings.database_url, "sqlite:////srv/state/novasvc.sqlite")


class ServicesTests(SettingsCase):
    """Tests for [[service]] tables and the single service."""

    def test_only_service(self) -> None:
        """Without tables there is one service: the host agent."""
        settings = self.load(options={"host": "h1"}).settings
        expected = ServiceSettings(
            host="h1", binary="novasvc-agent", topic="agent", manager="novasvc.host_agent.HostAgent"
        )
        self.assertEqual(settings.services, (expected,))

    def test_only_service_from_options(self) -> None:
        """The topic follows the binary, and the manager follows the topic."""
        options = {"binary": "nova-compute", "compute-manager": "example:Compute"}
        (service,) = self.load(options=options).settings.services
        self.assertEqual((service.topic, service.manager), ("compute", "example:Compute"))

    def test_tables(self) -> None:
        """Each table is a service, and inherits other values from the top level."""
        toml = self.write(
            "a.toml",
            'host = "h1"',
            "report_interval = 7",
            'compute_manager = "example.Compute"',
            "[[service]]",
            'binary = "nova-compute"',
            "[service.options]",
            'disks = ["sda"]',
            "[[service]]",
            'topic = "agent"',
            'host = "h2"',
            "report_interval = 5",
            "periodic_enable = false",
        )
        configuration = self.load(toml)
        compute, agent = configuration.settings.services
        self.assertEqual((compute.host, compute.topic, compute.manager), ("h1", "compute", "example.Compute"))
        self.assertEqual((compute.report_interval, compute.options), (7, {"disks": ["sda"]}))
        self.assertEqual(
            (agent.host, agent.binary, agent.manager), ("h2", "novasvc-agent", "novasvc.host_agent.HostAgent")
        )
        self.assertEqual((agent.report_interval, agent.periodic_enable), (5, False))
        self.assertEqual(configuration.origins["service[1].host"], f"file {toml}, table service[1]")

    def test_tables_of_a_later_file(self) -> None:
        """The tables of a later file replace those of an earlier one."""
        first = self.write("a.toml", "[[service]]", 'topic = "agent"')
        second = self.write("b.toml", "[[service]]", 'binary = "x"', 'manager = "example.X"')
        (service,) = self.load(first, second).settings.services
        self.assertEqual(service.topic, "x")

    def test_table_without_manager(self) -> None:
        """A table without a manager is an error that says what to add."""
        error = self.error(self.write("a.toml", "[[service]]", 'topic = "compute"'))
        self.assertEqual(error.setting, "service[0].manager")
        self.assertIn("compute_manager", error.remedy)

    def test_bundled_managers(self) -> None:
        """The topics agent and conductor have a default manager, with tables and without."""
        tables = self.write("a.toml", "[[service]]", 'topic = "agent"', "[[service]]", 'topic = "conductor"')
        agent, conductor = self.load(tables).settings.services
        self.assertEqual(agent.manager, "novasvc.host_agent.HostAgent")
        self.assertEqual(
            (conductor.binary, conductor.manager), ("novasvc-conductor", "novasvc.registry.conductor.Conductor")
        )
        (alone,) = self.load(options={"topic": "conductor"}).settings.services
        self.assertEqual(alone.manager, "novasvc.registry.conductor.Conductor")
        (own,) = self.load(options={"topic": "conductor", "conductor-manager": "a.B"}).settings.services
        self.assertEqual(own.manager, "a.B")

    def test_no_service(self) -> None:
        """An empty list of services runs no service."""
        self.assertEqual(self.load(self.write("a.toml", "service = []", "api = true")).settings.services, ())

    def test_through_the_conductor(self) -> None:
        """A service with db_allowed = false may follow a conductor."""
        tables = ("[[service]]", 'topic = "conductor"', "[[service]]", 'topic = "agent"', "db_allowed = false")
        conductor, agent = self.load(self.write("a.toml", *tables)).settings.services
        self.assertEqual((conductor.db_allowed, agent.db_allowed), (True, False))

    def test_without_conductor(self) -> None:
        """A service that would wait for a conductor for ever is an error, alone or above the conductor."""
        error = self.error(options={"no-db-allowed": True})
        self.assertEqual((error.setting, error.source), ("db_allowed", "option --no-db-allowed"))
        self.assertIn('topic = "conductor"', error.remedy)
        tables = ("[[service]]", 'topic = "agent"', "db_allowed = false", "[[service]]", 'topic = "conductor"')
        self.assertEqual(self.error(self.write("a.toml", *tables)).setting, "service[0].db_allowed")

    def test_conductor_without_database(self) -> None:
        """A conductor with db_allowed = false is an error."""
        tables = ("db_allowed = false", "[[service]]", 'topic = "conductor"', "[[service]]", 'topic = "agent"')
        errors = self.errors(self.write("a.toml", *tables))
        self.assertEqual([error.setting for error in errors], ["db_allowed", "db_allowed"])
        self.assertIn("the conductor accesses the database for the other services", str(errors[0]))

    def test_table_without_a_name(self) -> None:
        """A table without binary and topic is an error."""
        self.assertEqual(self.error(self.write("a.toml", "[[service]]")).setting, "service[0].binary")

    def test_same_service_twice(self) -> None:
        """Two services of one host with the same binary or topic are an error."""
        table = ("[[service]]", 'binary = "b"', 'topic = "t"', 'manager = "a.B"')
        errors = self.errors(self.write("a.toml", *table, *table))
        self.assertEqual([error.setting for error in errors], ["service[1].binary", "service[1].topic"])

    def test_tables_and_the_only_service(self) -> None:
        """Settings of the single service are an error beside tables."""
        toml = self.write("a.toml", "[[service]]", 'topic = "agent"')
        error = self.error(toml, options={"manager": "a.B"})
        self.assertEqual((error.setting, error.source), ("--manager", "option --manager"))

    def test_one_bracket(self) -> None:
        """[service] with one bracket is an error that names [[service]]."""
        self.assertIn("two brackets", self.error(self.write("a.toml", "[service]", 'topic = "agent"')).remedy)

    def test_wrong_value_in_a_table(self) -> None:
        """An invalid value in a table is reported with its table."""
        toml = self.write("a.toml", "[[service]]", 'topic = "agent"', "report_interval = 0.5", "bnary = 1")
        errors = self.errors(toml)
        self.assertEqual([error.setting for error in errors], ["bnary", "report_interval"])
        self.assertEqual({error.source for error in errors}, {f"file {toml}, table service[0]"})
        self.assertEqual(errors[0].remedy, "did you mean binary?")


class RulesTests(SettingsCase):
    """Tests for rules about several settings."""

    def test_down_between_heartbeats(self) -> None:
        """A service_down_time of one report_interval is an error."""
        error = self.error(options={"service-down-time": 10})
        self.assertEqual((error.setting, error.value), ("service_down_time", "10"))
        self.assertEqual(error.source, "option --service-down-time")

    def test_down_between_heartbeats_of_one_service(self) -> None:
        """A service_down_time of one service's report_interval is an error, too."""
        error = self.error(self.write("a.toml", "[[service]]", 'topic = "agent"', "report_interval = 60"))
        self.assertIn("table service[0]", error.source)

    def test_fenced_between_heartbeats(self) -> None:
        """A fence_after of one report_interval is an error: a healthy service would be fenced."""
        error = self.error(options={"fence-after": 10})
        self.assertEqual((error.setting, error.value), ("fence_after", "10"))
        self.assertEqual(error.source, "option --fence-after")
        self.assertEqual(error.problem, "services would be fenced between two heartbeats, which are sent every 10 s")
        table = ["[[service]]", 'topic = "agent"', "report_interval = 45"]
        error = self.error(self.write("a.toml", "fence_after = 45", *table))
        self.assertEqual((error.setting, error.value), ("report_interval", "45"))
        self.assertIn("the service would be fenced between two heartbeats: fence_after is 45 s", error.problem)
        self.assertEqual(self.load(options={"fence-after": 10.5}).settings.fence_after, 10.5)

    def test_fenced_without_heartbeats(self) -> None:
        """A fence_after for a service that sends no heartbeats is an error: it would be fenced for ever."""
        error = self.error(options={"fence-after": 45, "report-interval": 0})
        self.assertEqual(error.problem, "services would be fenced without heartbeats")
        table = ["[[service]]", 'topic = "agent"', "report_interval = 0"]
        self.assertIn("sends no heartbeats", self.error(self.write("a.toml", "fence_after = 45", *table)).problem)

    def test_no_heartbeats(self) -> None:
        """An interval of 0 is valid, for all services or for one; one below a second is not."""
        self.assertEqual(self.load(options={"report-interval": 0}).settings.report_interval, 0)
        file = self.write("a.toml", "[[service]]", 'topic = "agent"', "report_interval = 0")
        self.assertEqual(self.load(file).settings.services[0].report_interval, 0)
        self.assertIn("at least 1, or 0", self.error(options={"report-interval": 0.9}).remedy)

    def test_interval_that_no_service_has(self) -> None:
        """An interval that no service uses breaks no rule."""
        table = ["[[service]]", 'topic = "agent"', "report_interval = 2"]
        self.assertEqual(self.load(self.write("a.toml", "service_down_time = 8", *table)).settings.service_down_time, 8)
        self.assertEqual(self.load(self.write("a.toml", "service_down_time = 8", "service = []")).settings.services, ())
        error = self.error(self.write("a.toml", "service_down_time = 8", *table, "[[service]]", 'topic = "conductor"'))
        self.assertEqual((error.setting, error.value), ("service_down_time", "8"))
        self.assertIn("every 10 s", error.problem)

    def test_certificate_without_key(self) -> None:
        """A certificate without its key, and a key without its certificate, are errors."""
        self.assertIn("rabbit_ssl_key_file", self.error(options={"rabbit-ssl-cert-file": "/c.pem"}).problem)
        self.assertIn("rabbit_ssl_cert_file", self.error(options={"rabbit-ssl-key-file": "/k.pem"}).problem)

    def test_open_api(self) -> None:
        """An API for other hosts needs tokens, and TLS or insecure_http."""
        others = {"api": True, "api-listen": "0.0.0.0"}
        self.assertIn("without a token", self.error(options=others).problem)
        others["api-token-file"] = "/t"
        error = self.error(options=others)
        self.assertEqual((error.setting, error.value), ("api_listen", "0.0.0.0"))
        self.assertIn("in clear text", error.problem)
        self.assertTrue(self.load(options={**others, "insecure-http": True}).settings.insecure_http)
        for local in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
            self.assertTrue(self.load(options={"api": True, "api-listen": local}).settings.api_is_local)

    def test_operators_without_keys(self) -> None:
        """Operators are named in vain where nobody is known: everybody could restart the nodes."""
        given = {"rpc-operators": "alice", "transport-url": "amqp://h/"}
        error = self.error(options=given)
        self.assertEqual((error.setting, error.value), ("rpc_operators", "alice"))
        self.assertIn("set rpc_callers_file", error.remedy)
        self.assertEqual(self.load(options={**given, "rpc-callers-file": "/k"}).settings.rpc_operators, ("alice",))
        self.assertEqual(self.load(options={"rpc-operators": "alice"}).settings.rpc_operators, ("alice",))

    def test_port_out_of_range(self) -> None:
        """A port out of range is an error, because the system would use another one."""
        self.assertIn("0 to 65535", self.error(options={"api-listen-port": "65536"}).problem)
        self.assertIn("an address", self.error(options={"api-listen": "example.org"}).problem)

    def test_rules_are_silent_about_wrong_values(self) -> None:
        """An invalid value is reported once, not again by each rule."""
        self.assertEqual(self.error(options={"service-down-time": "soon"}).problem, "is not a number")
        given = {"fence-after": "soon", "report-interval": 0}
        self.assertEqual(self.error(options=given).problem, "is not a number")

    def test_everything_at_once(self) -> None:
        """All errors are reported together, each with its source."""
        toml = self.write("a.toml", "report_intervall = 3", "service_down_time = true")
        errors = self.errors(toml, environ={"NOVASVC_HSOT": "x"}, options={"rpc-concurrency": 0})
        self.assertEqual(
            [str(error) for error in errors],
            [
                f"report_intervall (from file {toml}): no such setting; did you mean report_interval?",
                "NOVASVC_HSOT (from the environment): no such setting; did you mean NOVASVC_HOST?",
                f"service_down_time = true (from file {toml}): is not a number; give a number of seconds, at least 1",
                "--rpc-concurrency = 0 (from option --rpc-concurrency): is too small; give a whole number, at least 1",
            ],
        )


class SecretsTests(SettingsCase):
    """Tests that passwords stay secret."""

    def test_not_in_repr(self) -> None:
        """The repr of settings contains no password."""
        service = ServiceSettings(host="h", binary="b", topic="t", manager="m", options={"db": {"password": "secret"}})
        settings = Settings(
            database_url="mysql://u:secret@h/d", transport_url="rabbit://u:secret@h/", services=(service,)
        )
        self.assertNotIn("secret", repr(settings))
        self.assertNotIn("secret", repr(Configuration(settings, {})))

    def test_not_in_errors(self) -> None:
        """No error contains a password, however malformed the URL is."""
        for url in (
            "mysql://u:sec@ret@h:x/d",
            "rabbit://u:s/ecret@h",
            "u:secret@h",
            "mysql://u:secret",
            "mysql:/u:secret@",
            "amqp://u/x:secret@h:y/",
        ):
            for name in ("database-url", "transport-url"):
                text = str(self.error(options={name: url}))
                self.assertNotRegex(text, "sec|ret@|ecret")
                self.assertIn("***", text)

    def test_not_with_an_unknown_name(self) -> None:
        """The value of an unknown setting is not shown, because it may be a secret."""
        self.assertNotIn("secret", str(self.error(options={"database-ulr": "mysql://u:secret@h/d"})))
