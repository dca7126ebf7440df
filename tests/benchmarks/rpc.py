"""Remote calls over one RabbitMQ: novasvc beside what else one could take.

Each peer echoes a small dict, client and server one process each, with 1, 64 and 256 calls in
flight. They take turns, in rounds, since a machine's speed varies: a figure is the median of its
rounds, a ratio the median of the rounds' ratios.

Not all do the same work; each module in ``peers`` says what its library does and leaves out. The
C program and pika move bare messages. aio-pika adds dispatch by name and publisher confirms.
oslo.messaging and novasvc, besides, the envelope, a context, versions, deadlines.
"""

import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import psutil

from tests.benchmarks.peers.process import LeftOutError, Peer, Running, find_peer
from tests.servers.rabbitmq import Broker

PEERS = ("novasvc", "oslo_messaging", "pika", "aio_pika", "librabbitmq")
OURS = "novasvc"
IN_FLIGHT = (1, 64, 256)
CAST_IN_FLIGHT = 64
BACKLOG = 100_000
WARM_UP = 1.5

COLUMNS = ("calls_per_s", "p50_ms", "p99_ms", "cpu_us", "broker_cpu_us", "client_mib", "server_mib")

Point = dict[str, float]
"""What one round measured of one peer with one number of calls in flight: COLUMNS, or "casts_per_s"."""


def add_options(parser: ArgumentParser) -> None:
    """Add what the command line can say of this benchmark."""
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each point, after a warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="of all points; medians are shown")
    parser.add_argument("--peers", type=_names, default=PEERS, help="only these, with commas between")


def _names(text: str) -> Sequence[str]:
    names = text.split(",")
    if not set(names) <= set(PEERS):
        raise ValueError
    return names


