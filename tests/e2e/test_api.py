"""Tests for the API of a real twistd: with workers, during a reload, and at shutdown."""

import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest import TestCase
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.e2e.process import PATIENCE, Process, program
from tests.servers.process import free_ports

SLOW = """
import time
from novasvc import Manager, RequestContext, rpc

class Slow(Manager):
    @rpc.expose(blocking=True)
    def work(self, context, seconds):
        print("working", flush=True)
        time.sleep(seconds)
        return "done"
"""


def read(url: str) -> tuple[int, Any]:
    """Send a request; return the status and the document."""
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait until a condition is true; return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.02)
    return found


class APICase(TestCase):
    """A test with twistd and the API in a directory of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def start(self, *options: str) -> tuple[Process, str]:
        """Start it; return it, and its URL."""
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--api", "--api-listen-port", "0", *options]
        process = Process(self, command, self.folder, PYTHONPATH=str(self.folder), NOVASVC_STATE_DIR="state")
        return process, process.wait_for(r"page +(https?://[^ ]+:\d+/)")[1]


class WorkersTests(APICase):
    """Tests for the API with workers."""

    def test_supervised(self) -> None:
        """The API reports all workers, also after one died, and serves while all are replaced."""
        supervisor, url = self.start("--workers", "2", "--api-workers", "2")
        status, document = eventually(lambda: (found := read(f"{url}readyz"))[0] == 200 and found)
        self.assertEqual((status, len(document["workers"])), (200, 4), document)
        victim = next(row for row in document["workers"] if row["server"] == "novasvc-agent")
        os.kill(victim["pid"], signal.SIGKILL)
        eventually(lambda: victim["pid"] not in [row["pid"] for row in read(f"{url}readyz")[1]["workers"]])

        ended, answers = threading.Event(), []

        def ask() -> None:
            while not ended.is_set():
                answers.append(read(f"{url}v2.1/os-services")[0])

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        before = {row["pid"] for row in read(f"{url}readyz")[1]["workers"]}
        os.kill(supervisor.popen.pid, signal.SIGHUP)
        supervisor.wait_for("the reload is complete|all workers are replaced|reloaded", 60)
        ended.set()
        for thread in asking:
            thread.join()
        self.assertFalse(before & {row["pid"] for row in read(f"{url}readyz")[1]["workers"]})
        self.assertGreater(len(answers), 20)
        self.assertEqual(set(answers), {200})
        self.assertEqual(supervisor.stop(), -signal.SIGTERM)

    @pytest.mark.long
    def test_files_that_became_wrong(self) -> None:
        """A replacement worker has the tokens that were read at start, whatever the file contains now."""
        tokens = self.folder / "tokens"
        tokens.write_text("ada admin 0123456789abcdef\n")
        tokens.chmod(0o600)
        process, link = self.start("--api-workers", "1", "--api-token-file", str(tokens))
        url = link.partition("login?")[0]
        token = {"X-Auth-Token": "0123456789abcdef"}
        with urlopen(Request(f"{url}readyz", headers=token), timeout=PATIENCE) as answer:
            victim = next(row["pid"] for row in json.load(answer)["workers"] if row["server"] == "api")
        tokens.chmod(0o644)
        os.kill(victim, signal.SIGKILL)
        process.wait_for(r"of api is ready after")
        with urlopen(Request(f"{url}v2.1/os-services", headers=token), timeout=PATIENCE) as answer:
            self.assertEqual(answer.status, 200)
        self.assertEqual(process.stop(), -signal.SIGTERM)


class PageTests(APICase):
    """Tests for the updates of the page; the page itself is tested in tests/e2e/test_page.py."""

    def test_events(self) -> None:
        """Changes in the registry are sent as updates."""
        process, url = self.start()
        news = eventually(lambda: (found := read(f"{url}events?poll=1")[1])["totals"]["services"] and found)
        self.assertEqual((news["trouble"], len(news["cells"])), ("", 1), news)
        with urlopen(f"{url}events", timeout=PATIENCE) as stream:
            self.assertEqual(stream.headers["Content-Type"].partition(";")[0], "text/event-stream")
        self.assertEqual(process.stop(), -signal.SIGTERM)


class BusyTests(APICase):
    """Tests for a port in use."""

    def test_busy(self) -> None:
        """The start fails with one line that names the port, and status 1, in one process and with workers."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            for options in ((), ("--workers", "1")):
                command = [
                    program("twistd"),
                    "-n",
                    "--pidfile=",
                    "novasvc",
                    "--api",
                    "--api-listen-port",
                    port,
                    *options,
                ]
                process = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
                self.assertEqual(process.wait(), 1, process.output)
                self.assertIn(f"cannot listen on 127.0.0.1:{port}", process.output)
                self.assertNotIn("Traceback", process.output)


class HalfClosedTests(APICase):
    """Tests for half-closed clients."""

    def test_each(self) -> None:
        """Half-closed clients of the gateway, the list and the probes get their responses."""
        (self.folder / "slow.py").write_text(SLOW)
        process, url = self.start("--manager", "slow.Slow")
        eventually(lambda: read(f"{url}readyz")[0] == 200)
        body = json.dumps({"args": {"seconds": 0.5}}).encode()
        kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        for line, more, found in (
            (b"GET /healthz", b"\r\n", b"200 OK"),
            (b"GET /v2.1/os-services", b"\r\n", b"novasvc-agent"),
            (b"POST /v1/rpc/agent/work", kind + b"\r\n" + body, b"done"),
        ):
            client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].strip("/"))), timeout=PATIENCE)
            self.addCleanup(client.close)
            client.sendall(line + b" HTTP/1.1\r\nHost: localhost\r\n" + more)
            client.shutdown(socket.SHUT_WR)
            heard = b""
            while data := client.recv(4096):
                heard += data
            self.assertIn(found, heard)
        self.assertEqual(process.stop(), -signal.SIGTERM)


