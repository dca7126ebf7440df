"""Tests for novasvc.rpc.auto_version, with the clients that nodes have."""

from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.errors import (
    DatabaseUnavailableError,
    InvalidTargetError,
    RPCTimeoutError,
    RPCVersionCapError,
    UnsupportedVersionError,
)
from novasvc.rpc.auto_version import REFRESH
from novasvc.rpc.target import Target
from novasvc.testing import FleetMixin
from novasvc.transport.memory import MemoryBroker, MemoryTransport


class Old(Manager):
    service_version = 3

    @rpc.expose(version="1.0")
    def build(self, context: RequestContext, size: int) -> str:
        return f"{self.host} {size}"


class New(Old):
    service_version = 7

    @rpc.expose(version="1.2")
    def build(self, context: RequestContext, size: int, colour: str = "red") -> str:
        return f"{self.host} {size} {colour}"

    @rpc.expose(namespace="disk", version="2.0")
    def grow(self, context: RequestContext) -> str:
        return "grown"


class Newest(New):
    service_version = 9

    @rpc.expose(version="1.4")
    def build(self, context: RequestContext, size: int, colour: str = "red") -> str:
        return f"{self.host} {size} {colour}!"


class AutoCapTests(FleetMixin, SynchronousTestCase):
    """Clients with a version cap that follows the fleet."""

    fleet_settings: ClassVar[dict[str, Any]] = {"allow_older_service": True}  # old services start after new ones

    def start(self, manager: Any, host: str) -> Any:
        return self.fleet.start(manager, host=host, topic="compute", binary="compute")

    def client(self, **prepared: Any) -> Any:
        return self.fleet.client(topic="compute", **{"version_cap": "auto", **prepared})

    def choose(self, *versions: str, **prepared: Any) -> str:
        return str(self.fleet.run(self.client(**prepared).choose_version(*versions)))

    def call(self, version: str | None, server: str | None = None, **prepared: Any) -> Any:
        client = self.client(version=version, server=server, **prepared)
        return self.fleet.run(client.call(RequestContext(), "build", size=1))

    def send(self, kind: str, client: Any) -> Any:
        """Send a message, and wait for it; return the answers to a gather."""
        sending = getattr(client, kind)(RequestContext(), "build", size=1)
        return self.fleet.run(sending.all() if kind == "gather" else sending)

    def test_upgrade(self) -> None:
        """The oldest service that is up decides, and the cap rises when it has gone."""
        old = self.start(Old, "a")
        self.start(New, "b")
        self.assertEqual(self.choose("1.2", "1.0"), "1.0")
        self.assertEqual(self.call("1.0", "b"), "b 1 red")
        with self.assertRaises(RPCVersionCapError) as caught:
            self.call("1.2")
        self.assertEqual((caught.exception.version, caught.exception.version_cap), ("1.2", "1.0"))
        self.assertIn("'compute' that is up: a, with the service version 3", str(caught.exception))
        old.stop()
        self.fleet.advance(61 + REFRESH)
        self.assertEqual(self.choose("1.2", "1.0"), "1.2")
        self.assertEqual(self.call("1.2"), "b 1 red")

    def test_can_send_version(self) -> None:
        """can_send_version() answers with what is known now; before that, everything can be sent."""
        self.start(Old, "a")
        client = self.client()
        self.assertTrue(client.can_send_version("1.2"))
        self.choose("1.0")
        self.assertEqual([client.can_send_version(each) for each in ("1.2", "1.0", None)], [False, True, False])

    def test_other_requests(self) -> None:
        """Casts, fanouts and gathers have the cap, too, each also as the first message to a topic."""
        self.start(Old, "a")
        for send in ("gather", "gather", "fanout", "cast"):
            with self.assertRaises(RPCVersionCapError):
                self.send(send, self.client(version="1.2"))
            self.fleet.advance(2 * REFRESH + 1)
        self.fleet.run(self.client(version="1.0").cast(RequestContext(), "build", size=1))
        self.assertEqual([sent.method for sent in self.fleet.messages("compute", "build")], ["build"])

    def test_namespaces(self) -> None:
        """Each namespace has its own cap; one that the oldest does not serve cannot be called."""
        self.start(New, "b")
        self.assertEqual(self.choose("2.1", "2.0", namespace="disk"), "2.0")
        self.start(Old, "a")
        self.fleet.advance(2 * REFRESH)
        with self.assertRaises(RPCVersionCapError) as caught:
            self.choose("2.0", namespace="disk")
        self.assertEqual(caught.exception.version_cap, "(none)")

    def test_no_version(self) -> None:
        """A call without a version is one of version 1.0."""
        self.start(Old, "a")
        self.assertEqual(self.call(None), "a 1")

    def test_older_returns(self) -> None:
        """A call that an older service refuses has the cap looked at again before the next one."""
        self.start(New, "b")
        self.assertEqual(self.call("1.2"), "b 1 red")
        self.start(Old, "a")
        with self.assertRaises(UnsupportedVersionError):
            self.call("1.2", "a")
        self.fleet.advance(1)
        self.assertEqual(self.choose("1.2", "1.0"), "1.0")

    def test_older_returns_to_gather(self) -> None:
        """So does an answer of an older service to a gather."""
        self.start(New, "b")
        client = self.client(version="1.2")
        self.assertEqual(self.send("gather", client).results, {"b": "b 1 red"})
        self.start(Old, "a")
        self.assertIsInstance(self.send("gather", client).errors["a"], UnsupportedVersionError)
        self.fleet.advance(1)
        with self.assertRaises(RPCVersionCapError):
            self.send("gather", client)

    def test_suspect(self) -> None:
        """Services that are suspect count: they may be alive, and be called."""
        for number in range(4):
            self.start(Old, f"o{number}")
        for number in range(3):
            self.start(New, f"n{number}")
        self.fleet.disconnect(*(f"o{number}" for number in range(4)))
        self.fleet.advance(71)
        self.assertEqual(self.choose("1.2", "1.0", version_cap={3: "1.0", 7: "1.2"}), "1.0")
        # None of them answers, so the others do.
        self.assertEqual(self.choose("1.2", "1.0"), "1.2")

    def test_equal_service_versions(self) -> None:
        """Of services whose service version does not tell them apart, three are asked, and the oldest decides."""

        class Unraised(New):
            service_version = 3

        self.start(Unraised, "a")
        self.start(Old, "b")
        self.assertEqual(self.choose("1.2", "1.0"), "1.0")

    def test_nothing_known(self) -> None:
        """Without a registry, or a service that is up, there is no cap; what was known before stays."""
        self.assertEqual(self.choose("1.4", "1.0"), "1.4")
        self.start(Old, "a")
        self.fleet.advance(REFRESH)
        self.assertEqual(self.choose("1.4", "1.0"), "1.0")
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "away")
        self.fleet.advance(1000)
        self.assertEqual(self.choose("1.4", "1.0"), "1.0")

    def test_table(self) -> None:
        """With a table nobody is asked: it says which version belongs to which service version."""
        table = {0: "1.0", 5: "1.2", 8: ["1.4", "2.0"]}
        self.start(New, "b")
        self.assertEqual(self.choose("1.4", "1.2", "1.0", version_cap=table), "1.2")
        self.assertEqual([sent.method for sent in self.fleet.messages("compute")], [])
        self.start(Old, "a")
        self.fleet.advance(REFRESH)
        self.assertEqual(self.choose("1.4", "1.2", "1.0", version_cap=table), "1.0")
        self.assertEqual(self.choose("1.4", "1.2", "1.0", version_cap={4: "1.2", 3: "1.1"}), "1.0")
        with self.assertRaises(RPCVersionCapError):
            self.choose("1.0", version_cap={5: "1.2"})

    def test_majors(self) -> None:
        """A table may have several major versions for one service version."""
        self.start(Newest, "c")
        table = {8: ["1.4", "2.0"]}
        self.assertEqual(self.choose("2.1", "2.0", version_cap=table), "2.0")
        self.assertEqual(self.choose("3.0", "1.3", version_cap=table), "1.3")

    def test_bad_input(self) -> None:
        """A cap that is none is an error where it is given."""
        client = self.client(version_cap=None)
        for table, text in (
            ({}, "is empty"),
            ({"3": "1.0"}, "the key '3'"),
            ({True: "1.0"}, "the key True"),
            ({3: 1.0}, "the value 1.0"),
            ({3: [1]}, "the value [1]"),
            ({3: "one"}, "'one' is not a version"),
        ):
            with self.assertRaises(ValueError) as caught:
                client.prepare(version_cap=table)
            self.assertIn(text, str(caught.exception))
        with self.assertRaises(ValueError):
            client.choose_version()
        with self.assertRaises(ValueError):
            client.choose_version("new")
        with self.assertRaises(InvalidTargetError):
            self.fleet.run(self.fleet.client().choose_version("1.0"))


