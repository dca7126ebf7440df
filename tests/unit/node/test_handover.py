"""Servers that take the place of others in one process: their sockets, and the tree that restarts them."""

import socket
from collections.abc import Sequence
from contextlib import closing

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from novasvc import ServiceTree
from novasvc.errors import ListenError
from novasvc.interfaces import IReplaceable
from novasvc.node.handover import hand_over_sockets
from novasvc.node.stream_server import StreamServer


def refuses(port: int) -> bool:
    """Tell whether nobody listens on a port."""
    with closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


class SocketsTests(SynchronousTestCase):
    """Tests for novasvc.node.handover.hand_over_sockets, on real sockets."""

    def make(self, endpoint: str) -> StreamServer:
        server = StreamServer(endpoint, Factory)
        self.addCleanup(server.stopService)
        return server

    def bound(self, endpoint: str = "tcp:0:interface=127.0.0.1") -> StreamServer:
        server = self.make(endpoint)
        server.privilegedStartService()
        return server

    def test_interface(self) -> None:
        """A server of streams can be replaced."""
        verifyObject(IReplaceable, self.make("tcp:0"))

    def test_same_address(self) -> None:
        """A server with the same address has the port at once, and it stays open when the one before stops."""
        before = self.bound()
        after = self.make(f"tcp:{before.port}:interface=127.0.0.1")
        hand_over_sockets([Service(), before], [after, Service()])
        self.assertEqual(after.port, before.port)
        before.stopService()
        self.assertFalse(refuses(after.port or 0))
        after.stopService()
        self.assertTrue(refuses(after.port or 0))

    def test_other_address(self) -> None:
        """A server with another address opens that, and the old port closes with who had it."""
        before = self.bound()
        after = self.make("tcp:0:interface=127.0.0.2")
        self.assertEqual(hand_over_sockets([before], [after]), [before])
        before.stopService()
        self.assertTrue(refuses(before.port or 0))
        with closing(socket.create_connection(("127.0.0.2", after.port or 0), timeout=5)):
            pass

    def test_two(self) -> None:
        """Of several servers each has the port that it asks for."""
        ports = [self.bound(), self.bound()]
        after = [self.make(f"tcp:{server.port}:interface=127.0.0.1") for server in reversed(ports)]
        hand_over_sockets(ports, after)
        self.assertEqual([server.port for server in after], [ports[1].port, ports[0].port])

    def test_refused(self) -> None:
        """If one address cannot be had, nothing is taken up, and the others are left as they are."""
        before, taken = self.bound(), self.bound()
        first, second, third = (
            self.make(endpoint)
            for endpoint in (
                f"tcp:{before.port}:interface=127.0.0.1",
                "tcp:0:interface=127.0.0.1",
                f"tcp:{taken.port}:interface=127.0.0.1",
            )
        )
        self.assertRaises(ListenError, hand_over_sockets, [before], [first, second, third])
        self.assertTrue(refuses(second.port or 0))
        self.assertFalse(refuses(before.port or 0))
        before.stopService()
        self.assertTrue(refuses(before.port or 0))

    def test_unix(self) -> None:
        """The socket of a file has one owner, and is not handed on: who comes binds it when the other has stopped."""
        path = self.mktemp()
        before = self.bound(f"unix:{path}")
        after = self.make(f"unix:{path}")
        self.assertEqual(hand_over_sockets([before], [after]), [])
        before.stopService()
        after.startService()

    def test_staying(self) -> None:
        """A server that stays is left alone."""
        before = self.bound()
        sockets = before._sockets
        self.assertEqual(hand_over_sockets([before], [before]), [])
        self.assertIs(before._sockets, sockets)

    def test_any_port(self) -> None:
        """Who is content with any port takes none that another asks for, wherever they stand."""
        before = self.bound()
        before.setName("app")
        fixed, anywhere = self.make(f"tcp:{before.port}:interface=127.0.0.1"), self.make("tcp:0:interface=127.0.0.1")
        fixed.setName("app")
        hand_over_sockets([before], [anywhere, fixed])
        self.assertEqual(fixed.port, before.port)
        self.assertNotEqual(anywhere.port, before.port)

    def waiting(self, server: StreamServer) -> socket.socket:
        """Connect; nobody has accepted yet."""
        client = socket.create_connection(("127.0.0.1", server.port or 0), timeout=5)
        self.addCleanup(client.close)
        return client

    def accepted(self, server: StreamServer) -> list[object]:
        """Have a server run; return whom it has accepted."""
        accepted: list[object] = []
        server.factory = Factory.forProtocol(lambda: accepted.append(1) or Protocol())
        server.startService()
        return accepted

    def test_who_waits(self) -> None:
        """Who has connected, and waits, is taken in by a server that stops, unless another listens there now."""
        alone, refused, succeeded = (self.bound() for _ in range(3))
        served = [self.accepted(server) for server in (alone, refused, succeeded)]
        taken = self.bound()
        self.assertRaises(
            ListenError, hand_over_sockets, [refused], [self.make(f"tcp:{taken.port}:interface=127.0.0.1")]
        )
        hand_over_sockets([succeeded], [self.make(f"tcp:{succeeded.port}:interface=127.0.0.1")])
        for server in (alone, refused, succeeded):
            self.waiting(server)
            server.stopService()
        self.assertEqual([len(each) for each in served], [1, 1, 0])


