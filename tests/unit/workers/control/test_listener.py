"""The control socket as a service, on the test's own reactor and real sockets."""

import os
import resource
import socket
import stat

import pytest
from twisted.application.service import IService, MultiService
from twisted.internet import reactor
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from novasvc.workers.control import listener as control
from novasvc.workers.control.listener import MAX_CONNECTIONS, ControlSocket
from novasvc.workers.errors import ControlError
from tests.support.control_rig import Client, ControlCase
from tests.support.waiting import until

_NOBODY = 65534


class ServiceTests(ControlCase):
    """Tests for novasvc.workers.control.listener.ControlSocket as a service."""

    def test_interface(self) -> None:
        """It is a service, and may be part of another."""
        self.assertTrue(verifyObject(IService, self.control))
        self.control.setServiceParent(MultiService())

    async def test_mode(self) -> None:
        """The socket stays its user's alone while it is used."""
        client = self.connect()
        await client.ask({"command": "workers"})
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    async def test_stop_and_start(self) -> None:
        """A service that is stopped leaves no socket; it can be started again."""
        await self.control.stopService()
        self.assertFalse(self.path.exists())
        self.control.startService()
        self.assertIn("result", await self.connect().ask({"command": "workers"}))

    def test_never_started(self) -> None:
        """A service that was never started can be stopped."""
        stopping = ControlSocket(self.path, self.supervisor, reactor).stopService()
        self.successResultOf(stopping)
        self.assertTrue(self.path.exists())

    async def test_taken(self) -> None:
        """A second one does not start, and harms the first neither then nor when it is stopped."""
        second = ControlSocket(self.path, self.supervisor, reactor)
        error = self.assertRaises(ControlError, second.startService)
        self.assertIn("another launcher of this process already uses it", str(error))
        self.assertFalse(second.running)
        await second.stopService()
        self.assertIn("result", await self.connect().ask({"command": "workers"}))

    async def test_replaced(self) -> None:
        """What another process has put in its place is not unlinked."""
        self.path.unlink()
        self.path.write_text("precious")
        await self.control.stopService()
        self.assertEqual(self.path.read_text(), "precious")

    async def test_stop_while_asked(self) -> None:
        """Who waits for an answer is told that the supervisor ends; who does not, is only closed."""
        idle, asking = self.connect(), self.connect()
        reloading = self.supervisor.wait()
        self.assertIn("result", await idle.ask({"command": "workers"}))
        asking.send({"command": "reload"})
        await until(lambda: ("reload",) in self.supervisor.asked)
        await self.control.stopService()
        answer = await asking.answer()
        self.assertEqual(answer["error"]["type"], "UnfinishedError")
        self.assertEqual((await asking.answer(), await idle.answer()), (None, None))
        reloading.callback([])
        self.assertFalse(self.supervisor.cancelled)

    async def test_stop_while_answers_wait(self) -> None:
        """One that does not take its answers does not keep the service from stopping."""
        self.patch(control, "_CLOSE_TIMEOUT", 0.05)
        self.supervisor.rows = [{"number": 0, "trouble": "x" * 4_000_000}]
        client = self.connect()
        client.send({"command": "workers"})
        await until(lambda: self.supervisor.asked)
        await self.control.stopService()

    async def test_end_of_all(self) -> None:
        """Who drains the supervisor sees its end by the end of the connection."""
        client = self.connect()
        self.assertEqual(await client.ask({"command": "drain"}), {"result": None})
        self.assertFalse(client.ended)
        await self.control.stopService()
        await client.end()


