"""Secrets that are marked, and everything that can be read while and after they are used."""

import json
import signal
import tempfile
from pathlib import Path
from unittest import TestCase
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from tests.e2e.process import PATIENCE, Process, program

PASSWORD, TOKEN, WRONG = "marked-password-4711", "marked-token-4712-of-ada", "marked-wrong-token-4713"


class SecretsTests(TestCase):
    """faults: secrets are in no log, no traceback, no process title, no answer."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def ask(self, url: str, token: str, body: object = None) -> str:
        """Ask, and return all that comes back."""
        headers = {"X-Auth-Token": token, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(url, data, headers), timeout=PATIENCE) as answer:
                return f"{answer.headers}{answer.read().decode()}"
        except HTTPError as error:
            with error:
                return f"{error.headers}{error.read().decode()}"

    def test_nowhere(self) -> None:
        """The broker's password, tokens right and wrong, a login code and the key of sessions are seen by nobody."""
        tokens = self.folder / "tokens"
        tokens.write_text(f"ada admin {TOKEN}\n")
        tokens.chmod(0o600)
        state = {"NOVASVC_STATE_DIR": str(self.folder / "state"), "NOVASVC_API_TOKEN_FILE": str(tokens)}
        process = Process(
            self,
            [program("twistd"), "-n", "--pidfile=", "novasvc", "--api", "--api-listen-port", "0", "--workers", "1"],
            self.folder,
            **state,
            # Nobody listens there: the error is told again and again.
            NOVASVC_TRANSPORT_URL=f"amqp://ada:{PASSWORD}@127.0.0.1:1/",
            NOVASVC_LOG_LEVEL="debug",
        )
        url = f"http://{process.wait_for(r'listening on (127.0.0.1:[0-9]+)')[1]}/"
        port = url.rpartition(":")[2].rstrip("/")
        command = Process(self, [program("novasvc"), "login", "--port", port], self.folder, **state)
        self.assertEqual(command.wait(), 0, command.output)
        code = command.output.strip().partition("code=")[2]
        seen = ""
        for token in (TOKEN, WRONG, ""):
            for path in ("healthz", "readyz", "metrics", "openapi.json", "", f"login?code={code}", "v2.1/os-services"):
                seen += self.ask(f"{url}{path}", token).replace(f'value="{code}"', "")  # its own form has it
            for path in ("v1/rpc/agent/get_host_facts", f"v1/rpc/agent/{WRONG}", "v1/rpc/agent/x?token=" + TOKEN):
                seen += self.ask(f"{url}{path}", token, {"args": {"password": PASSWORD}}).replace(WRONG, "", 1)
        supervisor = psutil.Process(process.popen.pid)
        for each in (supervisor, *supervisor.children(recursive=True)):
            seen += " ".join(each.cmdline())
        dump = Process(self, [program("novasvc"), "dump", "-f", "json"], self.folder, **state)
        self.assertEqual(dump.wait(), 0, dump.output)
        process.popen.send_signal(signal.SIGTERM)
        process.wait()
        (key,) = self.folder.rglob("api.key")
        seen += dump.output + process.output
        self.assertIn("novasvc_build_info", seen)
        self.assertIn("Connection was refused", seen)
        for secret in (PASSWORD, TOKEN, code, key.read_bytes().hex()):
            place = seen.find(secret)
            self.assertEqual(place, -1, f"{secret}: ...{seen[max(0, place - 300) : place + 60]}")
        self.assertNotIn(WRONG, process.output.replace(f"agent.{WRONG}", "").replace(f"agent/{WRONG}", ""))
