"""Reloads under load: every request that is made meanwhile has to be answered."""

import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread

from tests.benchmarks.peers.launched import Launched, launched
from tests.benchmarks.peers.process import find_peer
from tests.servers.process import free_ports
from tests.servers.rabbitmq import Broker

WORKERS = 4
IN_FLIGHT = 16
MARGIN = 1.0
"""Seconds of load before a reload, and after the last one."""

REQUEST_TIMEOUT = 10.0
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Visitors:
    """Ask a web site for its page, one after another, each on a new connection.

    :param port: of 127.0.0.1.
    :ivar outcomes: "answered", or what went wrong -> how often.
    :ivar longest: seconds.
    """

    def __init__(self, port: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.longest = 0.0
        self._port = port
        self._over = Event()
        self._lock = Lock()
        self._threads = [Thread(target=self._visit, daemon=True) for _ in range(IN_FLIGHT)]

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """Have them come and go for a while."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(2 * REQUEST_TIMEOUT)

    def _visit(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            outcome = self._ask()
            with self._lock:
                self.outcomes[outcome] += 1
                self.longest = max(self.longest, time.monotonic() - began)

    def _ask(self) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self._port), REQUEST_TIMEOUT) as connection:
                connection.sendall(REQUEST)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            return type(error).__name__
        if not answer:
            return "closed without an answer"
        complete = answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n0\r\n\r\n")
        return "answered" if complete else "cut off"


def http(reloads: int) -> dict[str, float]:
    """Reload a web site under load.

    :return: "requests", "failed", "longest_ms", and "reload_s": from SIGHUP until no old worker is left.
    """
    (port,) = free_ports(1)
    with launched("novasvc_workers", "http", WORKERS, port) as site:
        site.wait_up(WORKERS)
        site.wait_ready(WORKERS)
        visitors = Visitors(port)
        with visitors.visiting():
            seconds = _reload(site, reloads)
    requests = visitors.outcomes.total()
    failed = requests - visitors.outcomes["answered"]
    if failed:
        print(f"HTTP requests during reloads: {dict(visitors.outcomes)}", file=sys.stderr)
    return {"requests": requests, "failed": failed, "longest_ms": visitors.longest * 1000, "reload_s": seconds}


def rpc(reloads: int) -> dict[str, float]:
    """Reload nodes that another process calls through a RabbitMQ of its own.

    :return: as of :func:`http`.
    """
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder) / "broker") as broker:
        url = broker.url(broker.new_vhost())
        with launched("novasvc_workers", "echo", WORKERS, environment={"NOVASVC_TRANSPORT_URL": url}) as nodes:
            nodes.wait_up(WORKERS)
            nodes.wait_ready(WORKERS)
            peer = find_peer("novasvc", Path(folder))
            with peer.running("load", url, IN_FLIGHT) as client:
                client.wait_ready()
                seconds = _reload(nodes, reloads)
                client.go_on()
                result = client.result()
                if result["failed"]:
                    print(f"calls during reloads:\n{client.complaints()}", file=sys.stderr)
    return {
        "requests": result["calls"],
        "failed": result["failed"],
        "longest_ms": result["longest_ms"],
        "reload_s": seconds,
    }


def _reload(program: Launched, reloads: int) -> float:
    """Reload some times; return the median of the seconds that it took."""
    seconds = []
    for _ in range(reloads):
        time.sleep(MARGIN)
        before = frozenset(row["pid"] for row in program.workers())
        began = time.monotonic()
        program.reload()
        program.wait_ready(WORKERS, other_than=before)
        seconds.append(time.monotonic() - began)
    time.sleep(MARGIN)
    return statistics.median(seconds)
