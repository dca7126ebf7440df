"""Tests for the settings of APIs: lists of names, and suffix families such as <api>_listen."""

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import load
from novasvc.config.load import Configuration
from novasvc.config.log_format import NOVA_LOG_FORMAT
from novasvc.config.show import rows
from novasvc.errors import ConfigurationError


def written(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text)
    return path


class APISettingsTests(SynchronousTestCase):
    def load(self, *files: Path, options: dict[str, Any] | None = None, **environ: str) -> Configuration:
        return load(files, {f"NOVASVC_{name}": value for name, value in environ.items()}, options or {})

    def problem(self, *files: Path, **environ: str) -> str:
        return str(self.assertRaises(ConfigurationError, self.load, *files, **environ))

    def test_lists(self) -> None:
        """A list is names separated by commas, or a TOML array."""
        toml = written("a.toml", 'enabled_apis = ["one", "two"]')
        self.assertEqual(self.load(toml).settings.enabled_apis, ("one", "two"))
        for text, names in (("one, two", ("one", "two")), ("", ()), ("none", ()), ("one", ("one",))):
            self.assertEqual(self.load(ENABLED_APIS=text).settings.enabled_apis, names)
            self.assertEqual(self.load(options={"enabled-apis": text}).settings.enabled_apis, names)
        self.assertIn("is not a list of names", self.problem(ENABLED_APIS="one,,two"))
        self.assertIn("is not a list of names", self.problem(ENABLED_APIS="one two"))
        self.assertIn("contains a name twice", self.problem(ENABLED_APIS="one,one"))

    def test_families(self) -> None:
        """Each API has an address, a port and a number of workers; Nova's have Nova's ports."""
        ini = written("a.ini", "[DEFAULT]\nosapi_compute_listen = 0.0.0.0\nmine_listen_port = 0\nmine_workers = 3\n")
        settings = self.load(ini).settings
        compute, mine, other = (settings.api_named(name) for name in ("osapi_compute", "mine", "other"))
        self.assertEqual((compute.listen, compute.listen_port, compute.workers), ("0.0.0.0", 8774, None))
        self.assertEqual((mine.listen, mine.listen_port, mine.workers), ("127.0.0.1", 0, 3))
        self.assertEqual(
            (other.listen, other.listen_port, settings.api_named("metadata").listen_port), ("127.0.0.1", 0, 8775)
        )
        self.assertIn("is too small", self.problem(MINE_WORKERS="0"))
        self.assertIn("is not a port", self.problem(MINE_LISTEN_PORT="70000"))
        self.assertIn("is not an address", self.problem(MINE_LISTEN="nowhere"))

    def test_shown(self) -> None:
        """They are shown with their origins."""
        listed = {row["Setting"]: row for row in rows(self.load(MINE_LISTEN_PORT="9000"))}
        self.assertEqual(listed["mine_listen_port"]["Value"], 9000)
        self.assertEqual(listed["mine_listen_port"]["Origin"], "variable NOVASVC_MINE_LISTEN_PORT")
        self.assertEqual(listed["mine_listen"]["Origin"], "default")

    def test_rules(self) -> None:
        """TLS needs a certificate, and a certificate its key; the name "api" is reserved."""
        self.assertIn("enabled_ssl_apis = one (from variable NOVASVC_E", self.problem(ENABLED_SSL_APIS="one"))
        self.assertIn("ssl_key_file is not given", self.problem(ENABLED_SSL_APIS="one", SSL_CERT_FILE="/a"))
        self.assertIn("api is the name of the built-in API", self.problem(ENABLED_APIS="api"))

    def test_sections(self) -> None:
        """Nova's sections and options in an INI file are read."""
        text = "[wsgi]\nclient_socket_timeout = 10\ndefault_pool_size = 5\n[oslo_messaging_rabbit]\nssl = true\n"
        settings = self.load(written("a.ini", text)).settings
        found = (settings.client_socket_timeout, settings.wsgi_default_pool_size, settings.rabbit_ssl)
        self.assertEqual(found, (10.0, 5, True))
        (warning,) = self.load(written("a.ini", "[wsgi]\nclient_socket_timeut = 10\n")).warnings
        self.assertIn("wsgi/client_socket_timeut (did you mean wsgi/client_socket_timeout?)", warning)

    def test_log_format(self) -> None:
        """The format of the access log is validated."""
        self.assertEqual(self.load().settings.wsgi_log_format, NOVA_LOG_FORMAT)
        self.assertEqual(self.load(WSGI_LOG_FORMAT="none").settings.wsgi_log_format, "")
        ini = written("a.ini", "[DEFAULT]\nwsgi_log_format = %(client_ip)s %(status_code)d\n")
        self.assertEqual(self.load(ini).settings.wsgi_log_format, "%(client_ip)s %(status_code)d")
        for bad in ("%(nothing)s", "%s %s", "%(client_ip)d", "%"):
            self.assertIn("cannot be filled with the fields", self.problem(WSGI_LOG_FORMAT=bad))
