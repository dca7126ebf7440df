"""Tests for novasvc.transport.local.restarts and directory: nodes that restart, and what processes serve."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import TransportClosedError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.errors import ServiceRestartingError
from novasvc.transport.local import transport as local
from novasvc.transport.local.directory import served_topics
from novasvc.transport.local.frames import LENGTH
from novasvc.transport.local.restarts import RestartFile, restarting
from tests.unit.transport.local.test_transport import LocalCase

NODES = [("stock", "h1"), ("till", "h1")]


class FileTests(SynchronousTestCase):
    """Tests for the file of a process that restarts nodes."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute() / "state" / "rpc"

    def test_found(self) -> None:
        """While its process runs, the file tells for which targets there will be a server, and how the last ended."""
        file = RestartFile(self.directory, NODES)
        for target, found in (
            (None, True),
            (Target("stock"), True),
            (Target("till", "h1"), True),
            (Target("stock", "reserve"), False),
            (Target("other"), False),
        ):
            self.assertEqual(restarting(self.directory, target) is not None, found, target)
        file.write("with status 1")
        node = restarting(self.directory)
        assert node is not None
        self.assertEqual((node.pid, node.nodes, node.ended), (os.getpid(), frozenset(NODES), "with status 1"))
        file.write("")
        self.assertEqual(restarting(self.directory).ended, "")  # type: ignore[union-attr]
        file.close()
        self.assertIsNone(restarting(self.directory))
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_killed(self) -> None:
        """The file of a process that was killed counts for nothing, and is removed."""
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from novasvc.transport.local.restarts import RestartFile\n"
            "RestartFile(Path(sys.argv[1]), [('stock', 'h1')]); os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code, str(self.directory)], check=False)
        self.assertEqual([path.suffix for path in self.directory.iterdir()], [".restarts"])
        self.assertIsNone(restarting(self.directory))
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_not_inherited(self) -> None:
        """The node that the process starts does not hold the lock."""
        file = RestartFile(self.directory, NODES)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            os.close(file._descriptor)
            self.assertIsNone(restarting(self.directory))
            child.communicate(b"\n")

    def test_strange(self) -> None:
        """A directory that others may write to, and strange files, are passed over."""
        self.assertIsNone(restarting(self.directory))
        file = RestartFile(self.directory, NODES)
        self.addCleanup(file.close)
        self.directory.chmod(0o777)
        self.assertIsNone(restarting(self.directory))
        self.assertRaises(OSError, RestartFile, self.directory, NODES)
        self.directory.chmod(0o700)
        for content in (b"[]", b"{}", b'{"nodes": [["a"]], "ended": ""}', b"\xff"):
            os.pwrite(file._descriptor, content.ljust(100), 0)
            self.assertIsNone(restarting(self.directory))


