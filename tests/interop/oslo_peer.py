"""A program written with oslo.messaging, in a process of its own; :mod:`tests.interop.peer` starts and drives it.

It reads a command from each line of its standard input, a JSON object::

    {"id": 1, "do": "call", ...arguments}

and writes lines in any order, as things happen: ``{"id": 1, "value": ...}`` or ``{"id": 1, "error": {...}}`` for each
command, and ``{"from": NAME, ...}`` for what a server or a listener that it runs was given. It ends with its input.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import oslo_messaging
import shared_errors  # type: ignore[import-not-found]
from oslo_config import cfg
from oslo_context.context import RequestContext

PATIENCE = 20.0
"""Seconds for which a method hangs at the most."""
_write_lock = threading.Lock()


def say(line: dict[str, Any]) -> None:
    """Write a line."""
    text = json.dumps(line) + "\n"
    with _write_lock:
        sys.stdout.write(text)
        sys.stdout.flush()


class PeerError(Exception):
    """An error that only this program knows."""


_ERRORS: dict[str, Exception] = {
    "builtin": ValueError("bad value é", 7),
    "own": PeerError("ours alone", 7),
    "signal": StopIteration("over"),
    "shared": shared_errors.OutOfStock("tea", 2),
    "sentence": shared_errors.SoldOut("tea", since=7),
}


class Interface:
    """Without a name."""

    target = oslo_messaging.Target(version="1.3")

    def __init__(self, name: str, let_go: threading.Event, transport: Any) -> None:
        self._name = name
        self._let_go = let_go
        self._transport = transport

    def echo(self, context: dict[str, Any], value: Any) -> Any:
        """Return what came."""
        return value

    def context(self, context: dict[str, Any]) -> dict[str, Any]:
        """Return the context."""
        return context

    def note(self, context: dict[str, Any], what: Any = None) -> str:
        """Report a call, and return who was called."""
        say({"from": self._name, "what": what})
        return self._name

    def fail(self, context: dict[str, Any], kind: str) -> None:
        """Raise an error."""
        raise _ERRORS[kind]

    def hang(self, context: dict[str, Any]) -> str:
        """Run until it is let go."""
        say({"from": self._name, "what": "hanging"})
        return "let go" if self._let_go.wait(PATIENCE) else "forgotten"

    def receive(self, context: dict[str, Any], what: Any, topic: str, server: str, seconds: float) -> Any:
        """Call the caller back, when some time has passed, with the context that came."""
        time.sleep(seconds)
        target = oslo_messaging.Target(topic=topic, server=server)
        client = oslo_messaging.get_rpc_client(self._transport, target, timeout=PATIENCE)
        return client.call(context, "confirm", what=what)


class Laboratory:
    """Of a name."""

    target = oslo_messaging.Target(namespace="laboratory", version="2.1")

    def measure(self, context: dict[str, Any], value: Any) -> list[Any]:
        """Return what came, and where."""
        return ["laboratory", value]


class Notified:
    """Takes notifications of two priorities."""

    def __init__(self, name: str, refusals: int) -> None:
        self._name = name
        self._refusals = refusals

    def _take(self, priority: str, *given: Any) -> Any:
        context, publisher_id, event_type, payload, metadata = given
        say(
            {
                "from": self._name,
                "priority": priority,
                "context": context,
                "publisher_id": publisher_id,
                "event_type": event_type,
                "payload": payload,
                "metadata": metadata,
            }
        )
        if self._refusals:
            self._refusals -= 1
            return oslo_messaging.NotificationResult.REQUEUE
        return oslo_messaging.NotificationResult.HANDLED

    def info(self, *given: Any) -> Any:
        """Take one of priority INFO."""
        return self._take("info", *given)

    def error(self, *given: Any) -> Any:
        """Take one of priority ERROR."""
        return self._take("error", *given)


class ContextSerializer(oslo_messaging.NoOpSerializer):
    """What services give their notifiers, which would drop a context that is a dict already."""

    def serialize_context(self, context: RequestContext) -> dict[str, Any]:
        """Return the entries that travel."""
        entries: dict[str, Any] = context.to_dict()
        return entries


class Peer:
    """What the commands do; each has a thread. Transports have the names that they are given."""

    def __init__(self) -> None:
        # The global one: release 18.3 registers its tracing options nowhere else.
        cfg.CONF([], project="interop")
        oslo_messaging.set_transport_defaults("nova")
        self._transports: dict[str, Any] = {}
        self._servers: list[tuple[str, Any]] = []
        self._let_go = threading.Event()
        self._spans: Any = None

    def open(self, transport: str, url: str, modules: list[str]) -> None:
        """Make a transport, for RPC and for notifications.

        :param modules: whose errors it rebuilds.
        """
        rpc = oslo_messaging.get_rpc_transport(cfg.CONF, url=url, allowed_remote_exmods=modules)
        self._transports[transport] = rpc, oslo_messaging.get_notification_transport(cfg.CONF, url=url)

    def trace(self) -> None:
        """Make spans from now on, and keep them."""
        from opentelemetry import trace  # noqa: PLC0415 - only one test traces
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415

        if self._spans is None:
            self._spans, provider = InMemorySpanExporter(), TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(self._spans))
            trace.set_tracer_provider(provider)
        self._spans.clear()
        cfg.CONF.set_override("tracing_enabled", True, group="oslo_messaging_tracing")

    def spans(self) -> list[dict[str, Any]]:
        """Return the spans that have ended, and make no more."""
        cfg.CONF.set_override("tracing_enabled", False, group="oslo_messaging_tracing")
        return [json.loads(span.to_json()) for span in self._spans.get_finished_spans()]

    def close(self, transport: str) -> None:
        """End a transport, and what runs on it. Takes a second, if that is a server."""
        servers = [server for owner, server in self._servers if owner == transport]
        self._servers = [(owner, server) for owner, server in self._servers if owner != transport]
        for server in servers:
            server.stop()
        for server in servers:
            server.wait()
        for one in self._transports.pop(transport):
            one.cleanup()

    def serve(self, transport: str, name: str, topic: str) -> None:
        """Start a server, which bears its name; when this returns, messages reach it."""
        target = oslo_messaging.Target(topic=topic, server=name)
        endpoints = [Interface(name, self._let_go, self._rpc(transport)), Laboratory()]
        server = oslo_messaging.get_rpc_server(self._rpc(transport), target, endpoints, executor="threading")
        self._start(transport, server)

    def listen(self, transport: str, name: str, topic: str, pool: str | None = None, refusals: int = 0) -> None:
        """Start a listener to notifications.

        :param refusals: how many it gives back first.
        """
        self._start(
            transport,
            oslo_messaging.get_notification_listener(
                self._transports[transport][1],
                [oslo_messaging.Target(topic=topic)],
                [Notified(name, refusals)],
                executor="threading",
                allow_requeue=True,
                pool=pool,
            ),
        )

    def _start(self, transport: str, server: Any) -> None:
        server.start()
        self._servers.append((transport, server))

    def let_go(self) -> None:
        """Let the methods return that hang."""
        self._let_go.set()
        self._let_go = threading.Event()

    def call(self, transport: str, target: dict[str, Any], method: str, context: dict[str, Any], **given: Any) -> Any:
        """Call a method; return its result."""
        return self._client(transport, target, given).call(context, method, **given["args"])

    def cast(self, transport: str, target: dict[str, Any], method: str, context: dict[str, Any], **given: Any) -> None:
        """Call a method, and wait for nothing."""
        self._client(transport, target, given).cast(context, method, **given["args"])

    def _client(self, transport: str, target: dict[str, Any], given: dict[str, Any]) -> Any:
        options = {name: given[name] for name in ("timeout", "call_monitor_timeout", "version_cap") if name in given}
        return oslo_messaging.get_rpc_client(self._rpc(transport), oslo_messaging.Target(**target), **options)

    def _rpc(self, transport: str) -> Any:
        return self._transports[transport][0]

    def notify(
        self,
        transport: str,
        topic: str,
        priority: str,
        event_type: str,
        payload: Any,
        context: dict[str, Any],
        driver: str,
    ) -> None:
        """Send a notification.

        :param driver: messagingv2, or messaging, whose messages have no envelope.
        """
        notifier = oslo_messaging.Notifier(
            self._transports[transport][1],
            publisher_id="peer.host1",
            driver=driver,
            topics=[topic],
            serializer=ContextSerializer(),
            retry=0,
        )
        getattr(notifier, priority)(RequestContext(**context), event_type, payload)


def _described(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "bases": [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__],
        "text": str(error),
        # RemoteError's own.
        "exc_type": getattr(error, "exc_type", None),
        "value": getattr(error, "value", None),
        "attributes": {name: value for name, value in vars(error).items() if isinstance(value, str | int)},
    }


def main() -> None:
    """Do what the lines say, until they end."""
    peer = Peer()

    def run(number: int, do: str, given: dict[str, Any]) -> None:
        try:
            value = getattr(peer, do)(**given)
        except Exception as error:  # noqa: BLE001 - the tests look at it
            say({"id": number, "error": _described(error)})
        else:
            say({"id": number, "value": value})

    threads = ThreadPoolExecutor(32)
    for line in sys.stdin:
        given = json.loads(line)
        threads.submit(run, given.pop("id"), given.pop("do"), given)


if __name__ == "__main__":
    main()
