"""Tests for shell completion, with a real bash and real nodes."""

import shlex
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, Process, program, unmeasured

MANAGER = """
from novasvc import Manager, rpc

class Stock(Manager):
    @rpc.expose
    def reserve(self, context, item: str, amount: int = 1, note: str = "a, b: c=(d)") -> str:
        return item
    @rpc.expose
    def reset(self, context) -> None:
        pass
"""

# bash calls the function as after a Tab, and offers what it leaves in COMPREPLY. It splits words at "=".
COMPLETE = """
source <(novasvc completion bash)
compopt() { options="$1 $2"; }
COMP_WORDS=(WORDS)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_novasvc_completion novasvc
printf '%s\\n' "${COMPREPLY[@]}" "options:$options"
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class BashTests(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "shop.py").write_text(MANAGER)
        (self.folder / "bin").mkdir()
        (self.folder / "bin" / "novasvc").symlink_to(program("novasvc"))
        self.environment = {"NOVASVC_STATE_DIR": str(self.folder / "state")}

    def complete(self, *words: str, **environment: str) -> list[str]:
        """Return what bash offers, without a word on standard error."""
        given = {**unmeasured("NOVASVC_"), **self.environment, **environment}
        given["PATH"] = f"{self.folder}/bin:{given['PATH']}"
        script = COMPLETE.replace("(WORDS)", f"({shlex.join(['novasvc', *words])})")
        ran = subprocess.run(
            ["bash", "--norc", "-c", script], env=given, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        self.assertEqual(ran.stderr, "")
        *found, self.options = ran.stdout.splitlines()
        return [word for word in found if word]

    def assert_completed(self, words: list[str], expected: list[str]) -> None:
        """Check what is offered; on a busy machine a search may come to its deadline, and is repeated."""
        deadline = time.monotonic() + 3 * PATIENCE
        found = sorted(self.complete(*words))
        while not found and expected and time.monotonic() < deadline:
            found = sorted(self.complete(*words))
        self.assertEqual(found, sorted(expected), words)

    def test_nodes(self) -> None:
        """Topics, hosts, methods, arguments and registered services are completed from what runs."""
        for host in ("h1", "h2"):
            command = [program("novasvc"), "run", "shop:Stock", "--host", host]
            Process(self, command, self.folder, **self.environment).wait_for(" describe stock")
        for words, expected in (
            (["ca"], ["call", "cast"]),
            (["call", ""], ["stock"]),
            (["cast", "st"], ["stock"]),
            (["ping", "s"], ["stock"]),
            (["describe", "s"], ["stock"]),
            (["stub", "s"], ["stock"]),
            (["call", "x"], []),
            (["call", "stock."], ["stock.h1", "stock.h2"]),
            (["call", "--server", "h"], ["h1", "h2"]),
            (["call", "stock", "re"], ["reserve", "reset"]),
            (["call", "stock.h2", "res"], ["reserve", "reset"]),
            (["call", "stock", "reserve", ""], ["item=", "amount=", "note="]),
            (["call", "stock", "reserve", "item", "=", "tea", ""], ["amount=", "note="]),
            (["call", "stock", "reserve", "item", "=", "tea", "am"], ["amount="]),
            (["call", "stock", "reserve", "item", "="], []),
            (["call", "stock", "reserve", "item", "=", "t"], []),
            (["call", "stock", "nothing", ""], []),
            (["call", "stok", "re"], []),
            (["service", "show", ""], ["h1", "h2", "1", "2"]),
            (["service", "show", "h1", ""], ["novasvc-stock"]),
            (["service", "list", "--host", "h"], ["h1", "h2"]),
            (["service", "show", "--binary", "n"], ["novasvc-stock"]),
        ):
            self.assert_completed(words, expected)
        self.assert_completed(["call", "stock", "reserve", "am"], ["amount="])
        self.assertEqual(self.options, "options:-o nospace")

    def test_workers(self) -> None:
        """Numbers of workers, and names of servers, are completed from the supervisor."""
        options = ["--host", "h1", "--workers", "2"]
        command = [program("novasvc"), "run", "shop:Stock", *options]
        Process(self, command, self.folder, **self.environment).wait_for("the supervisor is running")
        for words, expected in (
            (["drain", "--worker", ""], ["1", "2"]),
            (["dump", "--worker", "2"], ["2"]),
            (["workers", "set", "--server", ""], ["novasvc-stock"]),
        ):
            self.assert_completed(words, expected)

    @pytest.mark.long
    def test_nobody(self) -> None:
        """Where nothing can be asked, there are no candidates, no message, and no long wait."""
        commands = (
            ["call", ""],
            ["call", "stock", ""],
            ["call", "stock", "reserve", ""],
            ["service", "show", ""],
            ["drain", "--worker", ""],
        )
        for words in commands:
            self.assertEqual(self.complete(*words), [], words)
        self.assertFalse((self.folder / "state").exists())
        for environment in (
            {"NOVASVC_REPORT_INTERVAL": "never"},
            {"NOVASVC_TRANSPORT_URL": "amqp://127.0.0.1:1/"},
            {"NOVASVC_CONFIG": str(self.folder / "none.toml")},
        ):
            for words in commands:
                self.assertEqual(self.complete(*words, **environment), [], words)

    def test_silent(self) -> None:
        """A broker and a database that accept connections and say nothing hold nobody up for long."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            environment = {
                "NOVASVC_TRANSPORT_URL": f"amqp://127.0.0.1:{port}/",
                "NOVASVC_DATABASE_URL": f"postgresql://u:p@127.0.0.1:{port}/d",
            }
            for words in (["call", ""], ["call", "stock", ""]):
                begun = time.monotonic()
                self.assertEqual(self.complete(*words, **environment), [])
                self.assertLess(time.monotonic() - begun, 20)  # two seconds, and the start of a Python
