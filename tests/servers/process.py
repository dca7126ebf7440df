"""Processes and ports of the servers."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import unittest
from collections.abc import Mapping, Sequence
from pathlib import Path


def free_ports(number: int) -> list[int]:
    """Find ports of 127.0.0.1 that nobody listens at.

    Below 32768: a client that tries a closed port of the ephemeral range again and again can be
    given that port as its own, and connect to itself.
    """
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < number:
            candidate = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", random.randint(15_000, 32_000)))
                ports.append(candidate.getsockname()[1])
        return ports


def missing(what: str) -> Exception:
    """Return what to raise where a server is not installed: CI has to have it, a person may do without.

    :param what: the server and how to get it, as one clause.
    """
    problem = f"not installed: {what}"
    return RuntimeError(problem) if os.environ.get("CI") else unittest.SkipTest(problem)


def spawn(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server; what it prints goes to ``stdout`` in its directory.

    It is killed when the thread that called this ends, however that came about, so that nothing
    stays behind a suite that was killed. So the main thread has to call this.
    """
    if shutil.which("setpriv") is not None:
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    with (directory / "stdout").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL, patience: float = 20.0) -> None:
    """Send a signal to a process that may have ended, and wait until it has; past the patience it is killed."""
    process.send_signal(number)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(patience)
