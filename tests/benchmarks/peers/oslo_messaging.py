"""oslo.messaging's RPCClient and its server with the threading executor, at their default options.

As many threads call as there are calls in flight. It does what novasvc does: envelope, context,
dispatch by name, version check, deadlines, confirms, acknowledgement.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter
from typing import Any

import oslo_messaging
from oslo_config import cfg

from tests.benchmarks.peers.command import PAYLOAD, TOPIC, Window, ready, run

TARGET = {"topic": f"{TOPIC}_oslo_messaging"}
CONTEXT = {"request_id": "req-5f3c0a52-9f0f-4f8e-b5b5-d6c3b5a0b0f4", "user_id": "benchmark"}


class Echo:
    """An endpoint."""

    def echo(self, _context: Any, value: Any) -> Any:
        """Return what came."""
        return value


def serve(url: str) -> None:
    """Echo."""
    target = oslo_messaging.Target(**TARGET, server="server")
    server = oslo_messaging.get_rpc_server(_transport(url), target, [Echo()], executor="threading")
    server.start()
    ready()
    server.wait()


def call(url: str, in_flight: int, window: Window) -> None:
    """Have that many threads call one after another."""
    client = oslo_messaging.get_rpc_client(_transport(url), oslo_messaging.Target(**TARGET))
    lock = Lock()

    def caller() -> None:
        while not window.over:
            sent = perf_counter()
            reply = client.call(CONTEXT, "echo", value=PAYLOAD)
            with lock:
                window.answered(sent, reply)

    with ThreadPoolExecutor(in_flight) as threads:
        for ended in [threads.submit(caller) for _ in range(in_flight)]:
            ended.result()


def _transport(url: str) -> Any:
    # The global one: release 18.3 registers its tracing options nowhere else.
    cfg.CONF([], project="benchmark")
    return oslo_messaging.get_rpc_transport(cfg.CONF, url=url.replace("amqp:", "rabbit:", 1))


if __name__ == "__main__":
    run(serve, call)
