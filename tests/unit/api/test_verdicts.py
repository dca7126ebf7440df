"""Tests for the verdicts in the API, and for what its periodic read of the fleet logs and exports."""

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.fleet_reader import FleetReader
from novasvc.api.watch import SLICE
from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.record import ServiceChanges
from novasvc.telemetry import metrics
from tests.support.api_rig import READERS, TOKENS, APIRig

START = ServiceStart(
    host="h", binary="agent", topic="agent", version=1, owner="o", machine="m", zone="az1", tags=("gpu",)
)


class VerdictsTests(SynchronousTestCase):
    def make(self, count: int = 6, *, tokens: bool = False) -> APIRig:
        rig = APIRig(self, TOKENS if tokens else ())
        self.ids = []
        for number in range(count):
            start = attrs.evolve(START, host=f"h{number}", owner=f"o{number}")
            self.ids.append(self.successResultOf(rig.registry.begin(start)).id)
            rig.registry.enter(self.ids[-1], 1, "ready")
            rig.registry.beat(self.ids[-1])
        return rig

    def cut_off(self, rig: APIRig) -> None:
        """Let half of the services be silent for 65 s."""
        for _ in range(13):
            rig.clock.advance(5)
            for service_id in self.ids[:3]:
                rig.registry.beat(service_id)

    def test_alive_and_forced(self) -> None:
        """Each service has its verdict with reason, state, incarnation, zone and tags."""
        rig = self.make(2)
        rig.registry.update(self.ids[1], ServiceChanges(forced_down=True))
        answer = rig.ask("GET", "/v1/verdicts")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.document["totals"], {"alive": 1, "suspect": 0, "down": 1})
        alive, forced = answer.document["services"]
        self.assertEqual((alive["host"], alive["verdict"], alive["verdict_reason"]), ("h0", "alive", ""))
        self.assertEqual(
            (alive["state"], alive["incarnation"], alive["zone"], alive["tags"]), ("ready", 1, "az1", ["gpu"])
        )
        self.assertEqual((forced["verdict"], forced["verdict_reason"]), ("down", "forced down by an operator"))
        self.assertRegex(forced["verdict_since"], r"\+00:00\Z")

    def test_outage(self) -> None:
        """Half of a group that is silent is suspect, and the outage is a sentence; the filters apply to services."""
        rig = self.make()
        self.cut_off(rig)
        document = rig.ask("GET", "/v1/verdicts?status=suspect,down&binary=agent&zone=az1").document
        self.assertEqual(document["totals"], {"alive": 3, "suspect": 3, "down": 0})
        self.assertEqual([service["host"] for service in document["services"]], ["h3", "h4", "h5"])
        (outage,) = document["outages"]
        self.assertRegex(
            outage, r"3 of 6 services of agent became silent .*: the database, the broker, a conductor or a network\Z"
        )
        self.assertEqual(rig.ask("GET", "/v1/verdicts?host=h1").document["services"][0]["verdict"], "alive")

    def test_mistakes(self) -> None:
        """Unknown parameters and statuses are refused, with those that there are."""
        rig = self.make(1)
        for query, problem in (
            ("state=up", "there is no parameter 'state'; there are status, host, binary, zone"),
            ("status=up", "there is no status 'up'; there are alive, suspect, down"),
        ):
            answer = rig.ask("GET", f"/v1/verdicts?{query}")
            self.assertEqual(answer.status, 400)
            self.assertIn(problem, str(answer.document))

    def test_access(self) -> None:
        """A token with the scope read is needed, and suffices."""
        rig = self.make(1, tokens=True)
        self.assertEqual(rig.ask("GET", "/v1/verdicts").status, 401)
        self.assertEqual(rig.ask("GET", "/v1/verdicts", X_Auth_Token=READERS).status, 200)

    def test_no_registry(self) -> None:
        """While the registry is away the answer is 503."""
        rig = self.make(1)
        rig.registry.outage = DatabaseUnavailableError("memory:", "away")
        self.assertEqual(rig.ask("GET", "/v1/verdicts").status, 503)

    def test_reader(self) -> None:
        """The periodic read exports numbers, and knows verdicts and problems."""
        rig = self.make()
        self.cut_off(rig)
        reader = FleetReader(rig.backend)
        records = self.successResultOf(Deferred.fromCoroutine(reader.read()))
        self.assertEqual([reader.verdict(record).status for record in records], ["alive"] * 3 + ["suspect"] * 3)
        self.assertEqual(len(reader.problems()), 1)
        self.assertEqual(metrics.verdicts.at("agent", "suspect").value, 3)
        self.assertEqual(metrics.outages.at().value, 1)
        read = metrics.fleet_read.at().value
        rig.registry.outage = DatabaseUnavailableError("memory:", "away")
        self.failureResultOf(Deferred.fromCoroutine(reader.read()), DatabaseUnavailableError)
        self.assertEqual(metrics.fleet_read.at().value, read)
        self.assertGreater(read, 1_500_000_000)

    def test_returned_meanwhile(self) -> None:
        """The periodic read has the new rows of services that a stall kept silent and that return during the read."""
        rig = self.make()
        rig.clock.advance(100)
        for service_id in self.ids[2:]:
            rig.registry.beat(service_id, 1)
        rig.clock.advance(2)
        read_outages = MemoryRegistry.outages

        def outages(registry: MemoryRegistry, rule: VerdictRule) -> Deferred[Outages]:
            for service_id in self.ids[:2]:
                registry.beat(service_id, 1)
            return read_outages(registry, rule)

        self.patch(MemoryRegistry, "outages", outages)
        reader = FleetReader(rig.backend)
        records = self.successResultOf(Deferred.fromCoroutine(reader.read()))
        self.assertEqual([record.age for record in records], [0.0] * 2 + [2.0] * 4)
        self.assertEqual({reader.verdict(record).status for record in records}, {"alive"})
        self.assertEqual(metrics.verdicts.at("agent", "down").value, 0)

    def test_slices(self) -> None:
        """Other events go on while silent services are looked for, also where no verdicts are exported."""
        rig = APIRig(self, api_watch_interval=0)
        for number in range(SLICE + 1):
            rig.registry.begin(attrs.evolve(START, host=f"h{number}", owner=f"o{number}"))
        reading = Deferred.fromCoroutine(FleetReader(rig.backend).read())
        self.assertNoResult(reading)
        rig.clock.advance(0.01)
        self.assertEqual(len(self.successResultOf(reading)), SLICE + 1)
