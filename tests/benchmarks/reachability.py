"""What it costs that nodes prove, once in an interval, that messages reach them.

Nodes that share a topic verify at the same time, in rounds, over one RabbitMQ. The figures are of one verification: one
node, one interval. Bytes are counted by the broker, on both connections, frames and acknowledgements included.
"""

import os
import re
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import psutil
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from novasvc.config.transport_url import BrokerAddress
from novasvc.interfaces import IDelivery
from novasvc.rpc.baseapi import write_ping
from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport
from tests.servers.rabbitmq import Broker

PATIENCE = 60.0
FLEET, INTERVAL = 10_000, 10.0
"""Nodes, and seconds, that the figures are extrapolated to."""


def add_options(parser: ArgumentParser) -> None:
    """Add what the command line can say of this benchmark."""
    parser.add_argument("--nodes", type=int, default=50, help="that share a topic, in one process")
    parser.add_argument("--rounds", type=int, default=20, help="of verifications, an even number")


def measure(nodes: int, rounds: int) -> dict[str, float]:
    """Measure.

    :return: "reachability.": "bytes_to_broker", "bytes_from_broker", "broker_cpu_us", "node_cpu_us" of one
        verification; "fleet.messages_per_s", "fleet.mbit_per_s", "fleet.broker_cores" of FLEET nodes every INTERVAL.
    """
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder) / "broker") as broker:
        return _run(Deferred.fromCoroutine(_measure(broker, nodes, rounds)))


def _run(work: Deferred[dict[str, float]]) -> dict[str, float]:
    outcome: list[Any] = []

    def end(result: Any) -> None:
        outcome.append(result)
        reactor.callLater(0, reactor.stop)

    work.addBoth(end)
    reactor.run()
    if not isinstance(outcome[0], dict):
        outcome[0].raiseException()
    return outcome[0]  # type: ignore[no-any-return]


async def _measure(broker: Broker, nodes: int, rounds: int) -> dict[str, float]:
    transports, listeners = [], []
    for number in range(nodes):
        transport = AMQPTransport(BrokerAddress.parse(broker.url()), reactor=reactor)
        await transport.open()
        transports.append(transport)
        listeners.append(await transport.listen(Target("compute", f"host{number}"), _never, 64))
    await _round(listeners)
    before = Point(broker)
    for _ in range(rounds):
        await _round(listeners)
    after = Point(broker)
    await gatherResults([transport.close() for transport in transports])
    number = nodes * rounds
    to, back = ((after.octets[place] - before.octets[place]) / number for place in (0, 1))
    broker_cpu = (after.broker_cpu - before.broker_cpu) / number
    per_second = FLEET / INTERVAL
    return {
        "reachability.load_average_before": os.getloadavg()[0],
        "reachability.bytes_to_broker": to,
        "reachability.bytes_from_broker": back,
        "reachability.broker_cpu_us": 1e6 * broker_cpu,
        "reachability.node_cpu_us": 1e6 * (after.own_cpu - before.own_cpu) / number,
        "reachability.fleet.messages_per_s": per_second,
        "reachability.fleet.mbit_per_s": 8e-6 * per_second * (to + back),
        "reachability.fleet.broker_cores": per_second * broker_cpu,
    }


class Point:
    """What was used until now: processor time in seconds, octets to and from the broker."""

    def __init__(self, broker: Broker) -> None:
        used = psutil.Process(broker.pid).cpu_times()
        self.broker_cpu = used.user + used.system
        self.own_cpu = time.process_time()
        found = broker.eval(
            "L = [[N || {_, N} <- rabbit_networking:connection_info(C, [recv_oct, send_oct])]"
            " || C <- rabbit_networking:local_connections()],"
            " {lists:sum([R || [R, _] <- L]), lists:sum([S || [_, S] <- L])}."
        )
        self.octets = [int(number) for number in re.findall(r"\d+", found)]


async def _round(listeners: list[Any]) -> None:
    for found in await gatherResults([listener.verify(write_ping, PATIENCE) for listener in listeners]):
        if found.problem or found.repaired:
            raise AssertionError(found)


def _never(delivery: IDelivery) -> None:
    raise AssertionError(delivery.body)
