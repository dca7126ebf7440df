"""Tests for novasvc.registry.lookup.UpHosts."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.lookup import LIST_TIMEOUT, UpHosts
from novasvc.registry.outages import VerdictRule
from novasvc.registry.record import ServiceChanges
from novasvc.registry.verdicts import judge_some
from novasvc.testing import MemoryRegistry


class UpHostsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.registry: Any = MemoryRegistry(self.clock)
        self.hosts = UpHosts(lambda: self.registry, self.clock, service_down_time=60)

    def add(self, host: str, topic: str = "work") -> Any:
        record = self.successResultOf(self.registry.register(host, f"nova-{topic}", topic, 1))
        self.successResultOf(self.registry.beat(record.id))
        return record

    def test_up(self) -> None:
        """The hosts of a topic's services that are up are listed, disabled ones too."""
        self.add("late")
        self.clock.advance(61)
        forced, disabled = self.add("forced"), self.add("disabled")
        self.successResultOf(self.registry.update(forced.id, ServiceChanges(forced_down=True)))
        self.successResultOf(self.registry.update(disabled.id, ServiceChanges(disabled=True)))
        self.add("h1")
        self.add("h2", topic="other")
        self.assertEqual(self.successResultOf(self.hosts("work")), {"h1", "disabled"})
        self.assertEqual(self.successResultOf(self.hosts("nobody")), frozenset())

    def test_starting(self) -> None:
        """A service that still starts after service_down_time is alive, but cannot answer, and is not listed."""
        start = ServiceStart(host="h1", binary="nova-work", topic="work", version=1, owner="o", machine="m1")
        record = self.successResultOf(self.registry.begin(start))
        self.add("h2")
        for _ in range(5):
            self.clock.advance(20)
            self.successResultOf(self.registry.enter(record.id, 1, "starting", until=0.0))
            self.successResultOf(self.registry.beat(record.id + 1))
        rows = self.successResultOf(self.registry.list("h1", None, None))
        (verdict,) = self.successResultOf(Deferred.fromCoroutine(judge_some(self.registry, rows, VerdictRule())))
        self.assertEqual(verdict.status, "alive")
        self.assertEqual(self.successResultOf(self.hosts("work")), {"h2"})

    def test_not_connected(self) -> None:
        """Without a registry it fails, and with one that does not answer soon."""
        self.registry = None
        self.failureResultOf(self.hosts("work"), LookupError)

        class Silent:
            def page(self, query: Any) -> Deferred[Any]:
                return Deferred()

        self.registry = Silent()
        asking = self.hosts("work")
        self.clock.advance(LIST_TIMEOUT)
        self.failureResultOf(asking, DeferredTimeoutError)