class SendTests(LocalCase):
    """Tests for calls of a node that restarts, on real sockets."""

    async def test_waits(self) -> None:
        """A call waits for the node, and is then answered."""
        self.addCleanup(RestartFile(self.directory, [("stock", "h1")]).close)
        calling = self.client(self.process(), "stock").call(RequestContext.admin(), "echo", text="hello")
        await deferLater(reactor, 0.05)
        self.assertNoResult(calling)
        await self.serve("stock", "h1")
        self.assertEqual(await calling, "h1: hello")

    async def test_ended(self) -> None:
        """If the node has ended, a call fails at once, and says how and what to do."""
        file = RestartFile(self.directory, [("stock", "h1")])
        self.addCleanup(file.close)
        file.write("with status 1")
        with self.assertRaises(ServiceRestartingError) as caught:
            await self.client(self.process(), "stock").call(RequestContext.admin(), "echo", text="hello")
        self.assertIn("it ended with status 1, and `novasvc run --reload`", str(caught.exception))

    async def test_too_long(self) -> None:
        """The wait is bounded."""
        self.patch(local, "RESTART", 0.2)
        self.addCleanup(RestartFile(self.directory, [("stock", "h1")]).close)
        with self.assertRaises(ServiceRestartingError) as caught:
            await self.client(self.process(), "stock").call(RequestContext.admin(), "echo", text="hello")
        self.assertIn("stock is restarting, and did not serve within 0.", str(caught.exception))

    async def test_ttl(self) -> None:
        """A request waits for the node nearly as long as its sender, and reaches it with the time that is left."""
        file = RestartFile(self.directory, [("stock", "h1")])
        self.addCleanup(file.close)
        with self.assertRaises(ServiceRestartingError):
            await self.process().send(Target("stock"), b"1", 0.2, True)
        sending = self.process().send(Target("stock"), b"2", 30.0, True)
        await deferLater(reactor, 0.2)
        queue = await self.inbox(self.process(), Target("stock"))
        await sending
        self.assertTrue(25.0 < (await self.next(queue)).expires_in <= 29.8)

    async def test_other_target(self) -> None:
        """A target that the node does not serve has no server, at once."""
        self.addCleanup(RestartFile(self.directory, [("stock", "h1")]).close)
        for target in (Target("stok"), Target("stock", "h2")):
            with self.assertRaises(UndeliverableError):
                await self.process().send(target, b"{}", None, True)

    async def test_closed(self) -> None:
        """A request that waits fails when its transport is closed, and can be cancelled."""
        self.addCleanup(RestartFile(self.directory, [("stock", "h1")]).close)
        transport = self.process()
        sending = transport.send(Target("stock"), b"{}", None, True)
        cancelled: Deferred[Any] = transport.send(Target("stock"), b"{}", None, True)
        await deferLater(reactor, 0.05)
        cancelled.cancel()
        cancelled.addErrback(lambda _: None)
        await transport.close()
        with self.assertRaises(TransportClosedError):
            await sending


class DirectoryTests(LocalCase):
    """Tests for the blocking look at what the processes of a host serve."""

    async def test_served(self) -> None:
        """Topics and hosts of all processes are found, in a thread as well as anywhere."""
        await self.serve("stock", "h1")
        await self.serve("stock", "h2")
        await self.serve("till", "h1")
        await self.process().subscribe("till_events", ["notifications.info"], lambda delivery: None, 1)
        found: list[dict[str, set[str]]] = []
        thread = threading.Thread(target=lambda: found.append(served_topics(self.directory, 10.0)))
        thread.start()
        while thread.is_alive():
            await deferLater(reactor, 0.01)
        self.assertEqual(found, [{"stock": {"h1", "h2"}, "till": {"h1"}}])

    def test_strange(self) -> None:
        """Processes that hang, have ended, or say something strange are left out."""
        self.assertEqual(served_topics(self.directory, 0.1), {})
        self.directory.mkdir(mode=0o700)
        good = json.dumps({"queues": [["nova", "stock", None], ["nova", "stock", "h1"]], "fanouts": []}).encode()
        said = {
            "silent": b"",
            "short": LENGTH.pack(100) + b"{}",
            "long": LENGTH.pack(2**32 - 1),
            "text": LENGTH.pack(3) + b"[]\n",
            "odd": LENGTH.pack(16) + b'{"queues": [[]]}',
            "good": LENGTH.pack(len(good) + 1) + good + b"\n",
        }
        for name, octets in said.items():
            listening = socket.socket(socket.AF_UNIX)
            self.addCleanup(listening.close)
            listening.bind(str(self.directory / f"{name}.sock"))
            listening.listen()
            if name != "silent":
                connected = threading.Thread(target=answer, args=(listening, octets))
                connected.start()
                self.addCleanup(connected.join)
        (self.directory / "dead.sock").touch()
        self.assertEqual(served_topics(self.directory, 5.0), {"stock": {"h1"}})


def answer(listening: socket.socket, octets: bytes) -> None:
    """Send some octets to the first that connects, and close."""
    connection, _ = listening.accept()
    connection.sendall(octets)
    connection.close()
