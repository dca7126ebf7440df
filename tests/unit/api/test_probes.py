"""Tests for novasvc.api.health and novasvc.api.metrics."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.application.service import IService, Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent
from twisted.web.http_headers import Headers
from zope.interface import implementer

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.health import APIHealth, merge_checks
from novasvc.api.login_links import LoginLinks
from novasvc.api.metrics import DocumentCollector
from novasvc.api.sessions import Sessions
from novasvc.api.site import make_api_root
from novasvc.api.tokens import Token, digest
from novasvc.errors import (
    BrokerUnavailableError,
    DatabaseReadOnlyError,
    DatabaseUnavailableError,
    MigrationNeededError,
    TransportClosedError,
)
from novasvc.http import make_site
from novasvc.interfaces import IHealthy
from novasvc.node.runtime import SharedConnection
from novasvc.telemetry import flight, metrics
from novasvc.telemetry.instruments import histogram
from novasvc.testing import memory_runtime
from novasvc.workers.control.listener import ControlSocket
from tests.support.control_rig import StandInSupervisor


def leg(name: str, **changed: Any) -> dict[str, Any]:
    """Return a leg that is ready."""
    return {"name": name, "ready": True, "detail": "well", "since": "2026-01-01T00:00:00+00:00", **changed}


@implementer(IHealthy, IService)
class Part(Service):
    """A service whose health the test sets."""

    def __init__(self, *legs: dict[str, Any]) -> None:
        self.legs = list(legs)
        self.asked = 0

    def health(self) -> Deferred[dict[str, Any]]:
        self.asked += 1
        return succeed({"service": "nova-x@h1", "legs": self.legs})


class _Body(Protocol):
    """Collects a body. Not readBody, which warns of transports that it makes itself."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred()
        self._parts: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.whole.callback(b"".join(self._parts))


class APICase(TestCase):
    """The API on a loopback port, in a process without a supervisor."""

    tokens: tuple[Token, ...] = ()
    worker: int | None = None

    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = Path(directory.name)
        self.part = Part(leg("broker"), leg("consumers"))
        runtime = memory_runtime(reactor, control_socket=self.folder / "control")  # type: ignore[arg-type]  # a clock
        self.backend = Backend(attrs.evolve(runtime, worker=self.worker), lambda: [self.part])
        sessions, logins = Sessions(b"k" * 32, lambda: 0.0), LoginLinks(self.folder / "logins")
        site = make_site(make_api_root(self.backend, Access(self.tokens, sessions, logins)), reactor=reactor)
        port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.url = f"http://127.0.0.1:{port.getHost().port}"

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """Return the status, the type and the body of an answer."""
        sent = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        response = await Agent(reactor).request(method.encode(), f"{self.url}{path}".encode(), sent)
        body = _Body()
        response.deliverBody(body)
        text = await body.whole
        (kind,) = response.headers.getRawHeaders(b"content-type", [b""])
        return response.code, kind.decode(), text.decode()

    async def get_json(self, path: str, **headers: str) -> tuple[int, Any]:
        """Return the status and the document of an answer."""
        status, kind, body = await self.get(path, **headers)
        self.assertEqual(kind, "application/json")
        return status, json.loads(body)


class LiveTests(APICase):
    """Tests for /healthz."""

    tokens = (Token("t", "read", digest("secret")),)

    async def test_needs_nothing(self) -> None:
        """It answers without a token, whatever is unavailable."""
        self.backend.errors["database"] = DatabaseUnavailableError("sqlite:///x", "gone")
        self.assertEqual(await self.get_json("/healthz"), (200, {"status": "ok"}))
        self.assertEqual(await self.get("/healthz", "HEAD"), (200, "application/json", ""))
        self.assertEqual(self.part.asked, 0)

    async def test_other_methods(self) -> None:
        """Other methods get 405."""
        status, _, _ = await self.get("/healthz", "DELETE")
        self.assertEqual(status, 405)


