"""Tests for novasvc.host_agent, on a Clock and this host."""

import time
from typing import Any

import psutil
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import InvalidArgumentsError
from novasvc.host_agent import REFRESH_INTERVAL, HostAgent
from novasvc.service import Service
from novasvc.testing import memory_runtime


class HostAgentTests(SynchronousTestCase):
    """Tests for novasvc.host_agent.HostAgent."""

    def setUp(self) -> None:
        self.runtime = memory_runtime(periodic_fuzzy_delay=0)
        self.clock = self.runtime.reactor
        self.service = Service("h1", "novasvc-agent", "agent", HostAgent, runtime=self.runtime, disks=["/", "/none"])
        self.successResultOf(self.service.start())
        self.addCleanup(self.service.stop)

    def call(self, method: str, **args: Any) -> Any:
        called = self.service.rpc.prepare(topic="agent").call(RequestContext(), method, **args)
        self.clock.pump([0] * 6)
        return called

    def test_facts(self) -> None:
        """The facts are those of this host, as JSON, and are there for the first call."""
        facts = self.successResultOf(self.call("get_host_facts"))
        self.assertEqual(
            set(facts),
            {"host", "seen_at", "cpu", "memory", "load", "disks", "network", "boot_time", "platform"},
        )
        self.assertEqual(facts["host"], "h1")
        self.assertEqual(facts["memory"]["total"], psutil.virtual_memory().total)
        self.assertEqual(facts["cpu"]["count"], psutil.cpu_count())
        self.assertLess(abs(facts["boot_time"] - psutil.boot_time()), 5)
        self.assertLess(time.time() - facts["seen_at"], 60)
        self.assertIn("127.0.0.1", facts["network"]["lo"]["addresses"])

    def test_disks(self) -> None:
        """A disk that cannot be read is reported with its error, beside the readable ones."""
        disks = self.successResultOf(self.call("get_host_fact", name="disks"))
        self.assertGreater(disks["/"]["total"], 0)
        self.assertEqual(disks["/none"], {"error": "No such file or directory"})

    def test_unknown_fact(self) -> None:
        """An unknown fact is an error that lists the known ones."""
        failure = self.failureResultOf(self.call("get_host_fact", name="moon"), LookupError)
        self.assertIn("there are: host, seen_at", failure.getErrorMessage())

    def test_missing_argument(self) -> None:
        """A call without its argument is refused before the method runs."""
        self.failureResultOf(self.call("get_host_fact"), InvalidArgumentsError)

    def test_refreshes(self) -> None:
        """The facts are refreshed by the periodic task, and on demand."""
        first = self.successResultOf(self.call("get_host_fact", name="seen_at"))
        self.clock.advance(REFRESH_INTERVAL)
        second = self.successResultOf(self.call("get_host_fact", name="seen_at"))
        self.assertGreater(second, first)
        self.assertGreater(self.successResultOf(self.call("refresh"))["seen_at"], second)
