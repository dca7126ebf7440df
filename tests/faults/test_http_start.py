"""Servers that cannot be started: faults.md, rows 36 and 38."""

import socket
from pathlib import Path
from unittest import TestCase

from tests.e2e.process import Process, program
from tests.servers.certificates import Certificates

APP = """\
def factory(global_config):
    def app(environ, start):
        start("200 OK", [])
        return [b"hello"]
    return app
"""


class StartTests(TestCase):
    def setUp(self) -> None:
        self.folder = Path.cwd()
        Path("stub.py").write_text(APP)
        Path("api-paste.ini").write_text("[app:stub]\npaste.app_factory = stub:factory\n")

    def twistd(self, *options: str, **environment: str) -> Process:
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--transport-url", "memory:", *options]
        return Process(self, command, self.folder, PYTHONPATH=str(self.folder), **environment)

    def test_port_in_use(self) -> None:
        """A port that is taken ends the process with an error that names it, alone and supervised."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for workers in ("0", "1"):
                options = ("--enabled-apis", "stub", "--workers", workers)
                process = self.twistd(*options, NOVASVC_STUB_LISTEN_PORT=str(port))
                process.wait_for(rf"cannot listen on 127.0.0.1:{port}: Address already in use; end the process")
                self.assertEqual(process.wait(), 1, process.output)

    def test_tls(self) -> None:
        """A key that is another's, or that cannot be read, or is none, ends the process: plain HTTP is not served."""
        made = Certificates(self.folder / "tls")
        wrong = self.folder / "wrong.key"
        wrong.write_text("no key")
        locked = self.folder / "tls"
        for key, problem in (
            (made.client.key, "or not the key of"),
            (wrong, "it contains no PEM private key"),
            (self.folder / "gone.key", "it cannot be read: No such file"),
            (locked, "it cannot be read: Is a directory"),
        ):
            files = ("--ssl-cert-file", str(made.server.certificate), "--ssl-key-file", str(key))
            process = self.twistd("--enabled-ssl-apis", "stub", *files)
            self.assertEqual(process.wait(), 1, process.output)
            self.assertIn(f"ssl_key_file = '{key}'", process.output)
            self.assertIn(problem, process.output)
            self.assertNotIn("Traceback", process.output)

    def test_tls_without_certificate(self) -> None:
        """TLS that is asked for without a certificate is an error of the settings."""
        process = self.twistd("--enabled-ssl-apis", "stub")
        self.assertEqual(process.wait(), 1, process.output)
        self.assertIn(
            "enabled_ssl_apis = stub (from option --enabled-ssl-apis): TLS requires a certificate", process.output
        )