@implementer(IReplaceable)
class Part(Service):
    """A server without sockets, whose stop ends when the test says so."""

    replaceable = True

    def __init__(self, name: str, log: list[str], generation: int = 1) -> None:
        self.name = name
        self.label = f"{name}{generation}"
        self.log = log
        self.adopted = self.handed_on = False
        self.stopped: Deferred[None] = Deferred()

    def open_sockets(self, held: Sequence[socket.socket]) -> Sequence[socket.socket]:
        return ()

    def adopt_sockets(self, sockets: Sequence[socket.socket]) -> None:
        self.adopted = True

    def duplicate_sockets(self) -> Sequence[socket.socket]:
        self.handed_on = True
        return ()

    def superseded(self) -> None:
        raise NotImplementedError  # it has no socket that another could listen on

    def startService(self) -> None:
        super().startService()
        self.log.append(f"start {self.label}")

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.log.append(f"stop {self.label}")
        return self.stopped

    def hurry(self) -> None:
        self.log.append(f"hurry {self.label}")


class Node(Service):
    """A part that is not replaced while it runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log
        self.stopped: Deferred[None] = Deferred()

    def startService(self) -> None:
        super().startService()
        self.log.append(f"start {self.name}")

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.log.append(f"stop {self.name}")
        return self.stopped


class RestartTests(SynchronousTestCase):
    """Tests for novasvc.ServiceTree.restart, with servers that hand their sockets on."""

    def setUp(self) -> None:
        self.log: list[str] = []
        self.tree = ServiceTree()
        self.api = Part("api", self.log)
        self.node = Node("node", self.log)
        self.old = Part("old", self.log)
        for part in (self.api, self.node, self.old):
            part.setServiceParent(self.tree)
        self.tree.startService()
        self.log.clear()

    def restart(self) -> tuple[Part, Deferred[None]]:
        """Restart with another API, and without the part that is called old; the node is the same."""
        api = Part("api", self.log, generation=2)
        self.tree.hand_over_sockets([api, self.node])
        return api, self.tree.restart([api, self.node])

    def test_beside(self) -> None:
        """A server serves on while the others stop, until the one of its name runs; nobody waits for its end."""
        api, restarted = self.restart()
        self.assertTrue(api.adopted)
        self.assertEqual(self.log, ["stop node"])
        self.node.stopped.callback(None)
        self.assertEqual(self.log[1:], ["stop old1", "start api2", "stop api1", "start node"])
        self.successResultOf(restarted)
        self.assertEqual(list(self.tree), [api, self.node])
        stopped = self.tree.stopService()
        api.stopped.callback(None)
        self.api.stopped.callback(None)
        self.assertNoResult(stopped)
        self.old.stopped.callback(None)
        self.successResultOf(stopped)

    def test_hurry(self) -> None:
        """Who is still on the way down is cut short with the others."""
        self.restart()
        self.node.stopped.callback(None)
        self.log.clear()
        self.tree.stopService()
        self.tree.hurry()
        hurried = [entry for entry in self.log if entry.startswith("hurry")]
        self.assertEqual(hurried, ["hurry api2", "hurry old1", "hurry api1"])

    def test_stop_meanwhile(self) -> None:
        """A stop amid the restart stops all, and lets go of what was to be."""
        api, restarted = self.restart()
        stopped = self.tree.stopService()
        self.assertEqual(self.log, ["stop node", "stop api2"])
        for part in (self.node, self.old, api):
            part.stopped.callback(None)
        self.assertEqual(self.log[2:], ["stop old1", "stop api1"])
        self.assertNoResult(stopped)
        self.api.stopped.callback(None)
        self.successResultOf(stopped)
        self.failureResultOf(restarted)

    def test_another(self) -> None:
        """A restart that takes the place of one lets go of what that was to start."""
        second, first_restart = self.restart()
        third = Part("api", self.log, generation=3)
        self.tree.hand_over_sockets([third, self.node])
        self.tree.restart([third, self.node])
        self.assertTrue(second.handed_on)
        self.assertEqual(self.log, ["stop node", "stop api2"])
        self.node.stopped.callback(None)
        self.assertEqual(self.log[2:], ["stop old1", "start api3", "stop api1", "start node"])
        self.successResultOf(first_restart)

    def test_start_that_takes_long(self) -> None:
        """A restart amid the start of another has the server of that serve on, and those before end."""
        second, _ = self.restart()
        self.node.stopped.callback(None)
        self.node.stopped = Deferred()
        self.log.clear()
        third = Part("api", self.log, generation=3)
        self.tree.hand_over_sockets([third])
        restarted = self.tree.restart([third])
        self.assertEqual(self.log, ["stop node"])
        self.node.stopped.callback(None)
        self.assertEqual(self.log, ["stop node", "start api3", "stop api2"])
        self.successResultOf(restarted)
        self.assertFalse(second.stopped.called)

    def test_start_that_hangs(self) -> None:
        """As long as no successor of its name runs, a server serves on, however many restarts there are."""
        app = Part("app", self.log)
        app.setServiceParent(self.tree)
        apps = []
        for generation in (2, 3, 4):
            apps.append(Part("app", self.log, generation))
            parts = [_Never(), apps[-1]]
            self.tree.hand_over_sockets(parts)
            self.tree.restart(parts)
            for each in (self.node, self.api, self.old):
                if not each.stopped.called:
                    each.stopped.callback(None)
        self.assertNotIn("stop app1", self.log)
        last = Part("app", self.log, 5)
        self.tree.hand_over_sockets([last])
        self.tree.restart([last])
        self.assertEqual(self.log[-2:], ["start app5", "stop app1"])

    def test_back(self) -> None:
        """A restart may lead back to what serves on while its successors hang: it stops then, and starts again."""
        never = _Never()
        self.tree.hand_over_sockets([never, Part("api", self.log, 2)])
        self.tree.restart([never, Part("api", self.log, 2)])
        self.node.stopped.callback(None)
        self.old.stopped.callback(None)
        self.assertNotIn("stop api1", self.log)
        self.tree.hand_over_sockets([self.api])
        restarted = self.tree.restart([self.api])
        self.assertEqual(self.log[-1], "stop api1")
        self.api.stopped.callback(None)
        self.assertEqual(self.log[-1], "start api1")
        self.successResultOf(restarted)

    def test_not_begun(self) -> None:
        """A part that was bound, and not started before the tree stops, lets go of its socket."""
        late = Part("late", self.log)
        waits = ServiceTree("waits")
        Part("first", self.log).setServiceParent(waits)
        never = _Never()
        never.setServiceParent(waits)
        late.setServiceParent(waits)
        waits.startService()
        waits.stopService()
        self.assertIn("stop late1", self.log)


class _Never(ServiceTree):
    """A part whose start does not end."""

    def when_started(self) -> Deferred[None]:
        return Deferred()

    def stopService(self) -> Deferred[None]:
        return succeed(None)