class ClientTests(SynchronousTestCase):
    """Clients without a registry."""

    def setUp(self) -> None:
        self.clock = Clock()
        transport = MemoryTransport(MemoryBroker(), clock=self.clock, exchange="nova")
        self.client = rpc.Client(transport, clock=self.clock, target=Target("work", version="1.0"))

    def test_no_registry(self) -> None:
        """A cap that follows the fleet needs a registry, and the error says which client has one."""
        with self.assertRaises(ValueError) as caught:
            self.client.prepare(version_cap="auto")
        self.assertIn("manager.attachments.rpc", str(caught.exception))

    def test_fixed_cap(self) -> None:
        """choose_version() works with a fixed cap, and without one."""
        self.assertEqual(self.successResultOf(self.client.choose_version("1.4", "1.0")), "1.4")
        capped = self.client.prepare(version_cap="1.2")
        self.assertEqual(self.successResultOf(capped.choose_version("1.4", "1.1", "1.0")), "1.1")
        self.failureResultOf(capped.choose_version("1.4", "2.0"), RPCVersionCapError)

    def test_gather_unchecked(self) -> None:
        """A gather that ends before its version is checked is not sent, and its error says so."""
        client = rpc.Client(
            self.client._transport,
            clock=self.clock,
            target=Target("work", version="1.0"),
            version_cap="auto",
            oldest=lambda _: Deferred(),
        )
        gathered = client.prepare(timeout=1).gather(RequestContext(), "build").all()
        self.clock.advance(1)
        self.assertIn("its version is not checked yet", self.failureResultOf(gathered, RPCTimeoutError).value.unsent)
        self.clock.advance(10)
        self.assertEqual(self.clock.getDelayedCalls(), [])