def measure(seconds: float, rounds: int, peers: Sequence[str]) -> dict[str, float]:
    """Measure the peers that are installed; say on stderr which are not.

    :param seconds: for each point.
    :param rounds: how often, > 0.
    :param peers: of :data:`PEERS`.
    :return: "rpc.PEER.cN.COLUMN" for N calls in flight: calls_per_s, p50_ms, p99_ms, cpu_us
        (processor time per call, client and server together), broker_cpu_us, client_mib and
        server_mib (resident after the warm-up). "rpc.ratio.PEER.cN": our calls per second over the peer's; with
        ".p50", ".p99" or ".cpu": ours over theirs, where less is better. "rpc.novasvc.casts_per_s",
        and "rpc.ratio.casts.c64" over calls. "rpc.novasvc.backlog_growth_mib".
    """
    figures = {"rpc.load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder) / "broker") as broker:
        bench = Bench(broker, list(_find(peers, Path(folder))), seconds)
        measured = [bench.round(f"{number + 1} of {rounds}") for number in range(rounds)]
        for place in measured[0]:
            for column in measured[0][place]:
                figures[f"rpc.{place}.{column}"] = statistics.median(points[place][column] for points in measured)
        if OURS in peers:
            figures |= _ratios(measured)
            figures[f"rpc.{OURS}.backlog_growth_mib"] = bench.backlog_growth()
    return figures


def _find(names: Sequence[str], folder: Path) -> Iterator[Peer]:
    for name in names:
        try:
            yield find_peer(name, folder)
        except LeftOutError as error:
            print(error, file=sys.stderr)


@attrs.define
class Bench:
    """Peers around one broker.

    :param broker: runs; each measurement has a vhost of its own.
    :param peers: in the order of their turns.
    :param seconds: for each point.
    """

    broker: Broker
    peers: Sequence[Peer]
    seconds: float

    def round(self, title: str) -> dict[str, Point]:
        """Measure each point once; return "PEER.cN" -> point, and our casts under "novasvc"."""
        points: dict[str, Point] = {}
        for in_flight in IN_FLIGHT:
            for peer in self.peers:
                print(f"round {title}: {peer.name}, {in_flight} in flight", file=sys.stderr)
                points[f"{peer.name}.c{in_flight}"] = self._calls(peer, in_flight)
        for peer in self.peers:
            if peer.name == OURS:
                points[OURS] = {"casts_per_s": self._casts(peer)}
        return points

    @contextmanager
    def _vhost(self) -> Iterator[str]:
        vhost = self.broker.new_vhost()
        try:
            yield self.broker.url(vhost)
        finally:
            self.broker.delete(vhost)

    def _calls(self, peer: Peer, in_flight: int) -> Point:
        # A call before its server was ever there is lost: one starts after the other is ready.
        with (
            self._vhost() as url,
            _ready(peer, "serve", url) as server,
            _ready(peer, "call", url, in_flight, WARM_UP, self.seconds) as client,
        ):
            memory = client.resident_mib(), server.resident_mib()
            before = self._cpu_seconds(), client.cpu_seconds() + server.cpu_seconds()
            result = client.result()
            after = self._cpu_seconds(), client.cpu_seconds() + server.cpu_seconds()
            calls = result["calls"]
            return {
                "calls_per_s": calls / result["seconds"],
                "p50_ms": result["p50_ms"],
                "p99_ms": result["p99_ms"],
                "cpu_us": (after[1] - before[1]) / calls * 1e6,
                "broker_cpu_us": (after[0] - before[0]) / calls * 1e6,
                "client_mib": memory[0],
                "server_mib": memory[1],
            }

    def _cpu_seconds(self) -> float:
        times = psutil.Process(self.broker.pid).cpu_times()
        return times.user + times.system

    def _casts(self, peer: Peer) -> float:
        """Count a cast when the server has run it."""
        with (
            self._vhost() as url,
            _ready(peer, "serve", url),
            _ready(peer, "cast", url, CAST_IN_FLIGHT, self.seconds) as client,
        ):
            result = client.result()
            return result["casts"] / result["seconds"]

    def backlog_growth(self) -> float:
        """Have a server meet a long queue; return by how many MiB its memory grew at most."""
        peer = next(peer for peer in self.peers if peer.name == OURS)
        with self._vhost() as url:
            with _ready(peer, "serve", url):
                pass  # the queue is there
            with _ready(peer, "fill", url, BACKLOG):
                pass
            with _ready(peer, "serve_later", url) as server, _ready(peer, "drain", url, BACKLOG) as client:
                before = most = server.resident_mib()
                server.go_on()
                client.go_on()
                while not client.has_ended():
                    most = max(most, server.resident_mib())
                    time.sleep(0.02)
                client.result()
                return most - before


@contextmanager
def _ready(peer: Peer, role: str, *words: object) -> Iterator[Running]:
    with peer.running(role, *words) as process:
        process.wait_ready()
        yield process


def _ratios(rounds: Sequence[dict[str, Point]]) -> dict[str, float]:
    ratios: dict[str, list[float]] = {}
    for points in rounds:
        for place, theirs in points.items():
            peer, _, in_flight = place.partition(".")
            if peer == OURS:
                continue
            ours = points[f"{OURS}.{in_flight}"]
            name = f"rpc.ratio.{place}"
            for suffix, column in (("", "calls_per_s"), (".p50", "p50_ms"), (".p99", "p99_ms"), (".cpu", "cpu_us")):
                ratios.setdefault(name + suffix, []).append(ours[column] / theirs[column])
        calls = points[f"{OURS}.c{CAST_IN_FLIGHT}"]["calls_per_s"]
        ratios.setdefault(f"rpc.ratio.casts.c{CAST_IN_FLIGHT}", []).append(points[OURS]["casts_per_s"] / calls)
    return {name: statistics.median(values) for name, values in ratios.items()}


def show(figures: dict[str, float]) -> None:
    """Print a table of the points, and what has no place in it below."""
    table: dict[str, dict[str, float]] = {}
    rest: dict[str, float] = {}
    for name, value in figures.items():
        place, _, column = name.removeprefix("rpc.").rpartition(".")
        if column in COLUMNS:
            table.setdefault(place, {})[column] = value
        else:
            rest[name] = value
    print(f"{'':20}" + "".join(f"{column:>14}" for column in COLUMNS))
    for place, row in table.items():
        print(f"{place:20}" + "".join(f"{row[column]:14,.2f}" for column in COLUMNS))
    print()
    for name, value in rest.items():
        print(f"{name:36}{value:12,.2f}")
