"""What Erlang nodes that know each other share: a cookie and a port mapper, epmd, of their own."""

import os
import re
import secrets
import socket
import subprocess
import time
from pathlib import Path

from tests.servers.installation import Installation
from tests.servers.process import end, free_ports, missing, spawn

PATIENCE = 30.0
CONNECTING = 5.0
"""Seconds in which a node has to be reached; on a busy machine it now and then fails at once."""


class ErlangError(Exception):
    """An expression that failed on a node."""


class Site:
    """A directory for nodes.

    :param directory: is made, for its owner only.
    :param installation: where Erlang is.
    """

    def __init__(self, directory: Path, installation: Installation) -> None:
        self.directory = directory
        self.installation = installation
        self._home = directory / "home"
        self._home.mkdir(mode=0o700, parents=True)
        directory.chmod(0o700)
        self._cookie = secrets.token_hex(20)
        cookie = self._home / ".erlang.cookie"
        cookie.touch(0o600)
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        (self._epmd_port,) = free_ports(1)
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For every program that has to do with the nodes; settings of a system's own broker are left out."""
        strange = ("RABBITMQ_", "ERL_", "NOTIFY_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        return inherited | {
            "HOME": str(self._home),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
        }

    def start(self) -> None:
        """Start the port mapper; once it runs, again is no error."""
        if self._epmd is not None:
            return
        arguments = ["-port", str(self._epmd_port), "-address", "127.0.0.1"]
        command = self.installation.command(["/usr/bin/epmd", *arguments], self.directory)
        self._epmd = spawn(command, self.directory, self.environment)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._epmd_port), 1).close()
            except OSError:
                if self._epmd.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def end(self) -> None:
        """Kill the port mapper."""
        if self._epmd is not None:
            end(self._epmd)
            self._epmd = None

    def evaluate(self, node: str, expression: str) -> str:
        """Evaluate an expression on a node; return its value as Erlang writes it. Takes 20 ms.

        :raises ErlangError: it raised, or the node cannot be reached.
        """
        deadline = time.monotonic() + CONNECTING
        while True:
            done = subprocess.run(
                [*self._erl_call(), "-r", "-sname", node, "-c", self._cookie, "-e"],
                input=f"{expression}\n".encode(),
                capture_output=True,
                env=self.environment,
                timeout=PATIENCE,
                check=False,
            )
            # Who could not connect has evaluated nothing, and may ask again.
            if b"failed to connect" not in done.stderr or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        output = done.stdout.decode().strip()
        value = re.fullmatch(r"\{ok, (.*)\}", output, re.DOTALL)
        if value is None:
            raise ErlangError(f"{expression!r} at {node}: {output} {done.stderr.decode().strip()}")
        return value[1]

    def _erl_call(self) -> list[str]:
        found = self.installation.find("/usr/lib/erlang/erts-*/bin/erl_call")
        if not found:
            raise missing("erl_call, a part of Erlang; apt-get install erlang-base")
        return self.installation.command([str(found[0])], self.directory)


def binary(text: str) -> str:
    """Write a text as an Erlang binary, of bytes: erl_call reads Latin-1."""
    return f"<<{','.join(map(str, text.encode()))}>>"
