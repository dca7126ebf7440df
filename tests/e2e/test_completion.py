"""Tests for shell completion, with a real bash and real nodes."""

import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
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
LOAD = """
source <(novasvc completion bash)
compopt() { options="$1 $2"; }
"""
COMPLETE = """
options= COMPREPLY=() COMP_WORDS=(WORDS)
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

    def complete_all(self, lines: Sequence[Sequence[str]], **environment: str) -> list[list[str]]:
        """Return what one bash offers for each line, without a word on standard error."""
        given = {**unmeasured("NOVASVC_"), **self.environment, **environment}
        given["PATH"] = f"{self.folder}/bin:{given['PATH']}"
        script = LOAD + "".join(COMPLETE.replace("(WORDS)", f"({shlex.join(['novasvc', *words])})") for words in lines)
        patience = PATIENCE * len(lines)
        ran = subprocess.run(
            ["bash", "--norc", "-c", script], env=given, capture_output=True, text=True, timeout=patience, check=False
        )
        self.assertEqual(ran.stderr, "")
        offered: list[list[str]] = [[]]
        self.options = []
        for word in ran.stdout.splitlines():
            if word.startswith("options:"):
                self.options.append(word.removeprefix("options:"))
                offered.append([])
            elif word:
                offered[-1].append(word)
        return offered[:-1]

    def complete(self, *words: str, **environment: str) -> list[str]:
        """Return what bash offers for one line."""
        (offered,) = self.complete_all([words], **environment)
        return offered

    def assert_completed(self, expected: Sequence[tuple[list[str], list[str]]]) -> None:
        """Check what is offered; on a busy machine a search may come to its deadline, and is repeated."""
        for (words, wanted), offered in zip(expected, self.complete_all([words for words, _ in expected]), strict=True):
            found, deadline = offered, time.monotonic() + 3 * PATIENCE
            while not found and wanted and time.monotonic() < deadline:
                found = self.complete(*words)
            self.assertEqual(sorted(found), sorted(wanted), words)

    @pytest.mark.long
    def test_nodes(self) -> None:
        """Topics, hosts, methods, arguments and registered services are completed from what runs."""
        for host in ("h1", "h2"):
            command = [program("novasvc"), "run", "shop:Stock", "--host", host]
            Process(self, command, self.folder, **self.environment).wait_for(" describe stock")
        expected = [
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
        ]
        self.assert_completed(expected)
        self.assert_completed([(["call", "stock", "reserve", "am"], ["amount="])])
        self.assertEqual(self.options, ["-o nospace"])

    def test_workers(self) -> None:
        """Numbers of workers, and names of servers, are completed from the supervisor."""
        options = ["--host", "h1", "--workers", "2"]
        command = [program("novasvc"), "run", "shop:Stock", *options]
        Process(self, command, self.folder, **self.environment).wait_for("the supervisor is running")
        expected = [
            (["drain", "--worker", ""], ["1", "2"]),
            (["dump", "--worker", "2"], ["2"]),
            (["workers", "set", "--server", ""], ["novasvc-stock"]),
        ]
        self.assert_completed(expected)

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
        self.assertEqual(self.complete_all(commands), [[]] * len(commands))
        self.assertFalse((self.folder / "state").exists())
        for environment in (
            {"NOVASVC_REPORT_INTERVAL": "never"},
            {"NOVASVC_TRANSPORT_URL": "amqp://127.0.0.1:1/"},
            {"NOVASVC_CONFIG": str(self.folder / "none.toml")},
        ):
            self.assertEqual(self.complete_all(commands, **environment), [[]] * len(commands))

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