class DrainTests(APICase):
    """Tests for the API's shutdown."""

    def test_under_way(self) -> None:
        """A request in progress at SIGTERM is answered; then the port is closed."""
        (self.folder / "slow.py").write_text(SLOW)
        process, url = self.start("--manager", "slow.Slow")
        body = json.dumps({"args": {"seconds": 1}}).encode()
        connection = HTTPConnection(url.split("/")[2], timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.request("POST", "/v1/rpc/agent/work", body, {"content-type": "application/json"})
        process.wait_for("working")
        process.popen.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        self.assertEqual((answer.status, json.load(answer)), (200, {"result": "done"}))
        self.assertEqual(process.wait(), -signal.SIGTERM)


class RestartedTests(APICase):
    """Tests for SIGHUP in one process."""

    def test_slow_client(self) -> None:
        """A slow client delays no restart: the port answers throughout, and the client gets its whole response."""
        (self.folder / "slow.py").write_text(SLOW)
        process, url = self.start("--manager", "slow.Slow")
        slow = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].strip("/"))), timeout=PATIENCE)
        self.addCleanup(slow.close)
        body = json.dumps({"args": {"seconds": 0}}).encode()
        head = b"POST /v1/rpc/agent/work HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:5])
        ended, answers = threading.Event(), []

        def ask() -> None:
            while not ended.is_set():
                answers.append(read(f"{url}healthz")[0])

        asking = threading.Thread(target=ask)
        asking.start()
        for _ in range(3):
            process.popen.send_signal(signal.SIGHUP)
            process.wait_for("services restarted")
        ended.set()
        asking.join()
        self.assertGreater(len(answers), 3)
        self.assertEqual(set(answers), {200})
        slow.sendall(body[5:])
        self.assertIn(b"200 OK", slow.recv(4096))
        self.assertEqual(process.stop(), -signal.SIGTERM)

    def test_port(self) -> None:
        """SIGHUP moves the API to another port; if that is in use, or workers are configured, nothing changes."""
        settings = self.folder / "settings.toml"
        first, second = free_ports(2)
        settings.write_text(f"api = true\napi_listen_port = {first}\n")
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--config", str(settings)]
        process = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
        process.wait_for(r"novasvc-agent@\S+ is running")
        settings.write_text(f"api = true\napi_listen_port = {second}\n")
        with socket.create_server(("127.0.0.1", second)):
            process.popen.send_signal(signal.SIGHUP)
            process.wait_for(f"SIGHUP: .*cannot listen on 127.0.0.1:{second}")
        settings.write_text("workers = 2\n")
        process.popen.send_signal(signal.SIGHUP)
        process.wait_for(
            "SIGHUP: reload failed, previous configuration kept: the configuration asks for workers; restart to run"
        )
        self.assertEqual(read(f"http://127.0.0.1:{first}/readyz")[0], 200)
        self.assertNotIn("draining", process.output)
        settings.write_text(f"api = true\napi_listen_port = {second}\n")
        process.popen.send_signal(signal.SIGHUP)
        process.wait_for("services restarted")
        self.assertEqual(read(f"http://127.0.0.1:{second}/readyz")[0], 200)
        with socket.socket() as client:
            self.assertNotEqual(client.connect_ex(("127.0.0.1", first)), 0)
        self.assertEqual(process.stop(), -signal.SIGTERM)


class GuardedTests(APICase):
    """Tests for tokens and login links, from the command to the API."""

    def test_tokens(self) -> None:
        """A token made by the command gives access by its scope; neither it nor a login code is logged."""
        tokens = self.folder / "tokens"
        made = {}
        for name, scope in (("ada", "admin"), ("ron", "read")):
            command = Process(
                self, [program("novasvc"), "token", name, "--scope", scope, "--file", str(tokens)], self.folder
            )
            self.assertEqual(command.wait(), 0, command.output)
            made[name] = command.output.strip()
        process, link = self.start("--api-token-file", str(tokens))
        url, code = link.split("login?code=") if "login?code=" in link else (link, "")
        code = code or process.output.partition("login?code=")[2].split()[0]
        self.assertEqual(read(f"{url}v2.1/os-services")[0], 401)

        def ask(method: str, path: str, token: str, body: Any = None) -> int:
            headers = {"X-Auth-Token": token, "Content-Type": "application/json"}
            data = None if body is None else json.dumps(body).encode()
            try:
                with urlopen(Request(f"{url}{path}", data, headers, method=method), timeout=PATIENCE) as answer:
                    return int(answer.status)
            except HTTPError as error:
                with error:
                    return error.code

        self.assertEqual(ask("GET", "v2.1/os-services", made["ron"]), 200)
        self.assertEqual(ask("POST", "v1/rpc/agent/get_host_facts", made["ron"], {}), 403)
        self.assertEqual(ask("POST", "v1/rpc/agent/get_host_facts", made["ada"], {}), 200)
        self.assertEqual(ask("GET", "v2.1/os-services", "x" * 43), 401)
        self.assertEqual(ask("GET", f"login?code={code}", ""), 200)
        process.popen.send_signal(signal.SIGTERM)
        process.wait()
        self.assertNotIn(made["ada"], process.output)
        self.assertEqual(process.output.count(code), 1, "the greeting alone has it")
