"""Drives a program that is written with oslo.messaging, and tests that have one as their peer."""

import atexit
import json
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue

from novasvc import rpc
from novasvc.transport.amqp import AMQPTransport
from tests.e2e.process import unmeasured
from tests.faults.amqp_rig import AMQPCase
from tests.servers import shared_broker
from tests.servers.process import missing

PATIENCE = 30.0
"""Seconds for whatever the peer is asked."""
QUIET = 0.3
"""Seconds in which what must not come would have come."""


class PeerError(Exception):
    """What the peer raised.

    :param fields: "class", dotted; "bases", dotted too; "text"; "exc_type" and "value" of a RemoteError; "attributes",
        the text and the numbers among them.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(f"{fields['class']}: {fields['text']}")
        self.kind: str = fields["class"]
        self.bases: Sequence[str] = fields["bases"]
        self.text: str = fields["text"]
        self.exc_type: str | None = fields["exc_type"]
        self.value: str | None = fields["value"]
        self.attributes: Mapping[str, Any] = fields["attributes"]


class Process:
    """The process; all tests of a run share it, because it takes a second to start."""

    def __init__(self) -> None:
        self._numbers = count()
        self._asked: dict[int, Deferred[Any]] = {}
        self._reports: defaultdict[str, DeferredQueue[dict[str, Any]]] = defaultdict(DeferredQueue)
        directory = tempfile.TemporaryDirectory(prefix="novasvc-tests-")
        self._log = Path(directory.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("oslo_peer.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=unmeasured(),
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        atexit.register(directory.cleanup)
        atexit.register(self._end)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            reactor.callFromThread(self._take, json.loads(line))
        reactor.callFromThread(self._ended)

    def _take(self, line: dict[str, Any]) -> None:
        if "from" in line:
            self._reports[line.pop("from")].put(line)
            return
        asked = self._asked.pop(line["id"], None)
        if asked is None or asked.called:
            return
        if "error" in line:
            asked.errback(PeerError(line["error"]))
        else:
            asked.callback(line["value"])

    def _ended(self) -> None:
        asked, self._asked = self._asked, {}
        for waiting in asked.values():
            waiting.errback(AssertionError(f"the peer ended:\n{self._log.read_text()[-4000:]}"))

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def ask(self, do: str, /, **given: Any) -> Deferred[Any]:
        """Have the peer do something; see :mod:`tests.interop.oslo_peer`."""
        asked: Deferred[Any] = Deferred()
        self._asked[self.tell(do, **given)] = asked
        return asked.addTimeout(PATIENCE, reactor)

    def tell(self, do: str, /, **given: Any) -> int:
        """Have the peer do something, and do not look what becomes of it; return the command's number."""
        number = next(self._numbers)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "do": do, **given}).encode() + b"\n")
        self._process.stdin.flush()
        return number

    def report(self, name: str) -> Deferred[dict[str, Any]]:
        """Wait for what the server or listener of this name is given next."""
        return self._reports[name].get().addTimeout(PATIENCE, reactor)

    def log(self) -> str:
        """Return all that the peer has logged, warnings and errors."""
        return self._log.read_text()

    def reported(self, name: str) -> int:
        """Return how many reports nobody has asked for."""
        return len(self._reports[name].pending)


@cache
def process() -> Process:
    """Return the process, started by the first who asks."""
    if find_spec("oslo_messaging") is None:
        raise missing("oslo.messaging; pip install -e '.[interop]'")
    return Process()


_names = count()


class Peer:
    """A transport of the peer's, on a test's virtual host, and what goes over it."""

    def __init__(self, name: str, topic: str) -> None:
        self._transport = name
        self._topic = topic
        self._process = process()

    def ask(self, do: str, /, **given: Any) -> Deferred[Any]:
        """Have it do something with the transport; see :meth:`Process.ask`."""
        return self._process.ask(do, transport=self._transport, **given)

    def call(
        self,
        method: str,
        /,
        *,
        target: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **args: Any,
    ) -> Deferred[Any]:
        """Have it call a method.

        :param target: what is to differ from the topic alone.
        :param options: timeout, call_monitor_timeout, version_cap.
        """
        return self._send("call", method, target, context, {"timeout": 10, **(options or {})}, args)

    def cast(
        self,
        method: str,
        /,
        *,
        target: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        **args: Any,
    ) -> Deferred[None]:
        """Have it cast; see :meth:`call`."""
        return self._send("cast", method, target, context, {}, args)

    def _send(
        self,
        do: str,
        method: str,
        target: Mapping[str, Any] | None,
        context: Mapping[str, Any] | None,
        options: Mapping[str, Any],
        args: Mapping[str, Any],
    ) -> Deferred[Any]:
        target = {"topic": self._topic, **(target or {})}
        return self.ask(do, target=target, method=method, context=context or {}, args=args, **options)


@cache
def _vhost(fleet: str) -> str:
    return shared_broker().new_vhost()


class InteropCase(AMQPCase):
    """Each test has a topic of its own, :attr:`topic`.

    :param fleet: those of the same name share a virtual host, and have to declare alike. None has
        one for each test, which waits until the peer has left it: a second or two.
    """

    fleet: ClassVar[str | None] = "default"

    def setUp(self) -> None:
        super().setUp()
        self.process = process()
        self.topic = f"topic{next(_names)}"

    def choose_url(self) -> str:
        return super().choose_url() if self.fleet is None else self.broker.url(_vhost(self.fleet))

    async def peer(self, modules: Sequence[str] = (), **options: Any) -> Peer:
        """Open a transport of the peer's.

        :param modules: whose errors it rebuilds.
        :param options: of its [oslo_messaging_rabbit].
        """
        name = f"transport{next(_names)}"
        query = "&".join(f"{option}={value}" for option, value in options.items())
        url = f"{self.url.replace('amqp:', 'rabbit:')}?{query}"
        self.addCleanup(self._close, name)
        await self.process.ask("open", transport=name, url=url, modules=list(modules))
        return Peer(name, self.topic)

    def _close(self, transport: str) -> Deferred[None] | None:
        if self.fleet is None:
            return self.process.ask("close", transport=transport)
        self.process.tell("close", transport=transport)
        return None

    async def peer_serves(self, peer: Peer | None = None, topic: str | None = None) -> str:
        """Start a server of the peer's; return its name."""
        name = f"peer{next(_names)}"
        await (peer or await self.peer()).ask("serve", name=name, topic=topic or self.topic)
        return name

    async def we_serve(
        self, endpoint: object, server: str = "ours", transport: AMQPTransport | None = None
    ) -> rpc.Server:
        """Start a server of ours."""
        return await self.serve(transport, self.topic, server, diary=endpoint)

    async def our_client(self, transport: AMQPTransport | None = None) -> rpc.Client:
        """Make a client of ours."""
        return await self.client(transport, self.topic)
