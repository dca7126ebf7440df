"""Tests for the leases in the API and on the page."""

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.lease import LeaseRequest
from tests.support.api_rig import READERS, TOKENS, APIRig

LEASES = [
    {
        "topic": "shop",
        "task": "nightly",
        "holder": "h1 worker 2",
        "fencing": 1,
        "acquired_at": "1970-01-12T13:46:40.000+00:00",
        "held_for": 5.0,
        "expires_in": 25.0,
        "last_run_at": "1970-01-12T13:46:40.000+00:00",
        "last_due": "1970-01-02T00:00:00.000+00:00",
    },
    {
        "topic": "shop",
        "task": "weekly",
        "holder": None,
        "fencing": 1,
        "acquired_at": "1970-01-12T13:46:40.000+00:00",
        "held_for": 5.0,
        "expires_in": -5.0,
        "last_run_at": None,
        "last_due": None,
    },
]


class LeasesTests(SynchronousTestCase):
    def make(self, *, tokens: bool = False) -> APIRig:
        rig = APIRig(self, TOKENS if tokens else ())
        request = LeaseRequest(
            topic="shop",
            holder="h1 worker 2",
            owner="an id",
            seconds=30,
            tasks=("nightly", "weekly"),
            runs={"nightly": 86400.0},
        )
        rig.registry.hold_leases(request)
        rig.registry.release_leases("shop", "an id", ["weekly"])
        rig.clock.advance(5)
        return rig

    def test_list(self) -> None:
        """The leases are listed with their holders; the id of the process is not shown."""
        answer = self.make().ask("GET", "/v1/leases")
        self.assertEqual((answer.status, answer.document), (200, {"leases": LEASES}))

    def test_access(self) -> None:
        """A token with the scope read is needed, and suffices."""
        rig = self.make(tokens=True)
        self.assertEqual(rig.ask("GET", "/v1/leases").status, 401)
        self.assertEqual(rig.ask("GET", "/v1/leases", X_Auth_Token=READERS).document, {"leases": LEASES})
        page = rig.ask("GET", "/leases")
        self.assertEqual((page.status, page.headers["location"]), (302, "/login?next=%2Fleases"))

    def test_methods(self) -> None:
        """Leases cannot be changed; the RPC gateway beside them still answers."""
        rig = self.make()
        self.assertEqual(rig.ask("POST", "/v1/leases", {}).status, 405)
        self.assertEqual(rig.ask("GET", "/v1/leases/shop").status, 404)
        self.assertEqual(rig.ask("GET", "/v1/rpc/a/b").status, 405)

    def test_described(self) -> None:
        """The list is in the OpenAPI document, with its schema."""
        document = self.make().ask("GET", "/openapi.json").document
        operation = document["paths"]["/v1/leases"]["get"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        self.assertEqual(schema["properties"]["leases"]["items"], {"$ref": "#/components/schemas/Lease"})
        self.assertEqual({*document["components"]["schemas"]["Lease"]["required"]}, {*LEASES[0]})

    def test_outage(self) -> None:
        """Without the database the list and the page say so."""
        rig = self.make()
        rig.registry.outage = DatabaseUnavailableError("u", "away")
        self.assertEqual(rig.ask("GET", "/v1/leases").status, 503)
        page = rig.ask("GET", "/leases")
        self.assertEqual(page.status, 503)
        self.assertIn(b"database u: away", page.body)

    def test_page_not_connected(self) -> None:
        """Before the registry is connected the page says so, and shows the leases once it is."""
        rig = self.make()
        self.successResultOf(Deferred.fromCoroutine(rig.backend.close()))
        self.assertEqual(rig.ask("GET", "/leases").status, 503)
        rig.backend.open()
        rig.clock.advance(0)
        self.assertEqual(rig.ask("GET", "/leases").status, 200)

    def test_page(self) -> None:
        """The page shows who has which lease, since when, and which are free, in a part that updates itself."""
        page = self.make().ask("GET", "/leases").body.decode()
        for text in ('id="leases" data-live', "nightly", "h1 worker 2", "1970-01-12 13:46:40", "nobody", "5 s ago"):
            self.assertIn(text, page)
        self.assertNotIn("an id", page)

    def test_page_hostile(self) -> None:
        """Names that contain HTML are escaped."""
        rig = APIRig(self)
        evil = "<script>alert(1)</script>"
        rig.registry.hold_leases(LeaseRequest(topic=evil, holder=evil, owner="o", seconds=30, tasks=(evil,)))
        page = rig.ask("GET", "/leases").body.decode()
        self.assertNotIn(evil, page)
        self.assertIn("&lt;script&gt;", page)

    def test_empty_page(self) -> None:
        """Without leases the page says how a task gets one."""
        self.assertIn(b"scope=&#34;fleet&#34;", APIRig(self).ask("GET", "/leases").body.replace(b'"', b"&#34;"))
