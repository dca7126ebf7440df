"""What a node costs: to start, to keep, to call, to have many tasks.

Beside it, in the same run, a bare `twistd` with an application that does nothing, and the same
tasks on bare LoopingCalls: what Twisted itself takes.
"""

import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

STARTS = 5
IDLE_SECONDS = 30.0
PATIENCE = 60.0

TWISTD = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]
EMPTY = "from twisted.application.service import Application\napplication = Application('empty')\n"


def measure() -> dict[str, float]:
    """Measure a node.

    :return: seconds ("_s"), MiB, percent of one processor, calls per second, milliseconds; and
        ratios to bare Twisted, less is better.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        first = [_seconds_to_heartbeat(work / f"first{number}") for number in range(STARTS)]
        again = [_seconds_to_heartbeat(work / "first0") for _ in range(STARTS)]
        node = _idle_node(work / "first0")
        bare = _idle_bare(work)
    calls = _on_reactor("memory_rpc")
    tasks = _on_reactor("periodic_tasks")
    return {
        "node.start.first_run_s": statistics.median(first),
        "node.start.again_s": statistics.median(again),
        "node.idle.rss_mib": node["rss_mib"],
        "node.idle.cpu_percent": node["cpu_percent"],
        "node.ratio.bare_twistd.rss": node["rss_mib"] / bare["rss_mib"],
        "node.rpc.memory.calls_per_s": calls["calls/s, plain methods"],
        "node.rpc.memory.coroutine_calls_per_s": calls["calls/s, coroutines"],
        "node.tasks.spread.lateness_p50_ms": tasks["spread_p50_ms"],
        "node.tasks.spread.lateness_p99_ms": tasks["spread_p99_ms"],
        "node.tasks.herd.lateness_p99_ms": tasks["herd_p99_ms"],
        "node.tasks.bare_loopingcalls.lateness_p99_ms": tasks["bare_p99_ms"],
        "node.ratio.bare_loopingcalls.cpu_per_run": tasks["herd_cost"],
    }


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        # An installed node finds its byte code; where it may not be kept, a start is mostly compiling.
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def _node(folder: Path) -> list[str]:
    return [*TWISTD, "novasvc", "--state-dir", str(folder)]


def _seconds_to_heartbeat(folder: Path) -> float:
    """Start a node; return the seconds from the start of its process to its first heartbeat."""
    before = _report_count(folder)
    began = time.monotonic()
    with _running(_node(folder), folder) as process:
        while _report_count(folder) == before:
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.005)
        return time.monotonic() - began


def _report_count(folder: Path) -> int:
    database = folder / "novasvc.sqlite"
    if not database.exists():
        return 0
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return sum(count for (count,) in connection.execute("SELECT report_count FROM services"))
    except sqlite3.OperationalError:  # the table is being made
        return 0
    finally:
        connection.close()


def _idle_node(folder: Path) -> dict[str, float]:
    before = _report_count(folder)
    with _running(_node(folder), folder) as process:
        while _report_count(folder) == before:
            time.sleep(0.05)
        return _idle(process)


def _idle_bare(folder: Path) -> dict[str, float]:
    (folder / "empty.tac").write_text(EMPTY)
    with _running([*TWISTD, "-y", str(folder / "empty.tac")], folder) as process:
        return _idle(process)


def _idle(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Leave a process alone, and see what it takes: heartbeats and tasks of half a minute."""
    time.sleep(3)
    watched = psutil.Process(process.pid)
    before = watched.cpu_times()
    time.sleep(IDLE_SECONDS)
    after = watched.cpu_times()
    busy = after.user - before.user + after.system - before.system
    return {"rss_mib": watched.memory_info().rss / 2**20, "cpu_percent": busy / IDLE_SECONDS * 100}


def _on_reactor(name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.on_reactor", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
