"""Tests for a WSGI application in workers that share its port, served by a plain script."""

import signal
import socket
import ssl
import tempfile
from http.client import HTTPConnection
from pathlib import Path
from unittest import TestCase

from tests.e2e.process import PATIENCE, Process, program
from tests.faults.fleet_rig import until
from tests.servers.certificates import Certificates

APP = """\
import os
import threading
import time

def factory(global_config):
    def app(environ, start):
        if environ["PATH_INFO"] == "/slow":
            print("slow has begun", flush=True)
            time.sleep(1)
        start("200 OK", [])
        return [f"{os.getpid()} {environ['wsgi.multiprocess']} {threading.active_count()}".encode()]
    return app
"""
SCRIPT = """\
from novasvc.service import WSGIService, serve, wait

if __name__ == "__main__":
    serve(WSGIService("pids"), workers=2)
    wait()
"""


class PreforkedTests(TestCase):
    def setUp(self) -> None:
        folder = Path.cwd()
        Path("pids.py").write_text(APP)
        Path("serve_pids.py").write_text(SCRIPT)
        Path("api-paste.ini").write_text("[app:pids]\npaste.app_factory = pids:factory\n")
        self.process = Process(self, [program("python"), "serve_pids.py"], folder, PYTHONPATH=str(folder))
        self.port = int(self.process.wait_for(r"listening on 127\.0\.0\.1:(\d+)").group(1))
        self.process.wait_for("the supervisor is running")

    def get(self, path: str) -> str:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def test_life(self) -> None:
        """Both workers answer on the shared port, half-closed clients too, and requests in progress at shutdown."""
        pids = set()
        for _ in range(1000):
            pid, multiprocess, _threads = self.get("/").split()
            self.assertEqual(multiprocess, "True")
            pids.add(pid)
            if len(pids) == 2:
                break
        self.assertEqual(len(pids), 2)
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            self.assertIn(b"200 OK", client.recv(4096))
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", "/slow")
        self.process.wait_for("slow has begun")
        self.process.popen.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        self.assertEqual((answer.status, answer.getheader("Connection")), (200, "close"))
        self.assertIn(answer.read().decode().split()[0], pids)
        connection.close()
        self.assertEqual(self.process.wait(), 0, self.process.output)


class ReloadedTests(TestCase):
    """Tests for SIGHUP of a plain script."""

    def check(self, workers: int | None, done: str) -> None:
        """Serve over TLS, and reload with a new certificate while a client is connected."""
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            (folder / "pids.py").write_text(APP)
            call = f'WSGIService("pids", use_ssl=True), workers={workers}'
            (folder / "serve_pids.py").write_text(SCRIPT.replace('WSGIService("pids"), workers=2', call))
            (folder / "api-paste.ini").write_text("[app:pids]\npaste.app_factory = pids:factory\n")
            made = Certificates(folder)
            files = {
                "NOVASVC_SSL_CERT_FILE": str(made.server.certificate),
                "NOVASVC_SSL_KEY_FILE": str(made.server.key),
            }
            environment = {"PYTHONPATH": str(folder), "NOVASVC_STATE_DIR": str(folder / "state"), **files}
            process = Process(self, [program("python"), "serve_pids.py"], folder, **environment)
            port = int(process.wait_for(r"listening on 127\.0\.0\.1:(\d+)").group(1))
            process.wait_for("(the supervisor|the API pids) is running")
            address = "127.0.0.1", port
            before = ssl.get_server_certificate(address, timeout=PATIENCE)
            made.server.key.rename(folder / "kept")
            process.popen.send_signal(signal.SIGHUP)
            process.wait_for("reload failed, previous configuration kept: ssl_key_file")
            made.server.certificate.write_bytes(made.stranger.certificate.read_bytes())
            made.server.key.write_bytes(made.stranger.key.read_bytes())
            slow = socket.create_connection(address, timeout=PATIENCE)
            self.addCleanup(slow.close)
            process.popen.send_signal(signal.SIGHUP)
            process.wait_for(done)
            # A worker that was told to stop may still accept for a moment.
            until(lambda: ssl.get_server_certificate(address, timeout=PATIENCE) != before)
            slow.close()
            self.assertIn(process.stop(), {0, 1, -signal.SIGTERM}, process.output)

    def test_one_process(self) -> None:
        """In one process a reload serves the new files, and does not wait for connected clients."""
        self.check(None, "services restarted")

    def test_workers(self) -> None:
        """With workers a reload serves the new files, which the supervisor has validated."""
        self.check(2, "reloaded: all workers were replaced")
