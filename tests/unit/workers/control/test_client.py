"""Tests for novasvc.workers.control.client: a supervisor is asked from a reactor."""

import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from novasvc.workers.control.client import ask
from novasvc.workers.errors import CommandRejectedError, ControlError
from tests.support.control_rig import ControlCase
from tests.support.waiting import until


class ImportTests(TestCase):
    """What a node has to load."""

    def test_no_tls(self) -> None:
        """A node without TLS does not load it, nor what writes expositions: that is 12 MiB."""
        script = "import sys; import novasvc.service; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=30)
        for module in ("OpenSSL", "cryptography", "prometheus_client", "psutil", "twisted.web"):
            self.assertNotIn(module, loaded.stdout.split())


class AskTests(ControlCase):
    """Tests for ask, at a real socket with a stand-in behind it."""

    async def test_result(self) -> None:
        """The answer is what the supervisor says."""
        rows = await ask(reactor, self.path, "workers")
        self.assertEqual([row["number"] for row in rows], [0, 1])

    async def test_arguments(self) -> None:
        """Arguments reach it."""
        self.assertIsNone(await ask(reactor, self.path, "resize", count=3, server="agent"))
        self.assertEqual(self.supervisor.asked, [("resize", 3, "agent")])

    async def test_refused(self) -> None:
        """What it refuses is said in its own words."""
        error = await self.assertFailure(ask(reactor, self.path, "drain", number=7), CommandRejectedError)
        self.assertEqual((error.kind, str(error)), ("NoSuchWorkerError", error.problem))
        self.assertIn("there is no worker 7", str(error))

    async def test_late(self) -> None:
        """A supervisor that does not answer in time is waited for no longer, and the connection is closed."""
        pending = self.supervisor.wait()
        error = await self.assertFailure(ask(reactor, self.path, "reload", timeout=0.05), ControlError)
        self.assertIn("reload was not answered within 0.05 s", str(error))
        pending.callback([])
        await until(lambda: not self.control._connections)

    async def test_cancelled(self) -> None:
        """Who cancels waits no longer."""
        pending = self.supervisor.wait()
        asking = ask(reactor, self.path, "reload")
        await until(lambda: self.supervisor.asked)
        asking.cancel()
        await self.assertFailure(asking, CancelledError)
        pending.callback([])
        await until(lambda: not self.control._connections)

    async def test_side_by_side(self) -> None:
        """Many can ask at the same time."""
        asked = [ask(reactor, self.path, "workers") for _ in range(10)]
        for each in asked:
            self.assertEqual(len(await each), 2)


class NobodyTests(TestCase):
    """Tests for ask where no supervisor is, or none that is well."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "control"

    async def told(self) -> str:
        return str(await self.assertFailure(ask(reactor, self.path, "workers", timeout=0.2), ControlError))

    async def answered(self, protocol: type[Protocol]) -> str:
        """Return what is said of a server of this protocol."""
        port = reactor.listenUNIX(str(self.path), Factory.forProtocol(protocol))  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return await self.told()

    async def test_missing(self) -> None:
        """There is no socket."""
        self.assertIn("no supervisor listens there", await self.told())

    async def test_left_behind(self) -> None:
        """A socket is left from a supervisor that was killed."""
        left = socket.socket(socket.AF_UNIX)
        self.addCleanup(left.close)
        left.bind(str(self.path))
        self.assertIn("the last one was killed", await self.told())

    async def test_no_socket(self) -> None:
        """Something else is there."""
        self.path.write_text("x")
        self.assertIn("the file there is not a socket", await self.told())

    async def test_long_path(self) -> None:
        """A path that no socket can have is an error as others are."""
        self.path = self.path.with_name("x" * 200)
        self.assertIn("File name too long", await self.told())

    async def test_hangs_up(self) -> None:
        """It ends before it has answered."""

        class HangsUp(Protocol):
            transport: Any

            def connectionMade(self) -> None:
                self.transport.loseConnection()

        self.assertIn("the supervisor exited before it answered workers", await self.answered(HangsUp))

    async def test_strange(self) -> None:
        """What answers there speaks another language."""

        class Strange(Protocol):
            transport: Any

            def connectionMade(self) -> None:
                self.transport.write(b"220 mail.example ESMTP\n")

        self.assertIn("the process that listens there is not a novasvc supervisor", await self.answered(Strange))

    async def test_silent(self) -> None:
        """It takes the connection, and says nothing."""
        lost: Deferred[None] = Deferred()

        class Silent(Protocol):
            def connectionLost(self, reason: object = None) -> None:
                lost.callback(None)

        self.assertIn("was not answered within 0.2 s", await self.answered(Silent))
        await lost
