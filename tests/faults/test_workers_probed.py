"""What is told of a supervisor's workers over HTTP, when one of them hangs or dies."""

import json
import os
import re
import signal
import socket
import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families as parse

from tests.faults.fleet_rig import Fleet, FleetCase, until

WORKERS = 4
SECRET = "s3cr3t-of-the-broker"


class ProbedTests(FleetCase):
    """Tests for /metrics, /readyz and /healthz of an API beside workers."""

    def setUp(self) -> None:
        super().setUp()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]

    def start(self) -> tuple[Fleet, dict[int, int]]:
        """Start four workers and the API."""
        fleet = self.twistd(
            "--workers", str(WORKERS), "--api", "--api-listen-port", str(self.port), NOVASVC_WORKER_WATCHDOG="0"
        )
        return fleet, fleet.ready(WORKERS + 1)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self, name: str) -> dict[str, float]:
        """Return the values of a metric by worker, as a scrape has them."""
        _, body = self.get("/metrics")
        found = (sample for family in parse(body) for sample in family.samples)
        return {sample.labels["worker"]: sample.value for sample in found if sample.name == name}

    def ready(self) -> tuple[int, dict[str, Any]]:
        status, body = self.get("/readyz")
        return status, json.loads(body)

    def test_hung(self) -> None:
        """A worker that was stopped is left out of a scrape, which waits a second for it, and then not at all."""
        fleet, pids = self.start()
        numbers = {str(number) for number in pids}
        self.assertEqual(self.samples("novasvc_worker_up"), dict.fromkeys(numbers, 1.0))
        self.assertEqual(set(self.samples("novasvc_process_cpu_seconds_total")), {*numbers, "supervisor"})
        self.assertEqual(self.ready()[0], 200)
        os.kill(pids[2], signal.SIGSTOP)
        began = time.monotonic()
        up = until(lambda: told if not (told := self.samples("novasvc_worker_up"))["2"] else None)
        self.assertLess(time.monotonic() - began, 5.0)
        self.assertEqual(up, {**dict.fromkeys(numbers, 1.0), "2": 0.0})
        self.assertNotIn("2", self.samples("novasvc_process_cpu_seconds_total"))

        def asked_at_once() -> bool:
            begun = time.monotonic()
            fleet.ask("metrics")  # which remembers nothing, as /metrics does for half a second
            return time.monotonic() - begun < 0.5

        until(asked_at_once)
        status, document = self.ready()
        self.assertEqual(status, 200, "three others take its work")
        self.assertEqual([row["number"] for row in document["workers"] if not row["ready"]], [2])
        self.assertEqual(self.get("/healthz"), (200, '{"status": "ok"}'))
        os.kill(pids[2], signal.SIGCONT)
        until(lambda: self.samples("novasvc_worker_up")["2"] == 1.0)

    def test_killed(self) -> None:
        """One that was killed is counted, and its successor's figures begin again."""
        fleet, pids = self.start()
        before = self.samples("novasvc_process_start_time_seconds")["1"]
        fleet.kill(1)
        fleet.replaced(1, pids[1])
        until(lambda: self.samples("novasvc_process_start_time_seconds").get("1", before) > before)
        # On a busy machine the other worker may be replaced as well, also between the two questions.
        until(lambda: self.restarts_counted(fleet) == self.restarts(fleet) >= 1)
        until(lambda: self.ready()[0] == 200)

    def restarts(self, fleet: Fleet) -> float:
        """Return how often the workers were restarted, as the supervisor says."""
        return sum(row["restarts"] for row in fleet.workers() if row["server"] == "novasvc-agent")

    def restarts_counted(self, fleet: Fleet) -> float:
        """Return the same, as the metrics say."""
        found = re.search(r'novasvc_worker_restarts_total\{server="novasvc-agent"\} (\S+)', self.get("/metrics")[1])
        return 0.0 if found is None else float(found[1])

    def test_no_secret(self) -> None:
        """With a broker that cannot be reached the probes say so, without its password."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"rabbit://nova:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/"
        fleet = self.twistd("--workers", "1", "--api", "--api-listen-port", str(self.port), NOVASVC_TRANSPORT_URL=url)
        until(lambda: any(row["trouble"] == "waiting for the broker" for row in fleet.workers()))
        until(lambda: socket.create_connection(("127.0.0.1", self.port)).close() is None)
        status, document = self.ready()
        self.assertEqual((status, document["ready"]), (503, False))
        self.assertIn("127.0.0.1", json.dumps(document))
        for text in (json.dumps(document), self.get("/metrics")[1], json.dumps(fleet.ask("health"))):
            self.assertNotIn(SECRET, text)
