"""How long it takes to read the services of a fleet: by the command, and by the API."""

import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

from tests.servers.process import end, spawn

PATIENCE = 60.0
REQUESTS = 200
PAGE = 20
"""Services on a page of the API."""


def measure_reading(folder: Path, url: str) -> dict[str, float]:
    """Read what the database has.

    :param folder: for the logs and the state of the API's process.
    :param url: of the database.
    :return: "list_table_s", "list_json_s": seconds of ``novasvc service list``, the start of Python included, the
        median of three; "page_p50_ms", "page_p99_ms": milliseconds until the API has answered with a page of PAGE
        services, REQUESTS one after the other over one connection.
    """
    folder.mkdir()
    return {
        "list_table_s": median(_list(folder, url, "table") for _ in range(3)),
        "list_json_s": median(_list(folder, url, "json") for _ in range(3)),
        **_pages(folder, url),
    }


def _environment(folder: Path, url: str) -> dict[str, str]:
    settings = {"DATABASE_URL": url, "STATE_DIR": str(folder), "TRANSPORT_URL": "memory:"}
    return {**os.environ, **{f"NOVASVC_{name}": value for name, value in settings.items()}}


def _list(folder: Path, url: str, form: str) -> float:
    began = time.monotonic()
    with (folder / "list").open("wb") as output:
        command = [str(Path(sys.executable).with_name("novasvc")), "service", "list", "-f", form]
        subprocess.run(command, env=_environment(folder, url), stdout=output, check=True, timeout=PATIENCE)
    return time.monotonic() - began


def _pages(folder: Path, url: str) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    twistd = str(Path(sys.executable).with_name("twistd"))
    options = ["--api", "--api-listen-port", str(port)]
    process = spawn([twistd, "-n", "--pidfile=", "novasvc", *options], folder, _environment(folder, url))
    try:
        until = time.monotonic() + PATIENCE
        while "is running" not in (text := (folder / "stdout").read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(text)
            time.sleep(0.1)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        took = sorted(_page(connection) for _ in range(REQUESTS))
        connection.close()
        return {"page_p50_ms": 1000 * median(took), "page_p99_ms": 1000 * quantiles(took, n=100)[98]}
    finally:
        end(process)


def _page(connection: http.client.HTTPConnection) -> float:
    began = time.monotonic()
    connection.request("GET", f"/v2.1/os-services?limit={PAGE}")
    response = connection.getresponse()
    body = response.read()
    if response.status != http.client.OK:
        raise AssertionError(body)
    return time.monotonic() - began