class ReadyTests(APICase):
    """Tests for /readyz of one process."""

    async def test_ready(self) -> None:
        """If all checks are ready it is 200, with each check of each service."""
        status, document = await self.get_json("/readyz")
        self.assertEqual((status, document["ready"], document["workers"]), (200, True, []))
        self.assertEqual(document["legs"][0], {**leg("broker"), "service": "nova-x@h1"})

    async def test_unready(self) -> None:
        """If one check is not ready it is 503, with its reason."""
        self.part.legs[1].update(ready=False, detail="no messages reach it")
        status, document = await self.get_json("/readyz")
        self.assertEqual((status, document["ready"]), (503, False))
        self.assertEqual([leg["name"] for leg in document["legs"] if not leg["ready"]], ["consumers"])

    async def test_often(self) -> None:
        """Frequent requests are answered from a cache of one second."""
        for _ in range(5):
            await self.get_json("/readyz")
        self.assertEqual(self.part.asked, 1)


class GuardedTests(APICase):
    """Tests for both with authentication."""

    tokens = (Token("prometheus", "read", digest("s3cr3t-token")),)

    async def test_verdict_only(self) -> None:
        """Without a token a probe gets the status without details."""
        self.part.legs[0].update(ready=False, detail="amqp://10.0.0.7 refuses")
        status, document = await self.get_json("/readyz")
        self.assertEqual((status, document["workers"]), (503, []))
        self.assertEqual(document["legs"][0], {"name": "broker", "service": "nova-x@h1", "ready": False})
        self.assertNotIn("10.0.0.7", json.dumps(document))

    async def test_details(self) -> None:
        """With a token it gets all details."""
        _, document = await self.get_json("/readyz", x_auth_token="s3cr3t-token")
        self.assertEqual(document["legs"][0]["detail"], "well")

    async def test_metrics(self) -> None:
        """Metrics need the scope read, and contain no token."""
        self.assertEqual((await self.get("/metrics"))[0], 401)
        self.assertEqual((await self.get("/metrics", authorization="Bearer s3cr3t-guess"))[0], 401)
        status, _, body = await self.get("/metrics", authorization="Bearer s3cr3t-token")
        self.assertEqual(status, 200)
        self.assertNotIn("s3cr3t", body)


class MetricsTests(APICase):
    """Tests for /metrics of one process."""

    async def test_text(self) -> None:
        """The text format is valid for prometheus_client's parser."""
        metrics.MethodMetrics.of("compute", None, "boot").seconds.observe(0.02)
        status, kind, body = await self.get("/metrics")
        self.assertEqual((status, kind), (200, "text/plain; version=0.0.4; charset=utf-8"))
        families = {family.name: family for family in parse_text(body)}
        self.assertEqual(len(families), body.count("# TYPE "))
        samples = {
            sample.labels["le"]: sample.value
            for sample in families["novasvc_rpc_server_duration_seconds"].samples
            if sample.name.endswith("_bucket")
        }
        self.assertEqual([samples[bound] for bound in ("0.01", "0.025", "60.0", "+Inf")], [0, 1, 1, 1])

    async def test_openmetrics(self) -> None:
        """It is OpenMetrics if the client accepts that, in any version."""
        for accept in (
            "application/openmetrics-text; version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text;version=x",
        ):
            status, kind, body = await self.get("/metrics", accept=accept)
            self.assertEqual(status, 200)
            self.assertTrue(kind.startswith("application/openmetrics-text; version=1.0.0"), kind)
            self.assertTrue(body.endswith("# EOF\n"))
            self.assertIn("novasvc_build", {family.name.removesuffix("_info") for family in parse_openmetrics(body)})

    async def test_build(self) -> None:
        """The version is a label."""
        _, _, body = await self.get("/metrics")
        self.assertIn('novasvc_build_info{python="', body)


