"""Tests for novasvc.telemetry.metrics: the figures of a process."""

import json
import os
import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import DatabaseUnavailableError, RPCTimeoutError, TransportClosedError
from novasvc.periodic import TaskRunner, periodic_task
from novasvc.registry.heartbeat import Heartbeat, ServiceIdentity
from novasvc.telemetry import metrics
from novasvc.telemetry.flight import FlightRecorder
from novasvc.telemetry.instruments import LONGEST, OTHER, Scalar, counter, gauge, histogram
from novasvc.telemetry.metrics import CallMetrics, MethodMetrics
from novasvc.telemetry.stalls import StallWatch
from novasvc.testing import MemoryRegistry
from novasvc.workers.pipe import MAX_MESSAGE_LENGTH
from novasvc.workers.reports import fit_message
from tests.support.incarnation_owner import Owner
from tests.support.rpc_rig import CONTEXT, RPCCase


class NamesTests(SynchronousTestCase):
    """What Prometheus' users expect of names."""

    def test_names(self) -> None:
        """Each name is ours and once there, has its unit, and a counter's ends as a counter's does."""
        names = [family.name for family in metrics.families()]
        self.assertEqual(len(names), len(set(names)))
        for family in metrics.families():
            self.assertRegex(family.name, r"^novasvc_[a-z_]+$")
            self.assertEqual(family.kind == "counter", family.name.endswith("_total"), family.name)
            if family.kind == "histogram":
                self.assertTrue(family.name.endswith("_seconds"), family.name)

    def test_labels(self) -> None:
        """No label is of a kind that has no bound: no path, no request id, no address."""
        labels = {label for family in metrics.families() for label in family.labels}
        known = (
            "binary connection error fate host manager method namespace observer outcome python route server state "
            "status task topic verdict version worker"
        )
        self.assertEqual(sorted(labels), known.split())


class AddTests(SynchronousTestCase):
    """Tests for add."""

    def test_added(self) -> None:
        """A family of somebody else's is told with ours."""
        family = counter("booted_total", "Instances that were booted.", "flavour")
        metrics.add(family)
        self.addCleanup(metrics._added.clear)
        family.at("small").value += 1
        self.assertIn(family.document(), metrics.documents())

    def test_refused(self) -> None:
        """A name that is taken, or that Prometheus does not take, is refused."""
        for name in ("novasvc_build_info", "a-b", "", "1a", "a\n"):
            self.assertRaises(ValueError, metrics.add, counter(name, "What."))

    def test_same_samples(self) -> None:
        """So is a name whose samples would be mixed with those of another metric."""
        self.addCleanup(metrics._added.clear)
        metrics.add(counter("sold", "What."))
        metrics.add(histogram("wait_seconds", "What."))
        for make, name in ((gauge, "sold_total"), (counter, "sold_total"), (gauge, "wait_seconds_sum")):
            self.assertRaises(ValueError, metrics.add, make(name, "What."))

    def test_labels(self) -> None:
        """A label that a supervisor or Prometheus adds itself, or does not take, is refused."""
        self.addCleanup(metrics._added.clear)
        for labels in (("worker",), ("a-b",), ("__name__",), ("",), ("a", "b", "a")):
            self.assertRaises(ValueError, metrics.add, counter("sold_total", "What.", *labels))
        self.assertRaises(ValueError, metrics.add, histogram("wait_seconds", "What.", "le"))


