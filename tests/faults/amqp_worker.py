"""A service in a process of its own: python -m tests.faults.amqp_worker URL TOPIC [CONSUMER_TIMEOUT]

Prints "opened MIB" when it is connected, "serving" when it serves, and "called NUMBER MIB" at each
thousandth call of its method ``slow``, and "runs WHAT" when ``hang_again`` is called, which never ends.
"""

import os
import signal
import sys
from typing import Any

import psutil
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater, react
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport, BrokerAddress, BrokerOptions


def memory() -> str:
    return f"{psutil.Process().memory_info().rss / 2**20:.1f}"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Worker:
    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._calls = 0

    @rpc.expose
    def slow(self, context: RequestContext) -> Deferred[None]:
        self._calls += 1
        if self._calls % 1000 == 0:
            say(f"called {self._calls} {memory()}")
        return deferLater(self._reactor, 0.005)

    @rpc.expose(idempotent=True)
    def die(self, context: RequestContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @rpc.expose(idempotent=True)
    def hang_again(self, context: RequestContext, what: Any = None) -> Deferred[None]:
        say(f"runs {what}")
        return Deferred()

    @rpc.expose
    def live(self, context: RequestContext) -> str:
        return "alive"


async def main(reactor: Any, url: str, topic: str, consumer_timeout: str = "1800") -> None:
    predicate = LogLevelFilterPredicate(LogLevel.info)
    globalLogBeginner.beginLoggingTo(
        [FilteringLogObserver(textFileLogObserver(sys.stderr), [predicate])], redirectStandardIO=False
    )
    options = BrokerOptions(consumer_timeout=float(consumer_timeout))
    transport = AMQPTransport(BrokerAddress.parse(url), reactor=reactor, options=options, name="worker")
    await transport.open()
    endpoints = rpc.Endpoints(Worker(reactor))
    server = rpc.Server(transport, Target(topic, "w1"), endpoints, clock=reactor, run_blocking=maybeDeferred)
    say(f"opened {memory()}")
    await server.start()
    say("serving")
    await Deferred()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
