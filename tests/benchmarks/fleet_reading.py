"""How long it takes to read the services of a fleet: by the command, and by the API."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from tests.servers.process import end, spawn

PATIENCE = 60.0
REQUESTS = 1000
WARM_UP = 50
"""Requests before them that are not counted: the API's process has just begun to listen."""
EVERY = 0.02
"""Seconds from one request to the next: long enough in total for two of the page's own reads of the whole fleet."""
PAGE = 20
"""Services on a page of the API."""


def measure_reading(folder: Path, url: str) -> dict[str, float]:
    """Read what the database has.

    :param folder: for the logs and the state of the API's process.
    :param url: of the database.
    :return: "list_table_s", "list_json_s": seconds of ``novasvc service list``, the start of Python included, the
        median of three; "first_page_ms": milliseconds until the API, which has just begun to listen, has answered the
        first request for a page of PAGE services; "page_p50_ms", "page_p99_ms": the same of REQUESTS more over the same
        connection, one EVERY seconds, from the moment when it was due.
    """
    folder.mkdir()
    _list(folder, url, "table")  # compiles the modules, as an installation does
    return {
        "list_table_s": median(_list(folder, url, "table") for _ in range(3)),
        "list_json_s": median(_list(folder, url, "json") for _ in range(3)),
        **_pages(folder, url),
    }


def environment_of(**settings: str) -> dict[str, str]:
    """Return this process's environment with settings of novasvc, by their names in capitals.

    Compiled modules are kept beside STATE_DIR, for an environment that keeps none: an installation has them.
    """
    given = {f"NOVASVC_{name}": value for name, value in settings.items()}
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(settings["STATE_DIR"]).parent / "pyc")}
    return {**os.environ, **compiled, **given}


@contextmanager
def running_node(folder: Path, environment: Mapping[str, str], *options: str) -> Iterator[int]:
    """Run a node by twistd, and return its process's number when it runs; end it at the end."""
    twistd = str(Path(sys.executable).with_name("twistd"))
    process = spawn([twistd, "-n", "--pidfile=", "novasvc", *options], folder, environment)
    try:
        until = time.monotonic() + PATIENCE
        while "is running" not in (text := (folder / "stdout").read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(text)
            time.sleep(0.1)
        yield process.pid
    finally:
        end(process)


def _environment(folder: Path, url: str) -> dict[str, str]:
    return environment_of(DATABASE_URL=url, STATE_DIR=str(folder), TRANSPORT_URL="memory:")


def _list(folder: Path, url: str, form: str) -> float:
    began = time.monotonic()
    with (folder / "list").open("wb") as output:
        command = [str(Path(sys.executable).with_name("novasvc")), "service", "list", "-f", form]
        subprocess.run(command, env=_environment(folder, url), stdout=output, check=True, timeout=PATIENCE)
    return time.monotonic() - began


def _pages(folder: Path, url: str) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with running_node(folder, _environment(folder, url), "--api", "--api-listen-port", str(port)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        first = _page(connection)
        began = time.monotonic()
        took = [_page(connection, began + count * EVERY) for count in range(1, WARM_UP + REQUESTS + 1)][WARM_UP:]
        connection.close()
    percentiles = quantiles(took, n=100)
    return {"first_page_ms": 1000 * first, "page_p50_ms": 1000 * median(took), "page_p99_ms": 1000 * percentiles[98]}


def _page(connection: http.client.HTTPConnection, due: float | None = None) -> float:
    """Ask for a page, at a moment or now; return the seconds from that moment until it was read."""
    if due is None:
        due = time.monotonic()
    # A request that is late because the one before took long counts from when it was due, too.
    time.sleep(max(0.0, due - time.monotonic()))
    connection.request("GET", f"/v2.1/os-services?limit={PAGE}")
    response = connection.getresponse()
    body = response.read()
    if response.status != http.client.OK:
        raise AssertionError(body)
    return time.monotonic() - due