class SupervisedTests(APICase):
    """Tests for both in a worker, which asks the supervisor."""

    worker = 1

    def setUp(self) -> None:
        super().setUp()
        self.supervisor = StandInSupervisor()
        self.control = ControlSocket(self.folder / "control", self.supervisor, reactor)

    def subscribe(self) -> None:
        self.control.startService()
        self.addCleanup(self.control.stopService)

    async def test_metrics(self) -> None:
        """A scrape has the metrics of all workers."""
        self.subscribe()
        made = histogram("novasvc_x_seconds", "What.", "method", "worker", bounds=(1.0,))
        made.at("m", "1").observe(0.5)
        made.at("m", "2").observe(2.0)
        self.patch(self.supervisor, "metrics", lambda: succeed([made.document()]))
        status, _, body = await self.get("/metrics")
        self.assertEqual(status, 200)
        self.assertIn('novasvc_x_seconds_bucket{le="1.0",method="m",worker="2"} 0.0', body)
        self.assertIn('novasvc_x_seconds_sum{method="m",worker="1"} 0.5', body)

    async def test_health(self) -> None:
        """The health of all workers is merged."""
        self.subscribe()
        rows = [
            {
                "number": 1,
                "server": "agent",
                "pid": 4,
                "state": "ready",
                "services": [{"service": "a@h", "legs": [leg("broker")]}],
            },
            {"number": 2, "server": "agent", "pid": 5, "state": "hung", "services": None},
        ]
        self.patch(self.supervisor, "health", lambda: succeed(rows))
        status, document = await self.get_json("/readyz")
        self.assertEqual((status, [row["ready"] for row in document["workers"]]), (200, [True, False]))
        (workers,) = [one for one in document["legs"] if one["name"] == "workers"]
        self.assertEqual((workers["ready"], workers["detail"]), (True, "1 of 2: worker 2 is hung"))

    async def test_replaced_meanwhile(self) -> None:
        """A worker that is replaced during the request does not make the whole not ready."""
        self.subscribe()

        def row(**service: Any) -> dict[str, Any]:
            told = [{"service": "a@h", "legs": [leg("service", **service)]}]
            return {"number": 1, "server": "agent", "pid": 4, "state": "ready", "services": told}

        answers = [[row(ready=False, detail="it is draining")], [row()]]
        self.patch(self.supervisor, "health", lambda: succeed(answers.pop(0)))
        status, _ = await self.get_json("/readyz")
        self.assertEqual(status, 200)

    async def test_no_supervisor(self) -> None:
        """If the supervisor does not answer it is 503 with the reason."""
        status, document = await self.get_json("/readyz")
        self.assertEqual(status, 503)
        self.assertEqual([one["name"] for one in document["legs"]], ["supervisor"])
        self.assertIn("no supervisor listens there", document["legs"][0]["detail"])
        status, document = await self.get_json("/metrics")
        self.assertEqual(status, 503)
        self.assertIn("the supervisor does not report metrics", document["error"]["message"])


class SumUpTests(SynchronousTestCase):
    """Tests for merge_checks."""

    def row(self, number: int, *legs: dict[str, Any], state: str = "ready", server: str = "agent") -> dict[str, Any]:
        services = [{"service": f"{server}@h", "legs": list(legs)}]
        return {"number": number, "server": server, "pid": number, "state": state, "services": services}

    def verdicts(self, *rows: dict[str, Any]) -> dict[tuple[str, str], tuple[bool, str]]:
        return {(one["service"], one["name"]): (one["ready"], one["detail"]) for one in merge_checks(rows)}

    def test_all(self) -> None:
        """A check that is ready in all workers is ready."""
        told = self.verdicts(self.row(1, leg("broker")), self.row(2, leg("broker")))
        self.assertEqual(
            told, {("agent", "workers"): (True, "2 of 2 are ready"), ("agent@h", "broker"): (True, "well")}
        )

    def test_some(self) -> None:
        """A check that is ready in one worker is ready, with the detail of the failing one."""
        broken = leg("broker", ready=False, detail="refused")
        told = self.verdicts(self.row(1, broken), self.row(2, leg("broker")))
        self.assertEqual(told["agent@h", "broker"], (True, "1 of 2: refused"))
        self.assertEqual(told["agent", "workers"], (True, "1 of 2: worker 1 is not ready (broker: refused)"))

    def test_leaving(self) -> None:
        """The checks of a draining worker are not ready, and their details say why."""
        told = self.verdicts(self.row(1, leg("broker"), state="draining"))
        self.assertEqual(told["agent@h", "broker"], (False, "worker 1 is draining"))

    def test_none(self) -> None:
        """A server without a ready worker is not ready."""
        told = self.verdicts(self.row(1, leg("broker")), self.row(2, leg("broker"), state="draining", server="api"))
        self.assertEqual(
            [name for name, (ready, _) in told.items() if not ready], [("api", "workers"), ("api@h", "broker")]
        )

    def test_silent(self) -> None:
        """A worker that does not answer is not ready."""
        told = self.verdicts({**self.row(1), "services": None})
        self.assertEqual(told, {("agent", "workers"): (False, "worker 1 is ready, but does not respond")})