class ConnectionTests(ControlCase):
    """Tests for connections to a ControlSocket."""

    async def test_large_answer(self) -> None:
        """An answer of many megabytes arrives whole."""
        self.supervisor.dumped = [{"stacks": "line\n" * 1_000_000}]
        answer = await self.connect().ask({"command": "dump"})
        self.assertEqual(answer, {"result": self.supervisor.dumped})

    async def test_answers_are_not_taken(self) -> None:
        """One that asks and asks and takes no answer is not listened to until it does."""
        self.supervisor.rows = [{"number": 0, "trouble": "x" * 100_000}]
        client = self.connect()
        requests = 200
        client.send(b'{"command": "workers"}\n' * requests)
        other = self.connect()
        for _ in range(20):
            self.assertIn("result", await other.ask({"command": "who"}))
        self.assertLess(len(self.supervisor.asked), requests)
        for _ in range(requests):
            self.assertIn("result", await client.answer())

    async def test_half_closed(self) -> None:
        """Who sends its requests and then no more, as a shell's pipe does, gets all answers and then the end."""
        client = self.connect()
        client.send(b'{"command": "workers"}\nx\n{"command": "dump"}\n')
        client.socket.shutdown(socket.SHUT_WR)
        kinds = [[*await client.answer()] for _ in range(3)]
        self.assertEqual(kinds, [["result"], ["error"], ["result"]])
        self.assertIsNone(await client.answer())

    async def test_half_closed_while_asked(self) -> None:
        """The same for an answer that takes its time."""
        reloading = self.supervisor.wait()
        client = self.connect()
        client.send({"command": "reload"})
        client.socket.shutdown(socket.SHUT_WR)
        await until(lambda: self.supervisor.asked)
        self.assertIn("result", await self.connect().ask({"command": "who"}))
        reloading.callback([])
        self.assertEqual((await client.answer(), await client.answer()), ({"result": []}, None))

    async def test_gone(self) -> None:
        """What was asked for goes on when who asked is gone, and its place is free afterwards."""
        reloading = self.supervisor.wait()
        client = self.connect()
        client.send({"command": "reload"})
        client.socket.close()
        await until(lambda: self.supervisor.asked)
        self.assertIn("result", await self.connect().ask({"command": "who"}))
        self.assertFalse(self.supervisor.cancelled)
        reloading.callback([])
        await until(lambda: len(self.control._connections) == 1)

    async def test_gone_at_once(self) -> None:
        """Those who connect and go leave nothing."""
        for _ in range(100):
            Client(self.path).socket.close()
        self.assertIn("result", await self.connect().ask({"command": "who"}))
        await until(lambda: len(self.control._connections) == 1)

    async def test_bounded(self) -> None:
        """One more than may ask is told so, and is let in when another has gone."""
        clients = [self.connect() for _ in range(MAX_CONNECTIONS)]
        for client in clients:
            self.assertIn("result", await client.ask({"command": "who"}))
        late = self.connect()
        error = (await late.answer())["error"]
        self.assertEqual(error["type"], "ControlError")
        self.assertIn("all 16 connections are in use; try again", error["message"])
        await late.end()
        clients[0].socket.close()
        await until(lambda: len(self.control._connections) < MAX_CONNECTIONS)
        self.assertIn("result", await self.connect().ask({"command": "who"}))

    async def starve(self) -> Client:
        """Connect when the system has no descriptor left, until the listener has seen that."""
        await deferLater(reactor, 0)  # the reactor runs, and has the descriptors that it needs itself
        client = self.connect()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.socket.fileno() + 1, limits[1]))
        try:
            await until(lambda: self.control._acceptor is not None and self.control._acceptor.pausing)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return client

    async def test_no_descriptors(self) -> None:
        """When the system has no descriptor left, one that waits is accepted later; nothing spins."""
        client = await self.starve()
        self.assertIn("result", await client.ask({"command": "who"}))

    async def test_no_descriptors_and_stop(self) -> None:
        """The service stops while it waits for a descriptor."""
        await self.starve()
        await self.control.stopService()

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes the place of another user")
    async def test_another_user(self) -> None:
        """Another user gets no answer, even when the socket's mode and directory let it in."""
        for path, mode in ((self.path.parent.parent, 0o755), (self.path.parent, 0o755), (self.path, 0o666)):
            path.chmod(mode)
        os.seteuid(_NOBODY)
        try:
            client = self.connect()
        finally:
            os.seteuid(0)
        answer = await client.answer()
        self.assertIn(f"uid {_NOBODY} may not connect; connect as uid 0 or as root", answer["error"]["message"])
        self.assertIsNone(await client.answer())
        self.assertEqual(self.supervisor.asked, [])

    async def test_root(self) -> None:
        """The supervisor's own user is answered; one that is neither that nor root is not."""
        own = os.geteuid()
        self.patch(control, "peer_credentials", lambda _: (1, own + 1))
        self.assertIn(f"uid {own + 1} may not connect", (await self.connect().answer())["error"]["message"])
        self.patch(control, "peer_credentials", lambda _: (1, 0))
        self.assertIn("result", await self.connect().ask({"command": "who"}))
