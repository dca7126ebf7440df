"""The API with a table of services in SQLite, for who measures it."""

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

PAGE = "v2.1/os-services?limit=20"
"""What is asked for, after the address of :func:`serve`."""
PATIENCE = 30.0
"""Seconds for a start."""

_INSERT = """
INSERT INTO services (uuid, host, binary, topic, disabled, forced_down, report_count, created_at, updated_at,
                      last_seen_up, version, deleted)
VALUES (?, ?, 'novasvc-agent', 'agent', 0, 0, 1, :now, :now, :now, 1, 0)
""".replace(":now", "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'")


@contextmanager
def serve(rows: int = 1000, log: str = "twistd.log") -> Iterator[str]:
    """Run ``twistd novasvc --api`` in one process, with an SQLite file of this many services.

    :param log: where its log goes, in a directory of its own.
    :return: gives the address: "http://127.0.0.1:PORT/".
    """
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "novasvc", "--api"]
        command += ["--api-listen-port", "0", "--host", "bench", "--state-dir", directory]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NOVASVC_")}
        with (state / log).open("w") as output:
            process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
        try:
            address = _wait_for(process, state / log)
            with closing(sqlite3.connect(state / "novasvc.sqlite", timeout=PATIENCE)) as database, database:
                database.executemany(_INSERT, ((str(uuid.uuid4()), f"host-{number:05}") for number in range(1, rows)))
            yield address
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _wait_for(process: subprocess.Popen[bytes], log: Path) -> str:
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.1)):
        text = log.read_text()
        found = re.search(r"page +(http://\S+)", text)
        if found is not None and "is running" in text:
            return found[1]
        if process.poll() is not None:
            break
        pause.wait(0.1)
    message = f"the API did not start:\n{log.read_text()}"
    raise RuntimeError(message)
