"""Requests over HTTP: WSGIService beside eventlet, gunicorn and twisted.web, all with one application.

wrk asks (Debian's package of that name), 32 connections, 3 KB of JSON. The servers take turns, each several
times, since a machine's speed varies; of each the median is told. Beside requests per second there is the
time of processors that an answer takes, which varies less.
"""

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import psutil

from tests.benchmarks.peers.process import LeftOutError

CONNECTIONS = 32
SLOW = 1000
PATIENCE = 30.0
NEEDS = MappingProxyType({"eventlet_wsgi": "eventlet", "gunicorn_sync": "gunicorn", "gunicorn_gthread": "gunicorn"})
SERVERS = (
    "novasvc",
    "novasvc_log",
    "eventlet_wsgi",
    "gunicorn_gthread",
    "gunicorn_sync",
    "twisted_wsgi",
    "klein_route",
    "klein_ours",
)
PARTS = ("servers", "workers", "slow", "rows")


def add_options(parser: ArgumentParser) -> None:
    """Add what the command line can say of this benchmark."""
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help=f"of {','.join(PARTS)}")
    parser.add_argument("--servers", type=lambda text: text.split(","), default=SERVERS, help="only these")
    parser.add_argument("--rounds", type=int, default=3, help="of all servers")
    parser.add_argument("--seconds", type=int, default=4, help="for one server in a round")


@attrs.frozen
class Load:
    """What wrk saw, and what it took.

    :param rate: requests per second.
    :param p50: seconds.
    :param p99: seconds.
    :param cpu: seconds of processors for a request; all processes of the server.
    """

    rate: float
    p50: float
    p99: float
    cpu: float


def measure(parts: Sequence[str], servers: Sequence[str], rounds: int, seconds: int) -> dict[str, float]:
    """Measure the servers that are installed; say on stderr which are not.

    :return: "http.SERVER.per_s", ".p50_ms", ".p99_ms", ".cpu_us" for a request; "http.ratio.SERVER": our requests per
        second over theirs; "http.workers.ratio": two workers over one; "http.slow.*": of /healthz, while a thousand
        connections send a byte now and then; "http.rows.*": os-services with 1,000 rows, pages of 20.
    :raises LeftOutError: there is no wrk.
    """
    if shutil.which("wrk") is None:
        raise LeftOutError("wrk is not installed: apt-get install wrk")
    figures = {"http.load_average_before": os.getloadavg()[0]}
    if "servers" in parts:
        figures |= _servers([name for name in servers if _is_there(name)], rounds, seconds)
    if "workers" in parts:
        figures |= _workers(rounds, seconds)
    if "slow" in parts:
        figures |= _slow(seconds)
    if "rows" in parts:
        figures |= _rows(rounds, seconds)
    return figures


def _is_there(name: str) -> bool:
    needed = NEEDS.get(name)
    if needed is None or find_spec(needed):
        return True
    _say(f"{name} is left out: pip install {needed}")
    return False


