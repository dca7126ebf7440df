"""Tests for novasvc.host_agent, on a Clock and this host."""

import time
from typing import Any

import psutil
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import InvalidArgumentsError
from novasvc.host_agent import REFRESH_INTERVAL, HostAgent
from novasvc.testing import FleetMixin


class HostAgentTests(FleetMixin, SynchronousTestCase):
    """Tests for novasvc.host_agent.HostAgent."""

    def setUp(self) -> None:
        self.agent = self.fleet.start(HostAgent, host="h1", disks=["/", "/none"])

    def call(self, method: str, **args: Any) -> Any:
        return self.fleet.run(self.agent.call(method, **args))

    def test_facts(self) -> None:
        """The facts are those of this host, as JSON, and are there for the first call."""
        facts = self.call("get_host_facts")
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
        disks = self.call("get_host_fact", name="disks")
        self.assertGreater(disks["/"]["total"], 0)
        self.assertEqual(disks["/none"], {"error": "No such file or directory"})

    def test_unknown_fact(self) -> None:
        """An unknown fact is an error that lists the known ones."""
        error = self.assertRaises(LookupError, self.call, "get_host_fact", name="moon")
        self.assertIn("there are: host, seen_at", str(error))

    def test_missing_argument(self) -> None:
        """A call without its argument is refused before the method runs."""
        self.assertRaises(InvalidArgumentsError, self.call, "get_host_fact")

    def test_refreshes(self) -> None:
        """The facts are refreshed by the periodic task, and on demand."""
        first = self.call("get_host_fact", name="seen_at")
        self.fleet.advance(REFRESH_INTERVAL)
        second = self.call("get_host_fact", name="seen_at")
        self.assertGreater(second, first)
        self.assertGreater(self.call("refresh")["seen_at"], second)