class BoundsTests(SynchronousTestCase):
    """How much there can be."""

    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)

    def test_calls(self) -> None:
        """Whatever topics and methods are called, there is a bound to what is kept."""
        for number in range(3 * metrics.MAX_CALLED_METHODS):
            CallMetrics.of("x" * 1000, f"{number}").replied.value += 1
        self.assertEqual(len(list(metrics.called)), 6 * (metrics.MAX_CALLED_METHODS + 1))
        self.assertEqual(metrics.called.at(OTHER, OTHER, "replied").value, 2 * metrics.MAX_CALLED_METHODS)

    def test_requests(self) -> None:
        """What a client makes up, a method or a status, makes no new label."""
        for method in ("GET", "get", "BREW", "x" * 10_000):
            metrics.request_begins("api")
            metrics.request_ends("api", "/v2.1/os-services", method, 418, 0.01)
        told = {values: child.value for values, child in metrics.requests}
        route = ("api", "/v2.1/os-services")
        self.assertEqual(told, {(*route, "GET", "4xx"): 1, (*route, OTHER, "4xx"): 3})
        self.assertEqual(metrics.requests_now.at("api").value, 0)
        self.assertEqual(metrics.request_seconds.at(*route).count, 4)

    def test_fits(self) -> None:
        """All figures of a process at their bounds fit into one message to its supervisor."""
        for family in metrics.families():
            for number in range(family.most + 1):
                child = family.at(*(f"{number}".rjust(LONGEST, "x") for _ in family.labels))
                if isinstance(child, Scalar):
                    child.value = 1_234_567
                else:
                    child.observe(1 / 3)
        self.assertLess(len(json.dumps(metrics.documents())), MAX_MESSAGE_LENGTH)

    def test_too_much(self) -> None:
        """Should it ever be more, the largest family is left out, and the others are told."""
        small = {"name": "small", "kind": "gauge", "help": "x", "labels": [], "samples": [[[], 1]]}
        large = {**small, "name": "large", "samples": [[["x" * 1000], 1]] * 4000}
        self.assertTrue(fit_message([small, large]) == [small])
        self.assertEqual(fit_message([small]), [small])

    def test_process(self) -> None:
        """A process tells of itself: memory, processor, descriptors, threads, its start."""
        told = {document["name"]: document["samples"] for document in metrics.documents()}
        for name in (
            "resident_memory_bytes",
            "cpu_seconds_total",
            "open_fds",
            "max_fds",
            "start_time_seconds",
            "threads",
        ):
            ((labels, value),) = told[f"novasvc_process_{name}"]
            self.assertEqual(labels, [])
            self.assertGreater(value, 0)
        self.assertLess(told["novasvc_process_start_time_seconds"][0][1], os.stat("/proc/self/stat").st_mtime + 1)  # noqa: PTH116 - no file for a Path


class CountedTests(RPCCase):
    """What calls leave behind."""

    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)
        super().setUp()

    def told(self, family: Any) -> dict[tuple[str, ...], Any]:
        return {values: child.value for values, child in family if child.value}

    def test_served(self) -> None:
        """A server counts by topic, namespace, method and outcome, and what was raised by its type."""
        self.successResultOf(self.call("note", what=1))
        self.call("hang")
        self.diary.hanging[0].errback(ValueError("x"))
        self.clock.advance(0)
        self.flushLoggedErrors(ValueError)
        expected = {("compute", "", "note", "done"): 1, ("compute", "", "hang", "failed"): 1}
        self.assertEqual(self.told(metrics.served), expected)
        self.assertEqual(self.told(metrics.served_errors), {("compute", "", "hang", "ValueError"): 1})
        self.assertEqual(self.told(metrics.served_now), {})

    def test_called(self) -> None:
        """A client counts by topic, method and outcome, and how long it waited."""
        self.successResultOf(self.call("note"))
        waiting = self.call("hang")
        self.assertEqual(metrics.calls_in_flight.at().value, 1)
        self.clock.advance(61)
        self.failureResultOf(waiting, RPCTimeoutError)
        cancelled = self.call("hang")
        cancelled.addErrback(lambda _: None)
        cancelled.cancel()
        refused = self.call("no_such_method")
        self.clock.advance(0)
        self.failureResultOf(refused)
        unanswered = self.call("hang_again")
        self.successResultOf(self.client.close())
        self.failureResultOf(unanswered, TransportClosedError)
        expected = {
            ("compute", "note", "replied"): 1,
            ("compute", "hang", "timed_out"): 1,
            ("compute", "hang", "cancelled"): 1,
            ("compute", "no_such_method", "failed"): 1,
            ("compute", "hang_again", "cancelled"): 1,
        }
        self.assertEqual(self.told(metrics.called), expected)
        self.assertEqual(metrics.calls_in_flight.at().value, 0)
        self.assertEqual(metrics.called_seconds.at("compute", "hang").count, 2)
        self.assertEqual(self.told(metrics.deliveries), {("compute", "refused"): 1})

    def test_casts(self) -> None:
        """Casts are counted by topic and method."""
        self.client.cast(CONTEXT, "note")
        self.client.fanout(CONTEXT, "note")
        self.assertEqual(self.told(metrics.casts), {("compute", "note"): 2})

    def test_no_arguments(self) -> None:
        """Nothing that a caller sent is in any figure."""
        self.successResultOf(self.call("note", what="s3cr3t"))
        self.assertNotIn("s3cr3t", json.dumps(metrics.documents()))


