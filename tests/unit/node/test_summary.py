from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.node.summary import summarize, summarize_history


def task(**changed: Any) -> dict[str, Any]:
    usual = {
        "name": "sweep", "runs": 1, "failures": 0, "timeouts": 0, "missed": 0, "running": False, "last_lateness": None,
        "max_lateness": 0.1, "last_duration": None, "next_due_in": 5.0, "leads": False, "fencing": None,
    }  # fmt: skip
    return {**usual, **changed}


def method(calls: int, counts: list[int], mean: float | None, bounds: tuple[float, ...] = (1.0, 2.0)) -> dict[str, Any]:
    names = {"method": "greet", "namespace": None, "version": "1.0", "errors": 1, "in_flight": 0}
    return {**names, "calls": calls, "mean": mean, "p50": mean, "p99": mean, "bounds": [*bounds], "counts": counts}


def worker(number: int, **changed: Any) -> dict[str, Any]:
    usual = {
        "worker": number, "uptime": 10.0 * number, "in_flight": number, "quarantined": 0, "tasks": [], "methods": [],
        "calls": [], "errors": [], "events": [], "health": [],
    }  # fmt: skip
    return {**usual, **changed}


class SummaryTests(SynchronousTestCase):
    def test_one(self) -> None:
        """The description of a node without other workers is its own."""
        own = worker(1)
        self.assertIs(summarize(own, []), own)

    def test_methods(self) -> None:
        """Calls are added, and durations are those of all calls."""
        own = worker(2, methods=[method(4, [4, 0, 0], 0.5)])
        told = summarize(own, [worker(1, methods=[method(4, [0, 4, 0], 1.5)]), worker(3)])
        (row,) = told["methods"]
        self.assertEqual((row["calls"], row["errors"], row["mean"], row["counts"]), (8, 2, 1.0, [4, 4, 0]))
        self.assertEqual((row["p50"], round(row["p99"], 2)), (1.0, 1.98))
        self.assertEqual((told["worker"], told["uptime"], told["in_flight"]), (2, 30.0, 6))

    def test_other_buckets(self) -> None:
        """The durations of a worker of another version, with other buckets, are left out; its calls are not."""
        told = summarize(worker(1, methods=[method(1, [1, 0, 0], 0.5)]), [worker(2, methods=[method(9, [9], 7.0, ())])])
        self.assertEqual([(row["calls"], row["mean"]) for row in told["methods"]], [(10, 0.5)])

    def test_tasks(self) -> None:
        """Runs are added; when a task is due again is told by the worker that leads it."""
        tasks = [task(), task(runs=7, leads=True, fencing=4, next_due_in=60.0, last_duration=0.2, running=True)]
        (row,) = summarize(worker(1, tasks=[tasks[0]]), [worker(2, tasks=[tasks[1]])])["tasks"]
        expected = {"runs": 8, "leads": True, "fencing": 4, "next_due_in": 60.0, "last_duration": 0.2, "running": True}
        self.assertEqual({name: row[name] for name in expected}, expected)

    def test_health(self) -> None:
        """A check is ready if it is in all workers; one that is not names the worker."""
        good, bad = ({"name": "broker", "ready": ready, "detail": "x", "since": ""} for ready in (True, False))
        told = summarize(worker(1, health=[good]), [worker(2, health=[bad]), worker(3, health=[good])])
        self.assertEqual([(row["ready"], row["detail"]) for row in told["health"]], [(False, "worker 2: x")])

    def test_lists(self) -> None:
        """Events, errors and calls are those of all workers, each with its worker, and not more than of one."""
        events = [{"time": f"{number:03}", "text": ""} for number in range(150)]
        own = worker(1, events=events[::2], calls=[{"seconds": 1.0}])
        told = summarize(own, [worker(2, events=events[1::2], calls=[{"seconds": 9.0}])])
        self.assertEqual([event["time"] for event in told["events"]], [f"{number:03}" for number in range(50, 150)])
        self.assertEqual([call["worker"] for call in told["calls"]], [2, 1])
        self.assertEqual({event["worker"] for event in told["events"]}, {1, 2})


class HistoryTests(SynchronousTestCase):
    def history(self, newest: int, calls: list[int], name: str = "greet") -> dict[str, Any]:
        row = {"method": name, "namespace": None, "version": "1.0", "calls": calls, "errors": [0] * len(calls)}
        methods = [{**row, "seconds": [0.5 * count for count in calls]}] if any(calls) else []
        return {"interval": 10.0, "newest": newest, "length": len(calls), "methods": methods}

    def test_same_intervals(self) -> None:
        """The figures of the same interval are added, also if a worker started later or answers a moment later."""
        told = summarize_history(self.history(100, [1, 2, 3]), [self.history(100, [10]), self.history(101, [100, 0])])
        self.assertEqual((told["newest"], told["length"]), (101, 4))
        self.assertEqual(told["methods"][0]["calls"], [1, 2, 113, 0])
        self.assertEqual(told["methods"][0]["seconds"], [0.5, 1.0, 56.5, 0.0])

    def test_methods(self) -> None:
        """A method that only some workers served has zeros for the others."""
        told = summarize_history(self.history(100, [0, 0]), [self.history(100, [1, 2], "count")])
        self.assertEqual([(row["method"], row["calls"]) for row in told["methods"]], [("count", [1, 2])])

    def test_alone(self) -> None:
        """A process without workers has its own."""
        own = self.history(100, [1, 2])
        self.assertEqual(summarize_history(own, []), own)