def _servers(names: Sequence[str], rounds: int, seconds: int) -> dict[str, float]:
    loads: dict[str, list[Load]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            with _serving(name, 1) as (port, process):
                loads[name].append(_load(f"http://127.0.0.1:{port}/", seconds, process))
            _say(f"{number + 1}/{rounds} {name}: {loads[name][-1].rate:.0f} requests/s")
    figures: dict[str, float] = {}
    for name, seen in loads.items():
        figures |= {f"http.{name}.{column}": value for column, value in _medians(seen).items()}
    for name in names:
        if name != "novasvc" and "novasvc" in names:
            ratios = [ours.rate / theirs.rate for ours, theirs in zip(loads["novasvc"], loads[name], strict=True)]
            figures[f"http.ratio.{name}"] = statistics.median(ratios)
    return figures


def _workers(rounds: int, seconds: int) -> dict[str, float]:
    rates: dict[int, list[Load]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, seen in rates.items():
            with _serving("novasvc", count) as (port, process):
                seen.append(_load(f"http://127.0.0.1:{port}/", seconds, process))
    ratios = [two.rate / one.rate for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "http.workers.one_per_s": statistics.median(load.rate for load in rates[1]),
        "http.workers.two_per_s": statistics.median(load.rate for load in rates[2]),
        "http.workers.ratio": statistics.median(ratios),
        "http.workers.one_cpu_us": 1e6 * statistics.median(load.cpu for load in rates[1]),
        "http.workers.two_cpu_us": 1e6 * statistics.median(load.cpu for load in rates[2]),
    }


def _slow(seconds: int) -> dict[str, float]:
    """Ask the API's /healthz, four connections at a time, beside a thousand that send a byte now and then."""
    with _api() as (port, process):
        url = f"http://127.0.0.1:{port}/healthz"
        free = _load(url, seconds, process, connections=4)
        slow = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(SLOW)]
        try:
            for client in slow:
                client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            asking = subprocess.Popen(_command(url, seconds, 4), stdout=subprocess.PIPE, text=True)
            while asking.poll() is None:
                for client in slow:
                    with suppress(OSError):
                        client.send(b"x")
                time.sleep(0.5)
            assert asking.stdout is not None
            held = _read(asking.stdout.read())
        finally:
            for client in slow:
                client.close()
    return {
        "http.slow.without_p99_ms": free.p99 * 1000,
        "http.slow.p50_ms": held[1] * 1000,
        "http.slow.p99_ms": held[2] * 1000,
        "http.slow.per_s": held[0],
    }


def _rows(rounds: int, seconds: int) -> dict[str, float]:
    """Ask for a page of 20 services, where there are 1,000."""
    with _api(rows=1000) as (port, process):
        url = f"http://127.0.0.1:{port}/v2.1/os-services?limit=20"
        loads = [_load(url, seconds, process) for _ in range(rounds)]
    return {f"http.rows.{column}": value for column, value in _medians(loads).items()}


def _medians(loads: Sequence[Load]) -> dict[str, float]:
    return {
        "per_s": statistics.median(load.rate for load in loads),
        "p50_ms": 1000 * statistics.median(load.p50 for load in loads),
        "p99_ms": 1000 * statistics.median(load.p99 for load in loads),
        "cpu_us": 1e6 * statistics.median(load.cpu for load in loads),
    }


@contextmanager
def _serving(name: str, workers: int) -> Iterator[tuple[int, psutil.Process]]:
    port = _free_port()
    command = [sys.executable, "-m", "tests.benchmarks.peers.http_servers", name, str(port), str(workers)]
    with _running(command, port) as process:
        yield port, process


@contextmanager
def _api(rows: int = 0) -> Iterator[tuple[int, psutil.Process]]:
    """Run the API by twistd, on a database of its own with that many services."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="novasvc-benchmark-") as folder:
        if rows:
            _fill(Path(folder), rows)
        twistd = str(Path(sys.executable).with_name("twistd"))
        options = ["--api", "--api-listen-port", str(port), "--state-dir", folder, "--transport-url", "memory:"]
        with _running([twistd, "-n", "--pidfile=", "novasvc", *options], port) as process:
            yield port, process


def _fill(folder: Path, rows: int) -> None:
    program = str(Path(sys.executable).with_name("novasvc"))
    environ = {**os.environ, "NOVASVC_STATE_DIR": str(folder)}
    subprocess.run([program, "db", "upgrade"], env=environ, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
    import sqlite3  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    with sqlite3.connect(folder / "novasvc.sqlite") as database:
        database.executemany(
            "INSERT INTO services (created_at, updated_at, deleted, host, binary, topic, report_count, disabled, "
            "last_seen_up, forced_down, version, uuid) VALUES (datetime('now'), datetime('now'), 0, ?, 'nova-compute', "
            "'compute', 1, 0, datetime('now'), 0, 1, ?)",
            [(f"host-{number:04}", str(uuid.uuid4())) for number in range(rows)],
        )
    database.close()


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[psutil.Process]:
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as popen:
        try:
            _wait(port, popen)
            yield psutil.Process(popen.pid)
        except BaseException:
            log.seek(0)
            _say(log.read()[-3000:].decode(errors="replace"))
            raise
        finally:
            popen.terminate()
            try:
                popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                popen.kill()


def _wait(port: int, popen: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and popen.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            client.settimeout(PATIENCE)
            if client.recv(1):
                return
        time.sleep(0.1)
    raise LeftOutError(f"nothing answers on port {port}")


def _load(url: str, seconds: int, process: psutil.Process, *, connections: int = CONNECTIONS) -> Load:
    subprocess.run(_command(url, 1, connections), check=True, capture_output=True, timeout=PATIENCE)
    before = _cpu(process)
    ran = subprocess.run(
        _command(url, seconds, connections), check=True, capture_output=True, text=True, timeout=seconds + PATIENCE
    )
    spent = _cpu(process) - before
    rate, p50, p99, count = _read(ran.stdout)
    return Load(rate, p50, p99, spent / count)


def _command(url: str, seconds: int, connections: int) -> list[str]:
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", url]


def _read(text: str) -> tuple[float, float, float, int]:
    """Read what wrk says: requests a second, p50 and p99 in seconds, requests in all."""
    if (bad := re.search(r"Non-2xx.*|Socket errors.*", text)) is not None:
        _say(f"wrk: {bad[0]}")
    unit = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

    def at(percent: str) -> float:
        found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)\b", text)
        assert found is not None, text
        return float(found[1]) * unit[found[2]]

    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    count = re.search(r"(\d+) requests in", text)
    assert rate is not None, text
    assert count is not None, text
    return float(rate[1]), at("50"), at("99"), max(1, int(count[1]))


def _cpu(process: psutil.Process) -> float:
    spent = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times: Any = one.cpu_times()
            spent += times.user + times.system
    return spent


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
