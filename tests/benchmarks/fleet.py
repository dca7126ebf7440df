"""Heartbeats of thousands of nodes, through conductors, into one database.

Conductors are processes of their own, as in production. The nodes are simulated in the benchmark's process: each
sends its heartbeat once in an interval, at a moment of its own, over one connection to one RabbitMQ, and the time
counts until it is answered, when it is durable. "core" is a share of a processor core.
"""

import os
import random
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
import sqlalchemy
from sqlalchemy import insert
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from novasvc.config.transport_url import BrokerAddress
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.remote import RemoteRegistry
from novasvc.registry.sql import migrate
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.schema import incarnations, services
from novasvc.rpc import Client
from novasvc.rpc.errors import RPCError
from novasvc.run.process_tree import tune_garbage_collector
from novasvc.testing.servers import database as new_database
from novasvc.transport.amqp import AMQPTransport
from tests.benchmarks.fleet_reading import environment_of, measure_reading, running_node
from tests.servers.databases import DatabaseServer, MariaDB, PostgreSQL
from tests.servers.rabbitmq import Broker

DATABASES = {"postgresql": PostgreSQL, "mariadb": MariaDB, "sqlite": None}
CHUNK = 0.01
"""Seconds: the heartbeats that are due in it are sent together."""


def add_options(parser: ArgumentParser) -> None:
    """Add what the command line can say of this benchmark."""
    parser.add_argument("--nodes", type=_numbers, default=[2_000, 10_000], help="how many, with commas between")
    parser.add_argument("--conductors", type=int, default=1, help="processes")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between a node's heartbeats")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="to measure each number of nodes, after an interval"
    )
    parser.add_argument("--database", choices=sorted(DATABASES), default="postgresql")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def measure(nodes: Sequence[int], conductors: int, interval: float, seconds: float, database: str) -> dict[str, float]:
    """Measure.

    :return: "fleet.<nodes>.": "beats_per_s", "p50_ms", "p99_ms", "failed", "conductor_core", "database_core",
        "broker_core"; "fleet.registrations_per_s"; "fleet.<greatest number of nodes>." and what
        :func:`~tests.benchmarks.fleet_reading.measure_reading` returns.
    """
    tune_garbage_collector()  # As a node's process does. Otherwise the collector takes most of the time of many beats.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="novasvc-fleet-")))
        broker = stack.enter_context(Broker(folder / "broker"))
        url, server = stack.enter_context(_database(database, folder))
        migrate.create(url)
        ids = _fill(url, max(nodes))
        reading = measure_reading(folder / "reading", url)
        running = [stack.enter_context(_conductor(folder / f"c{number}", broker, url)) for number in range(conductors)]
        figures = _run(Deferred.fromCoroutine(_measure(broker, server, running, ids, nodes, interval, seconds)))
        return figures | {f"fleet.{max(nodes)}.{name}": value for name, value in reading.items()}


@contextmanager
def _database(name: str, folder: Path) -> Iterator[tuple[str, DatabaseServer | None]]:
    kind = DATABASES[name]
    if kind is None:
        yield f"sqlite:///{folder}/fleet.sqlite", None
        return
    with kind(folder / name, durable=True) as server, new_database(server.url(server.system)) as url:
        yield url, server


def _fill(url: str, number: int) -> list[int]:
    """Write the rows of that many nodes; return their ids."""
    engine = DatabaseAddress.parse(url).make_engine(connections=1, wait_timeout=60.0)
    row: dict[str, Any] = dict.fromkeys(services.c.keys())
    row |= {"binary": "novasvc-agent", "topic": "agent", "report_count": 0, "disabled": False, "deleted": 0}
    row |= {"forced_down": False, "version": 0}
    del row["id"]
    with engine.begin() as connection:
        rows = [
            {**row, "host": f"h{count}", "uuid": f"{count:08x}-0000-4000-8000-000000000000"} for count in range(number)
        ]
        connection.execute(insert(services), rows)
        ids = list(connection.execute(sqlalchemy.select(services.c.id)).scalars())
        since = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
        start = {"binary": row["binary"], "number": 1, "owner": "", "state": "ready", "since": since, "calls": 0}
        start |= {"machine": "", "pid": 0, "started_at": since, "tags": "[]"}
        starts = [
            {**start, "service_id": service_id, "host": host}
            for service_id, host in connection.execute(sqlalchemy.select(services.c.id, services.c.host))
        ]
        connection.execute(insert(incarnations), starts)
    engine.dispose()
    return ids


@contextmanager
def _conductor(folder: Path, broker: Broker, url: str) -> Iterator[psutil.Process]:
    folder.mkdir()
    environment = environment_of(TRANSPORT_URL=broker.url(), DATABASE_URL=url, HOST=folder.name, STATE_DIR=str(folder))
    with running_node(folder, environment, "--topic", "conductor") as pid:
        yield psutil.Process(pid)


