"""Version discovery and microversions, as clients of Nova's API ask for them."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.api_rig import TOKENS, APIRig

LIST = "/v2.1/os-services"


class DiscoveryTests(SynchronousTestCase):
    """Tests for novasvc.api.versions."""

    def setUp(self) -> None:
        self.rig = APIRig(self, TOKENS)

    def entry(self, base: str) -> dict[str, Any]:
        return {
            "id": "v2.1",
            "status": "CURRENT",
            "version": "2.104",
            "min_version": "2.1",
            "updated": "2013-07-23T11:33:21Z",
            "links": [{"rel": "self", "href": f"{base}/v2.1/"}],
        }

    def test_root(self) -> None:
        """The root lists both versions without a token; links have the request's Host."""
        answer = self.rig.get("/", host="api.example:8774")
        self.assertEqual((answer.status, answer.headers["Vary"]), (200, "Accept"))
        old, new = answer.document["versions"]
        self.assertEqual(new, self.entry("http://api.example:8774"))
        self.assertEqual((old["id"], old["status"], old["version"], old["min_version"]), ("v2.0", "DEPRECATED", "", ""))
        self.assertEqual(old["links"], [{"rel": "self", "href": "http://api.example:8774/v2/"}])

    def test_root_of_browsers(self) -> None:
        """A browser gets the page at the root, here a redirect to the login."""
        answer = self.rig.get("/", accept="text/html,*/*")
        self.assertEqual((answer.status, answer.headers["Vary"]), (302, "Accept"))

    def test_version(self) -> None:
        """Each version has a document, with and without a trailing slash."""
        for path in ("/v2.1", "/v2.1/"):
            version = self.rig.get(path).document["version"]
            described = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}
            kind = "application/vnd.openstack.compute+json;version=2.1"
            entry = self.entry("http://127.0.0.1:8774")
            self.assertEqual(
                version,
                {
                    **entry,
                    "links": [*entry["links"], described],
                    "media-types": [{"base": "application/json", "type": kind}],
                },
            )
        old = self.rig.get("/v2/").document["version"]
        self.assertEqual((old["id"], old["links"][0]["href"]), ("v2.0", "http://127.0.0.1:8774/v2/"))
        self.assertTrue(old["media-types"][0]["type"].endswith("version=2"))

    def test_without_host(self) -> None:
        """Without a Host header (HTTP/1.0), links have the address of the connection."""
        asking = self.rig.send("GET", "/v2.1")
        raw = b"GET /v2.1 HTTP/1.0\r\n\r\n"
        asking.transport.clear()
        protocol = self.rig.site.buildProtocol(asking.transport.getPeer())
        protocol.makeConnection(asking.transport)
        protocol.dataReceived(raw)
        self.assertIn(b'"href": "http://10.0.0.1:12345/v2.1/"', asking.transport.value())


class MicroversionTests(SynchronousTestCase):
    """Tests for novasvc.api.microversion."""

    def setUp(self) -> None:
        self.rig = APIRig(self)

    def test_said(self) -> None:
        """A response names its version in both headers, and in Vary the request headers."""
        for given, expected in (
            ({}, "2.1"),
            ({"OpenStack_API_Version": "compute 2.53"}, "2.53"),
            ({"X_OpenStack_Nova_API_Version": "2.53"}, "2.53"),
            ({"OpenStack_API_Version": "Compute  2.53"}, "2.53"),
            ({"OpenStack_API_Version": "compute 2.60", "X_OpenStack_Nova_API_Version": "2.53"}, "2.60"),
            ({"OpenStack_API_Version": "identity 3.1, compute 2.53"}, "2.53"),
            ({"OpenStack_API_Version": "compute 2.53,identity 3.1"}, "2.53"),
            ({"OpenStack_API_Version": "compute latest"}, "2.104"),
            ({"X_OpenStack_Nova_API_Version": "latest"}, "2.104"),
            ({"OpenStack_API_Version": "identity 3.1"}, "2.1"),
            ({"OpenStack_API_Version": "volume latest", "X_OpenStack_Nova_API_Version": "2.7"}, "2.7"),
        ):
            answer = self.rig.get(LIST, **given)
            self.assertEqual(answer.status, 200, given)
            self.assertEqual(answer.headers["OpenStack-API-Version"], f"compute {expected}", given)
            self.assertEqual(answer.headers["X-OpenStack-Nova-API-Version"], expected, given)
            vary = ["OpenStack-API-Version", "X-OpenStack-Nova-API-Version"]
            self.assertEqual(answer.headers.get_all("Vary"), vary, given)

    def test_refused(self) -> None:
        """A version out of range is 406, a malformed one 400, for every method."""
        for version in ("2.105", "2.0", "1.1", "3.0", "2.999999999"):
            for method, path in (("GET", LIST), ("PUT", f"{LIST}/x"), ("DELETE", f"{LIST}/x")):
                answer = self.rig.ask(method, path, OpenStack_API_Version=f"compute {version}")
                message = f"Version {version} is not supported by the API. Minimum is 2.1 and maximum is 2.104."
                self.assertEqual(answer.status, 406)
                self.assertEqual(answer.document, {"computeFault": {"code": 406, "message": message}})
                self.assertEqual(answer.headers["X-OpenStack-Nova-API-Version"], version)
        for version in ("abc", "2", "2.01", "02.1", "2.1.1", "-2.1", "2.x", "", "2.1 2.2", "9" * 5000 + ".1"):
            answer = self.rig.get(LIST, OpenStack_API_Version=f"compute {version}")
            message = f"API Version String {version[:100]} is of invalid format. Must be of format MajorNum.MinorNum."
            self.assertEqual(answer.status, 400)
            self.assertEqual(answer.document, {"badRequest": {"code": 400, "message": message}})
            self.assertNotIn("OpenStack-API-Version", answer.headers)

    def test_v2(self) -> None:
        """/v2 is always 2.1: it ignores requested versions, and sends none."""
        self.rig.add("h1")
        for version in ("compute 2.53", "compute nonsense"):
            answer = self.rig.get("/v2/os-services", OpenStack_API_Version=version)
            self.assertEqual((answer.status, answer.document["services"][0]["id"]), (200, 1))
            self.assertNotIn("OpenStack-API-Version", answer.headers)
