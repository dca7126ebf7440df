"""Tests for novasvc.workers.inspection: figures and health of all workers, as their supervisor tells them."""

from typing import Any

from twisted.internet.defer import Deferred

from novasvc.telemetry import metrics
from tests.support.supervision_rig import StandInWorker
from tests.support.supervisor_rig import Server, SupervisorCase


def document(name: str = "novasvc_x_total", value: float = 1, **changed: Any) -> dict[str, Any]:
    """Return figures as a worker tells them."""
    usual = {"name": name, "kind": "counter", "help": "What.", "labels": ["method"], "samples": [[["m"], value]]}
    return {**usual, **changed}


class AggregationCase(SupervisorCase):
    """Workers that answer when the test says so."""

    def setUp(self) -> None:
        super().setUp()
        metrics.reset()
        self.addCleanup(metrics.reset)

    def asked(self, asking: Deferred[Any]) -> Deferred[Any]:
        """Let a question arrive."""
        self.host.settle()
        return asking

    def tell(self, worker: StandInWorker, what: str, answer: Any) -> None:
        """Answer the question that has come."""
        (question,) = worker.hear()
        self.assertEqual(question["name"], what)
        worker.say("answer", key=question["query"], answer=answer)

    def samples(self, documents: list[dict[str, Any]], name: str) -> list[Any]:
        found = [document for document in documents if document["name"] == name]
        self.assertEqual(len(found), 1, name)
        return sorted(found[0]["samples"])


class MetricsTests(AggregationCase):
    """Tests for collect_metrics."""

    def test_all(self) -> None:
        """Figures of the same name are one, and each sample says which worker it is of."""
        self.run_all((Server("api"), 1), (Server("agent"), 2))
        asking = self.asked(self.supervisor.metrics())
        for worker in self.host.workers:
            self.tell(worker, "metrics", [document(value=worker.number)])
        told = self.successResultOf(asking)
        self.assertEqual(len({one["name"] for one in told}), len(told))
        labels = [one["labels"] for one in told if one["name"] == "novasvc_x_total"]
        self.assertEqual(labels, [["method", "worker"]])
        self.assertEqual(self.samples(told, "novasvc_x_total"), [[["m", str(number)], number] for number in (1, 2, 3)])

    def test_own(self) -> None:
        """The supervisor's own figures are among them, and what it knows of the workers."""
        self.run_all((Server("api"), 1), (Server("agent"), 2))
        asking = self.asked(self.supervisor.metrics())
        for worker in self.host.workers[1:]:
            self.tell(worker, "metrics", [])
        self.assertNoResult(asking)
        self.host.pass_time(1.0)
        told = self.successResultOf(asking)
        self.assertEqual(self.samples(told, "novasvc_process_threads")[0][0], ["supervisor"])
        expected = [[["agent", "2"], 1], [["agent", "3"], 1], [["api", "1"], 0]]
        self.assertEqual(self.samples(told, "novasvc_worker_up"), expected)
        self.assertEqual(self.samples(told, "novasvc_workers"), [[["agent", "ready"], 2], [["api", "ready"], 1]])

    def test_late(self) -> None:
        """A worker that does not answer is waited for one second, and left out; its answer is too late then."""
        self.run_all((Server("api"), 2))
        one, two = self.host.workers
        asking = self.asked(self.supervisor.metrics())
        self.tell(one, "metrics", [document()])
        self.host.pass_time(0.9)
        self.assertNoResult(asking)
        self.host.pass_time(0.2)
        self.assertEqual(self.samples(self.successResultOf(asking), "novasvc_x_total"), [[["m", "1"], 1]])
        self.tell(two, "metrics", [document()])

    def test_silent(self) -> None:
        """One whose reactor is known not to turn is not even asked."""
        self.run_all((Server("api"), 2))
        one, two = self.host.workers
        two.diagnostics.recorder.beat(two.diagnostics.recorder.last_beat - 10)
        asking = self.asked(self.supervisor.metrics())
        self.tell(one, "metrics", [document()])
        told = self.successResultOf(asking)
        self.assertEqual(self.samples(told, "novasvc_worker_up"), [[["api", "1"], 1], [["api", "2"], 0]])
        self.assertEqual(two.hear(), [])

    def test_dead(self) -> None:
        """A worker that dies while it is asked is left out at once, and counted."""
        self.run_all((Server("api"), 1))
        asking = self.asked(self.supervisor.metrics())
        self.host.workers[0].end(1 << 8)
        self.assertEqual(self.samples(self.successResultOf(asking), "novasvc_worker_up"), [[["api", "1"], 0]])
        self.assertEqual(metrics.worker_restarts.at("api").value, 1)

    def test_other_versions(self) -> None:
        """Of figures that mean another thing in another version, those of the first are told."""
        self.run_all((Server("api"), 2))
        one, two = self.host.workers
        asking = self.asked(self.supervisor.metrics())
        self.tell(one, "metrics", [document()])
        self.tell(two, "metrics", [document(kind="gauge"), document("novasvc_y_total")])
        told = self.successResultOf(asking)
        self.assertEqual(self.samples(told, "novasvc_x_total"), [[["m", "1"], 1]])
        self.assertEqual(self.samples(told, "novasvc_y_total"), [[["m", "2"], 1]])

    def test_successor(self) -> None:
        """While a worker is replaced, two have its number: the one that stays is told of."""
        self.run_all((Server("api"), 1))
        self.supervisor.drain(1)
        self.host.pass_time(0)
        self.host.workers[1].be_ready()
        self.host.pass_time(0)
        self.assertEqual([slot.state for slot in self.supervisor.slots], ["ready", "draining"])
        asking = self.asked(self.supervisor.metrics())
        self.tell(self.host.workers[1], "metrics", [document(value=2)])
        self.assertEqual(self.samples(self.successResultOf(asking), "novasvc_x_total"), [[["m", "1"], 2]])


class HealthTests(AggregationCase):
    """Tests for collect_health."""

    def test_rows(self) -> None:
        """There is a row for each worker, with what it tells of its services, None if it does not answer."""
        self.run_all((Server("api"), 2))
        one, two = self.host.workers
        asking = self.asked(self.supervisor.health())
        self.tell(one, "health", [{"service": "a@h", "legs": []}])
        self.host.pass_time(3.0)
        self.assertEqual(
            self.successResultOf(asking),
            [
                {
                    "number": 1,
                    "server": "api",
                    "pid": one.pid,
                    "state": "ready",
                    "services": [{"service": "a@h", "legs": []}],
                },
                {"number": 2, "server": "api", "pid": two.pid, "state": "ready", "services": None},
            ],
        )