def _run(work: Deferred[dict[str, float]]) -> dict[str, float]:
    outcome: list[Any] = []

    def ended(result: Any) -> None:
        outcome.append(result)
        reactor.callLater(0, reactor.stop)

    work.addBoth(ended)
    reactor.run()
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]  # type: ignore[no-any-return]


async def _measure(
    broker: Broker,
    server: DatabaseServer | None,
    conductors: Sequence[psutil.Process],
    ids: Sequence[int],
    numbers: Sequence[int],
    interval: float,
    seconds: float,
) -> dict[str, float]:
    figures = {"fleet.load_average_before": os.getloadavg()[0]}
    transport = AMQPTransport(BrokerAddress.parse(broker.url()), reactor=reactor)
    await transport.open()
    registry = RemoteRegistry(Client(transport, clock=reactor))
    processes = {"conductor": conductors, "broker": [psutil.Process(broker.pid)]}
    if server is not None:
        processes["database"] = [psutil.Process(server.pid)]
    for number in numbers:
        beats = Beats(registry, ids[:number], interval)
        beats.start()
        await deferLater(reactor, interval)
        beats.begin()
        before = {name: _used(these) for name, these in processes.items()}
        await deferLater(reactor, seconds)
        after = {name: _used(these) for name, these in processes.items()}
        took = beats.answered
        await beats.stop()
        percentiles = quantiles(took, n=100)
        figures |= {
            f"fleet.{number}.beats_per_s": len(took) / seconds,
            f"fleet.{number}.p50_ms": 1000 * percentiles[49],
            f"fleet.{number}.p99_ms": 1000 * percentiles[98],
            f"fleet.{number}.failed": beats.failed,
            **{f"fleet.{number}.{name}_core": (after[name] - before[name]) / seconds for name in processes},
        }
    figures["fleet.registrations_per_s"] = await _registrations(registry)
    await registry.close()
    await transport.close()
    return figures


def _used(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time of processes and their children, in seconds."""
    found = [each for process in processes for each in (process, *process.children(recursive=True))]
    return sum(times.user + times.system for times in (each.cpu_times() for each in found))


async def _registrations(registry: RemoteRegistry, number: int = 4_000, at_once: int = 256) -> float:
    """Begin the first starts of new services, so many at a time; return how many a second."""
    began = time.monotonic()
    waiting = iter(range(number))

    async def some() -> None:
        for count in waiting:
            start = ServiceStart(
                host=f"new{count}", binary="novasvc-new", topic="new", version=0, owner=str(count), machine="m"
            )
            await registry.begin(start)

    await DeferredList([Deferred.fromCoroutine(some()) for _ in range(at_once)], fireOnOneErrback=True)
    return number / (time.monotonic() - began)


class Beats:
    """Sends the heartbeats of simulated nodes.

    :param ids: of their rows.
    :param interval: seconds between two heartbeats of a node.
    :ivar answered: seconds from each heartbeat to its answer, since :meth:`begin`.
    """

    def __init__(self, registry: RemoteRegistry, ids: Sequence[int], interval: float) -> None:
        self.answered: list[float] = []
        self.failed = 0
        self._registry = registry
        self._interval = interval
        order = random.Random(0)
        self._due = sorted((order.uniform(0, interval), service_id) for service_id in ids)
        self._next = 0
        self._began = 0.0
        self._waiting = 0
        self._idle: Deferred[None] | None = None
        self._loop = LoopingCall(self._send_due)

    def start(self) -> None:
        """Send from now on."""
        self._began = reactor.seconds()
        self._loop.start(CHUNK).addErrback(lambda failure: failure.printTraceback())

    def begin(self) -> None:
        """Forget what was measured until now."""
        self.answered, self.failed = [], 0

    async def stop(self) -> None:
        """Send no more, and wait for the answers."""
        self._loop.stop()
        if self._waiting:
            self._idle = Deferred()
            await self._idle

    def _send_due(self) -> None:
        now = reactor.seconds() - self._began
        while True:
            turn, place = divmod(self._next, len(self._due))
            moment, service_id = self._due[place]
            due = turn * self._interval + moment
            if due > now:
                return
            self._next += 1
            self._waiting += 1
            # From the moment it was due: a sender that falls behind must not make the figures look better.
            self._registry.beat(service_id, 1).addCallbacks(self._answered, self._refused, callbackArgs=(due,)).addBoth(
                self._done
            )

    def _answered(self, _: None, due: float) -> None:
        self.answered.append(reactor.seconds() - self._began - due)

    def _refused(self, failure: Failure) -> None:
        self.failed += 1
        if not failure.check(RPCError) and self.failed == 1:
            print(failure.getErrorMessage(), file=sys.stderr)

    def _done(self, _: None) -> None:
        self._waiting -= 1
        if self._idle is not None and not self._waiting:
            self._idle.callback(None)