class OthersTests(SynchronousTestCase):
    """What other parts leave behind."""

    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)

    def test_heartbeats(self) -> None:
        """Heartbeats are counted as sent, failed or skipped, and the last one's time is kept."""
        clock = Clock()
        registry = MemoryRegistry(clock)
        record = self.successResultOf(registry.register("h1", "nova-x", "x", 0))
        proof: list[str] = []
        heartbeat = Heartbeat(
            registry,
            ServiceIdentity("h1", "nova-x", "x"),
            record,
            clock,
            10.0,
            Owner(),
            [lambda: proof[0] if proof else None],
        )
        self.successResultOf(heartbeat.start())
        registry.outage = DatabaseUnavailableError("sqlite:", "gone")
        clock.advance(10)
        registry.outage = None
        proof.append("it sleeps")
        clock.advance(10)
        told = {values[2]: child.value for values, child in metrics.heartbeats}
        self.assertEqual(told, {"sent": 1, "failed": 1, "skipped": 1})
        self.assertGreater(metrics.heartbeat_sent.at("h1", "nova-x").value, 1_500_000_000)
        heartbeat.stop()

    def test_tasks(self) -> None:
        """Runs of tasks are counted by outcome, with their lateness and duration, and due times that were missed."""
        clock = Clock()
        waiting: list[Deferred[None]] = []

        class Owner:
            @periodic_task(spacing=10, timeout=5)
            def sweep(self, context: RequestContext) -> Deferred[None]:
                waiting.append(Deferred())
                return waiting[-1]

        runner = TaskRunner(Owner(), clock=clock, random_source=random.Random(0))
        runner.start()
        labels = (Owner.__qualname__[:LONGEST], "sweep")
        told = {values[2]: child.value for values, child in metrics.tasks}
        self.assertEqual(told, {"done": 0, "timed_out": 0, "failed": 0, "cancelled": 0})  # there before they count
        clock.advance(10.5)
        self.assertEqual(metrics.tasks_now.at(*labels).value, 1)
        clock.advance(2)
        waiting[0].callback(None)
        clock.pump([7.5, 5.0])
        clock.advance(35)
        waiting[-1].errback(ValueError("x"))
        self.flushLoggedErrors(ValueError)
        told = {values[2]: child.value for values, child in metrics.tasks}
        self.assertEqual(told, {"done": 1, "timed_out": 1, "failed": 1, "cancelled": 0})
        self.assertEqual(metrics.task_lateness.at(*labels).count, 3)
        self.assertEqual(metrics.task_seconds.at(*labels).sum, 7.0)
        self.assertEqual(metrics.tasks_missed.at(*labels).value, 3)
        self.assertEqual(metrics.tasks_now.at(*labels).value, 0)
        self.successResultOf(runner.stop())

    def test_reactor_lag(self) -> None:
        """Each second the reactor's lag is one more figure, also when it is small."""
        clock, recorder = Clock(), FlightRecorder.anonymous()
        self.addCleanup(recorder.close)
        watch = StallWatch(recorder, clock, monotonic=clock.seconds)
        watch.start()
        clock.advance(1)
        clock.advance(3.5)
        watch.stop()
        self.assertEqual(metrics.lag_seconds.at().count, 3)
        self.assertEqual(metrics.last_lag.at().value, 2.5)

    def test_forget(self) -> None:
        """A process that was forked from one that counted begins with nothing."""
        MethodMetrics.of("t", None, "m").done.value += 1
        CallMetrics.of("t", "m").replied.value += 1
        metrics.reset()
        self.assertEqual([(family.name, list(family)) for family in metrics.families() if list(family)], [])
        self.assertEqual(CallMetrics.of("t", "m").replied.value, 0)
