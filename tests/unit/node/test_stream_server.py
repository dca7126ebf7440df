"""Servers of streams, alone and preforked, on real sockets."""

import errno
import os
import shutil
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from novasvc.errors import ListenError
from novasvc.interfaces import IPreforkable
from novasvc.net.unix import UNIXPort, open_unix
from novasvc.node.runtime import drain_time, set_process_runtime
from novasvc.node.stream_server import StreamServer
from novasvc.testing import memory_runtime
from novasvc.workers.current import CurrentWorker, set_current_worker
from novasvc.workers.errors import NotPreforkableError
from tests.support.pickling import carried
from tests.support.waiting import PATIENCE

_NOBODY = 65534


class Greeter(Protocol):
    """Says who it is, and waits for the other end to go."""

    def connectionMade(self) -> None:
        self.transport.write(self.factory.greeting)


class GreeterFactory(Factory):
    protocol = Greeter
    noisy = False

    def __init__(self, greeting: bytes = b"hello") -> None:
        self.greeting = greeting


class Caller(Protocol):
    """Waits for a number of octets."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.data = b""
        self.heard: Deferred[bytes] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        if len(self.data) == self.length:
            self.heard.callback(self.data)

    def connectionLost(self, reason: Failure) -> None:
        self.gone.callback(None)


async def call(client: str, length: int = 5) -> Caller:
    """Connect, wait until somebody accepts and greets, and stay connected."""
    caller = await connectProtocol(clientFromString(reactor, client), Caller(length))
    await caller.heard.addTimeout(PATIENCE, reactor)
    return caller


async def hear(client: str, length: int = 5) -> bytes:
    """Connect, return the greeting, and go."""
    caller = await call(client, length)
    caller.transport.loseConnection()
    await caller.gone
    return caller.data


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


class ServerTestCase(TestCase):
    """Ends what a test has begun."""

    def make(self, endpoint: str, factory: Any = GreeterFactory) -> StreamServer:
        server = StreamServer(endpoint, factory)
        self.addCleanup(server.stopService)
        return server

    def open(self, server: StreamServer, held: Sequence[socket.socket] = ()) -> Sequence[socket.socket]:
        """Open as a supervisor does; twice the same is closed once."""
        sockets = server.open_sockets(held)
        for opened in sockets:
            self.addCleanup(opened.close)
        return sockets

    def adopt(self, server: StreamServer, sockets: Sequence[socket.socket], factory: Any = None) -> StreamServer:
        """Return a copy that serves, as a worker has it."""
        copy: StreamServer = carried(server)
        self.addCleanup(copy.stopService)
        if factory is not None:
            copy.factory = factory
        copy.adopt_sockets([socket.socket(fileno=os.dup(opened.fileno())) for opened in sockets])
        copy.startService()
        return copy


class AloneTests(ServerTestCase):
    """Tests for novasvc.node.stream_server.StreamServer in one process."""

    def test_interfaces(self) -> None:
        """It is a service, and can be preforked."""
        server = self.make("tcp:0")
        verifyObject(IService, server)
        verifyObject(IPreforkable, server)

    async def test_port(self) -> None:
        """Port 0 becomes a number when it is bound, and that is served."""
        server = self.make("tcp:0:interface=127.0.0.1")
        self.assertIsNone(server.port)
        server.privilegedStartService()
        port = server.port
        server.startService()
        self.assertEqual(server.port, port)
        self.assertEqual(await hear(f"tcp:127.0.0.1:{port}"), b"hello")

    async def test_start_alone(self) -> None:
        """A service that was given no privileges binds when it starts."""
        server = self.make("tcp:0:interface=127.0.0.1", GreeterFactory(b"right"))
        server.startService()
        self.assertEqual(await hear(f"tcp:127.0.0.1:{server.port}"), b"right")

    async def test_ipv6(self) -> None:
        """An IPv6 address is bound as such."""
        server = self.make(r"tcp:0:interface=\:\:1")
        server.startService()
        self.assertEqual(await hear(rf"tcp:\:\:1:{server.port}"), b"hello")

    async def test_waits_for_start(self) -> None:
        """Who connects between the privileged start and the start is served when it has started."""
        server = self.make("tcp:0:interface=127.0.0.1")
        server.privilegedStartService()
        caller = await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{server.port}"), Caller(5))
        self.assertEqual(caller.data, b"")
        server.startService()
        self.assertEqual(await caller.heard.addTimeout(PATIENCE, reactor), b"hello")
        caller.transport.loseConnection()
        await caller.gone

    def test_busy_port(self) -> None:
        """A port that is taken fails the start, and the error names it and says what to do."""
        taken = self.make("tcp:0:interface=127.0.0.1")
        taken.startService()
        server = self.make(f"tcp:{taken.port}:interface=127.0.0.1")
        server.privilegedStartService()
        error = self.assertRaises(ListenError, server.startService)
        self.assertEqual(error.subject, f"127.0.0.1:{taken.port}")
        self.assertRegex(
            str(error), "(?i)^cannot listen on .*: address already in use; end the process .* or give another"
        )
        self.assertFalse(server.running)

    async def test_start_again(self) -> None:
        """A server whose port has become free can be started, and one that was stopped can be again."""
        taken = self.make("tcp:0:interface=127.0.0.1")
        taken.startService()
        server = self.make(f"tcp:{taken.port}:interface=127.0.0.1")
        self.assertRaises(ListenError, server.startService)
        await taken.stopService()
        for _ in range(2):
            server.startService()
            self.assertEqual(await hear(f"tcp:127.0.0.1:{server.port}"), b"hello")
            await server.stopService()

    def test_foreign_address(self) -> None:
        """An address that this host has not fails the start."""
        error = self.assertRaises(ListenError, self.make("tcp:0:interface=192.0.2.1").startService)
        self.assertIn("give an address of this host", str(error))

    def test_not_understood(self) -> None:
        """A description that is none fails the start with an example of one."""
        for wrong in ("8000", "tcp:http", "tcp:1:2:3:4:5", "pigeon:1", ""):
            error = self.assertRaises(ListenError, self.make(wrong).startService)
            self.assertIn("tcp:8000", str(error))

    def test_no_socket(self) -> None:
        """An endpoint that is no single socket is refused."""
        error = self.assertRaises(ListenError, self.make("stdio:").startService)
        self.assertIn("does not listen on exactly one socket", str(error))

    async def test_stop(self) -> None:
        """A stop frees the port at once; open connections go on, and are waited for."""
        server = self.make("tcp:0:interface=127.0.0.1")
        server.startService()
        caller = await call(f"tcp:127.0.0.1:{server.port}")
        ended: list[None] = []
        stopped = server.stopService().addCallback(ended.append)
        await self.assertFailure(Deferred.fromCoroutine(hear(f"tcp:127.0.0.1:{server.port}")), ConnectError)
        self.assertFalse(caller.gone.called or ended)
        caller.transport.loseConnection()
        await caller.gone
        await stopped

    async def test_stop_in_time(self) -> None:
        """Connections that nobody ends are cut when drain_timeout is over, or at once if that is told."""
        for seconds, told in ((0.01, False), (60, True)):
            server = StreamServer("tcp:0:interface=127.0.0.1", GreeterFactory, drain_timeout=seconds)
            server.startService()
            caller = await call(f"tcp:127.0.0.1:{server.port}")
            stopped = server.stopService()
            if told:
                server.hurry()
            await caller.gone
            await stopped

    def test_drain_time(self) -> None:
        """Without a time of their own, connections have as long as the process has."""
        clock = Clock()
        self.assertEqual(drain_time(clock), 60)
        set_process_runtime(memory_runtime(clock, graceful_shutdown_timeout=7))
        self.assertEqual(drain_time(clock), 7)
        set_current_worker(clock, CurrentWorker(grace=0.01))
        self.assertEqual(drain_time(clock), 0.01)

    async def test_tls(self) -> None:
        """An endpoint with TLS serves in one process, and is refused where it would be preforked."""
        authority, path = trustme.CA(), Path(self.mktemp())
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
        server = self.make(f"ssl:0:interface=127.0.0.1:privateKey={path}")
        error = self.assertRaises(NotPreforkableError, server.open_sockets, ())
        self.assertIn("wraps connections", str(error))
        server.privilegedStartService()
        server.startService()
        context = ssl.create_default_context()
        authority.configure_trust(context)

        def greeting() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", server.port or 0), 10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
            ):
                return wrapped.recv(5)

        self.assertEqual(await deferToThread(greeting), b"hello")
        self.flushWarnings()  # Twisted makes the endpoint's certificates in a way that is deprecated


class PreforkedTests(ServerTestCase):
    """Tests for novasvc.node.stream_server.StreamServer in a supervisor and its workers."""

    async def test_adopt(self) -> None:
        """A copy that pickle has made serves on the supervisor's port, and knows its number."""
        server = self.make("tcp:0:interface=127.0.0.1", partial(GreeterFactory, b"right"))
        sockets = self.open(server)
        copy = self.adopt(server, sockets)
        self.assertEqual((copy.port, copy.endpoint), (server.port, server.endpoint))
        self.assertEqual(await hear(f"tcp:127.0.0.1:{server.port}"), b"right")

    def test_pickle(self) -> None:
        """A server can be pickled while it holds sockets and serves."""
        server = self.make("tcp:0:interface=127.0.0.1")
        server.setName("api")
        server.startService()
        copy = carried(server)
        self.assertEqual((copy.name, copy.endpoint, copy.running), ("api", server.endpoint, 0))

    async def check_two(self, server: StreamServer, client: str) -> None:
        """See two copies accept from one socket, and each when the other has stopped."""
        sockets = self.open(server)
        copies = {name: self.adopt(server, sockets, GreeterFactory(name)) for name in (b"first", b"other")}
        heard = await hear(client)
        await copies.pop(heard).stopService()
        (left,) = copies
        for _ in range(3):
            self.assertEqual(await hear(client), left)
        await copies.pop(left).stopService()
        caller = await connectProtocol(clientFromString(reactor, client), Caller(5))
        third = self.adopt(server, sockets, GreeterFactory(b"third"))
        self.assertEqual(await caller.heard.addTimeout(PATIENCE, reactor), b"third")
        caller.transport.loseConnection()
        await caller.gone
        await third.stopService()

    async def test_turns(self) -> None:
        """It takes one connection in a turn, as others may be idle; twice as many while more wait; at its end all."""
        path = tempfile.mkdtemp(prefix="novasvc-")
        self.addCleanup(shutil.rmtree, path)
        for endpoint in ("tcp:0:interface=127.0.0.1", f"unix:{path}/socket"):
            origin = self.make(endpoint)
            sockets = self.open(origin)
            server = self.adopt(origin, sockets)
            for _ in range(9):
                client = socket.socket(sockets[0].family)
                self.addCleanup(client.close)
                client.connect(sockets[0].getsockname())
            (port,), connections = server._ports, server._connections
            for taken in (1, 3, 7):
                port.doRead()
                self.assertEqual(len(connections.protocols), taken)
            stopped = server.stopService()
            self.assertEqual(len(connections.protocols), 9)
            server.hurry()
            await stopped

    async def test_two_adopters(self) -> None:
        """Two copies accept from one socket; that one stops harms neither the other nor those who come later."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        await self.check_two(self.make(f"tcp:{port}:interface=127.0.0.1"), f"tcp:127.0.0.1:{port}")

    async def test_two_adopters_of_unix_socket(self) -> None:
        """Two copies accept from one unix socket; whichever stops leaves the file where it is."""
        path = self.mktemp()
        await self.check_two(self.make(f"unix:{path}:mode=600"), f"unix:{path}")
        self.assertEqual(mode_of(path), 0o600)

    async def test_held(self) -> None:
        """A reload with the same address keeps the socket, so nobody who waits there is lost."""
        sockets = self.open(self.make("tcp:0:interface=127.0.0.1"))
        port = sockets[0].getsockname()[1]
        caller = await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{port}"), Caller(5))
        for same in (f"tcp:{port}:interface=127.0.0.1:backlog=200", "tcp:0:interface=127.0.0.1"):
            server = self.make(same)
            self.assertIs(self.open(server, sockets)[0], sockets[0])
            self.assertEqual(server.port, port)
        self.adopt(server, sockets)
        self.assertEqual(await caller.heard.addTimeout(PATIENCE, reactor), b"hello")
        caller.transport.loseConnection()
        await caller.gone

    async def test_held_elsewhere(self) -> None:
        """A reload with another address opens that; the old one is left to who holds it."""
        sockets = self.open(self.make("tcp:0:interface=127.0.0.1"))
        server = self.make("tcp:0:interface=127.0.0.2")
        opened = self.open(server, sockets)
        self.assertNotEqual(opened[0].getsockname(), sockets[0].getsockname())
        self.adopt(server, opened)
        self.assertEqual(await hear(f"tcp:127.0.0.2:{server.port}"), b"hello")
        self.assertNotEqual(sockets[0].fileno(), -1)

    def test_busy_port(self) -> None:
        """A port that somebody else has is an error in the supervisor."""
        taken = self.make("tcp:0:interface=127.0.0.1")
        taken.startService()
        self.assertRaises(ListenError, self.make(f"tcp:{taken.port}:interface=127.0.0.1").open_sockets, ())


class UNIXSocketTests(ServerTestCase):
    """Tests for unix sockets: novasvc.net.unix, by way of the server."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    async def test_alone(self) -> None:
        """The file has the mode that was asked for while it is served, and is gone afterwards."""
        server = self.make(f"unix:{self.path}:mode=600")
        server.startService()
        self.assertEqual(mode_of(self.path), 0o600)
        self.assertIsNone(server.port)
        self.assertEqual(await hear(f"unix:{self.path}"), b"hello")
        await server.stopService()
        self.assertFalse(self.path.exists())

    async def test_live(self) -> None:
        """A socket that somebody listens on is no place for another server, and is left alone."""
        server = self.make(f"unix:{self.path}")
        server.startService()
        error = self.assertRaises(ListenError, self.make(f"unix:{self.path}").startService)
        self.assertRegex(str(error), f"unix socket {self.path}: (?i:address already in use); end the process")
        self.assertEqual(await hear(f"unix:{self.path}"), b"hello")

    async def test_full(self) -> None:
        """A socket whose server is too busy to accept is live, too."""
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
            busy.bind(str(self.path))
            busy.listen(0)
            waiting.connect(str(self.path))
            self.assertRaises(ListenError, self.make(f"unix:{self.path}").startService)
            self.assertTrue(self.path.is_socket())

    async def test_stale(self) -> None:
        """A socket that nobody listens on any more is replaced."""
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(self.path))
        self.make(f"unix:{self.path}").startService()
        self.assertEqual(await hear(f"unix:{self.path}"), b"hello")

    def test_no_socket(self) -> None:
        """A file that is no socket stays, and fails the start."""
        self.path.write_text("precious")
        error = self.assertRaises(ListenError, self.make(f"unix:{self.path}").startService)
        self.assertIn("not a socket", str(error))
        self.assertEqual(self.path.read_text(), "precious")

    def test_no_directory(self) -> None:
        """A directory that is not there fails the start, and the error says so."""
        error = self.assertRaises(ListenError, self.make(f"unix:{self.path}/missing/api").startService)
        self.assertIn("create the directory", str(error))

    def test_long_path(self) -> None:
        """A path longer than a socket's may be fails the start."""
        error = self.assertRaises(ListenError, self.make(f"unix:{self.path}{'x' * 150}").startService)
        self.assertIn("too long", str(error))

    async def test_at_the_same_time(self) -> None:
        """While one process binds a path, another is kept from it."""
        from novasvc.net.unix import _exclusively  # noqa: PLC0415 - of this test alone

        server = self.make(f"unix:{self.path}")
        with _exclusively(self.path):
            self.assertRaises(ListenError, server.startService)
        server.startService()

    async def test_name_in_kernel(self) -> None:
        """A name that has no file is served as well."""
        name = f"\0novasvc-test-{os.getpid()}"
        server = self.make(f"unix:{name}")
        server.startService()
        caller = Caller(5)
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(name)
            plain.setblocking(False)
            factory = Factory.forProtocol(lambda: caller)
            factory.noisy = False
            reactor.adoptStreamConnection(plain.fileno(), socket.AF_UNIX, factory)
        self.assertEqual(await caller.heard.addTimeout(PATIENCE, reactor), b"hello")
        caller.transport.loseConnection()
        await caller.gone

    def test_supervisor_removes(self) -> None:
        """The file goes when the supervisor closes the socket that it has opened."""
        (opened,) = self.make(f"unix:{self.path}").open_sockets(())
        opened.dup().close()
        self.assertTrue(self.path.exists())
        opened.close()
        self.assertFalse(self.path.exists())

    def test_replaced(self) -> None:
        """A file that has come to its place meanwhile is not removed."""
        (opened,) = self.open(self.make(f"unix:{self.path}"))
        self.path.unlink()
        self.path.write_text("another's")
        opened.close()
        self.assertTrue(self.path.exists())

    def test_held(self) -> None:
        """A reload with the same path keeps the socket, and gives it the new mode."""
        held = self.open(self.make(f"unix:{self.path}:mode=600"))
        self.assertIs(self.open(self.make(f"unix:{self.path}:mode=660"), held)[0], held[0])
        self.assertEqual(mode_of(self.path), 0o660)

    def test_held_elsewhere(self) -> None:
        """A reload with another path opens that; the old file goes with its socket."""
        held = self.open(self.make(f"unix:{self.path}"))
        other = Path(self.mktemp())
        self.open(self.make(f"unix:{other}"), held)
        held[0].close()
        self.assertEqual((self.path.exists(), other.is_socket()), (False, True))

    def test_held_without_file(self) -> None:
        """A held socket whose file was removed is not used again: nobody could reach it."""
        held = self.open(self.make(f"unix:{self.path}"))
        self.path.unlink()
        self.assertIsNot(self.open(self.make(f"unix:{self.path}"), held)[0], held[0])
        held[0].close()
        self.assertTrue(self.path.is_socket())


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up privileges")
class DroppedPrivilegesTests(ServerTestCase):
    """Tests for unix sockets that were opened before the process changed its user, as twistd's ``--uid`` does."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        Path(directory.name).chmod(0o755)
        self.path = Path(directory.name, "api")
        self.server = self.make(f"unix:{self.path}:mode=660")
        self.server.privilegedStartService()
        self.addCleanup(os.seteuid, 0)

    async def test_stop(self) -> None:
        """A file that may not be removed stays, and the server drains all the same."""
        self.server.startService()
        caller = await call(f"unix:{self.path}")
        os.seteuid(_NOBODY)
        stopped = self.server.stopService()
        self.assertNoResult(stopped)
        caller.transport.loseConnection()
        await caller.gone
        await stopped
        self.assertTrue(self.path.is_socket())

    def test_held(self) -> None:
        """A reload with the same path and mode keeps the socket, though the file may not be changed any more."""
        held = self.open(self.make(f"unix:{self.path.with_name('held')}:mode=660"))
        os.seteuid(_NOBODY)
        self.assertIs(self.open(self.make(f"unix:{self.path.with_name('held')}:mode=660"), held)[0], held[0])


class Exhausted(socket.socket):
    """A listening socket in a process that has no descriptor left, for a while."""

    exhausted = True

    def accept(self) -> Any:
        if self.exhausted:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


class UNIXPortTests(SynchronousTestCase):
    """Tests for novasvc.net.unix.UNIXPort."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.listening = Exhausted(socket.AF_UNIX)
        self.addCleanup(self.listening.close)
        self.port = UNIXPort(self.reactor, self.listening, GreeterFactory())
        self.port.startListening()

    def test_interface(self) -> None:
        """A reactor can read from it."""
        verifyObject(IReadDescriptor, self.port)

    def test_no_descriptor(self) -> None:
        """Where there is no descriptor left, it leaves the socket to others for a while, and then goes on."""
        self.port.doRead()
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(1)
        self.assertEqual(self.reactor.getReaders(), [self.port])

    def test_stop_in_pause(self) -> None:
        """A stop while it waits leaves nothing behind."""
        self.port.doRead()
        self.successResultOf(self.port.stopListening())
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))

    def test_read_in_pause(self) -> None:
        """A last read before the end, as of a server that stops, begins no second pause."""
        self.port.doRead()
        self.port.doRead()
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.successResultOf(self.port.stopListening())
        self.reactor.advance(10)
        self.assertEqual(self.reactor.getReaders(), [])

    def test_nobody_there(self) -> None:
        """Nothing happens if another process has accepted the connection for which both were woken."""
        self.listening.exhausted = False
        self.listening.setblocking(False)
        self.listening.bind(self.mktemp())
        self.listening.listen()
        self.port.doRead()
        self.assertEqual(self.reactor.getReaders(), [self.port])

    def test_failing_factory(self) -> None:
        """A connection that cannot be served is closed; the next one is accepted."""
        path = self.mktemp()
        with open_unix(path, 0o600, 5, ()) as listening, socket.socket(socket.AF_UNIX) as caller:
            caller.connect(path)
            port = UNIXPort(self.reactor, listening, GreeterFactory())
            port.startListening()
            self.reactor.adoptStreamConnection = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]
            port.doRead()
            self.assertEqual(caller.recv(1), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


_ACTIVATED = """
import sys
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from novasvc.node.stream_server import StreamServer

class Once(Protocol):
    def connectionMade(self):
        global served
        served += 1
        self.transport.write(b"hello")
        self.transport.loseConnection()
        stopped = server.stopService()
        if served == 1:
            stopped.addCallback(lambda _: server.startService())

    def connectionLost(self, reason):
        if served == 2:
            reactor.stop()

served = 0
server = StreamServer(sys.argv[1], Factory.forProtocol(Once))
try:
    server.startService()
except Exception as error:
    sys.exit(str(error))
reactor.run()
"""


class Activated(ProcessProtocol):
    """A process that is started as systemd does it."""

    def __init__(self) -> None:
        self.said = b""
        self.ended: Deferred[int | None] = Deferred()

    def errReceived(self, data: bytes) -> None:
        self.said += data

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(reason.value.exitCode)


class ActivationTests(ServerTestCase):
    """Tests for sockets that systemd has opened."""

    def activate(self, endpoint: str, passed: socket.socket, variables: str) -> Activated:
        """Start a server with a descriptor 3; LISTEN_PID has to be its own number, so a shell begins."""
        process = Activated()
        reactor.spawnProcess(
            process,
            "/bin/sh",
            ["sh", "-c", f'{variables} exec "$@"', "sh", sys.executable, "-c", _ACTIVATED, endpoint],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            childFDs={0: "w", 1: "r", 2: "r", 3: passed.fileno()},
        )
        return process

    async def test_tcp(self) -> None:
        """A socket that systemd passes is served, and served again after a stop."""
        with socket.create_server(("127.0.0.1", 0)) as passed:
            port = passed.getsockname()[1]
            variables = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api"
            for endpoint in ("systemd:domain=INET:index=0", "systemd:domain=INET:name=api"):
                process = self.activate(endpoint, passed, variables)
                self.assertEqual(await hear(f"tcp:127.0.0.1:{port}"), b"hello")
                self.assertEqual(await hear(f"tcp:127.0.0.1:{port}"), b"hello")
                self.assertEqual((await process.ended, process.said), (0, b""))

    async def test_unix(self) -> None:
        """The file of a unix socket that systemd has made stays: it is systemd's."""
        path = self.mktemp()
        with socket.socket(socket.AF_UNIX) as passed:
            passed.bind(path)
            mode = mode_of(path)
            passed.listen()
            process = self.activate(
                "systemd:domain=UNIX:index=0", passed, "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api"
            )
            self.assertEqual(await hear(f"unix:{path}"), b"hello")
            self.assertEqual(await hear(f"unix:{path}"), b"hello")
            self.assertEqual((await process.ended, process.said), (0, b""))
        self.assertEqual(mode_of(path), mode)

    async def test_nothing_passed(self) -> None:
        """A server that was not started by its socket says so."""
        with socket.create_server(("127.0.0.1", 0)) as passed:
            process = self.activate("systemd:domain=INET:index=0", passed, "")
            self.assertEqual(await process.ended, 1)
        self.assertIn(b"systemd passed no socket of that name", process.said)

    async def test_not_listening(self) -> None:
        """A connection in place of a socket that listens, which is what Accept=yes gives, is refused."""
        passed, other = socket.socketpair()
        with passed, other:
            variables = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api"
            process = self.activate("systemd:domain=UNIX:index=0", passed, variables)
            self.assertEqual(await process.ended, 1)
        self.assertIn(b"Accept=", process.said)