class OwnHealthTests(SynchronousTestCase):
    """Tests for the legs of an API that is alone in its process."""

    def setUp(self) -> None:
        # Other tests of this process may have had a reactor that beat, and beats no more.
        self.addCleanup(flight.install, flight.installed())
        flight.install(flight.FlightRecorder.anonymous())
        self.runtime = memory_runtime()
        self.backend = Backend(self.runtime)
        self.registry: Any = self.successResultOf(Deferred.fromCoroutine(self.runtime.database.acquire()))
        self.health = APIHealth(self.backend)

    def unready(self) -> dict[str, str]:
        told = self.successResultOf(Deferred.fromCoroutine(self.health.report()))
        return {one["name"]: one["detail"] for one in told["legs"] if not one["ready"]}

    def test_opening(self) -> None:
        """Before it is connected only the reactor is ready."""
        self.assertEqual(set(self.unready()), {"broker", "database", "migration"})

    def test_open(self) -> None:
        """Once connected, all checks are ready."""
        self.backend.open()
        self.assertEqual(self.unready(), {})
        self.registry.outage = DatabaseUnavailableError("sqlite:///x", "gone")
        self.assertIn("gone", self.unready()["database"])
        self.registry.outage = None
        self.successResultOf(Deferred.fromCoroutine(self.backend.close()))

    def test_read_only(self) -> None:
        """A read-only database is not ready, although the API sends no heartbeats."""
        self.backend.open()
        self.registry.unwritable = DatabaseReadOnlyError("sqlite:///x", "attempt to write a readonly database")
        self.assertEqual(self.unready(), {"database": str(self.registry.unwritable)})
        self.successResultOf(Deferred.fromCoroutine(self.backend.close()))

    def test_closed_while_opening(self) -> None:
        """Stopping the API while it connects to the broker logs no error."""

        class Opening:
            def open(self) -> Deferred[None]:
                return Deferred(lambda waiting: waiting.errback(TransportClosedError("connecting")))

            def close(self) -> Deferred[None]:
                return succeed(None)

        self.runtime = attrs.evolve(self.runtime, broker=SharedConnection("broker", Opening))
        backend = Backend(self.runtime)
        backend.open().addErrback(lambda _: None)
        self.successResultOf(Deferred.fromCoroutine(backend.close()))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_migration(self) -> None:
        """A schema of another version fails the check "migration"."""
        error = MigrationNeededError("sqlite:///x", "it has no schema yet", found=None, known="0001")
        self.backend.errors["database"] = error
        self.assertEqual(self.unready()["migration"], str(error))

    def test_broker(self) -> None:
        """An unavailable broker is named by its URL with the password masked."""
        error = BrokerUnavailableError("amqp://nova:***@10.0.0.7", "refused")
        self.backend.errors["broker"] = error
        self.assertEqual(self.unready()["broker"], str(error))


class ExpositionTests(SynchronousTestCase):
    """Tests for DocumentCollector."""

    def test_labels_are_escaped(self) -> None:
        """Label values are escaped."""
        family = metrics.counter("novasvc_x_total", "What.", "name")
        family.at('a"b\\c\nd').value = 3
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - as the room has it

        registry = CollectorRegistry()
        registry.register(DocumentCollector([family.document()]))
        (told,) = parse_text(generate_latest(registry).decode())
        self.assertEqual([(sample.labels, sample.value) for sample in told.samples], [({"name": 'a"b\\c\nd'}, 3.0)])
