"""Tests for the compute services API: responses, errors, changes and the audit log."""

import json
import uuid
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.listing import MAX_PAGE
from novasvc.errors import DatabaseCorruptError, DatabaseUnavailableError
from novasvc.registry.record import ServiceChanges
from tests.support.api_rig import ADMINS, READERS, TOKENS, Answer, APIRig

LIST = "/v2.1/os-services"
NO_SUCH_UUID = "00000000-0000-4000-8000-000000000000"
TOO_LONG = "x" * 256


class ServicesCase(SynchronousTestCase):
    """The API with a service."""

    def setUp(self) -> None:
        self.rig = APIRig(self)
        self.record = self.rig.add("h1")

    def ask(self, method: str, path: str, body: Any = None, version: str = "", **headers: str) -> Answer:
        if version:
            headers["OpenStack_API_Version"] = f"compute {version}"
        return self.rig.ask(method, path, body, **headers)

    def assert_fault(self, answer: Answer, status: int, name: str, message: str) -> None:
        self.assertEqual((answer.document, answer.status), ({name: {"code": status, "message": message}}, status))
        self.assertEqual(answer.headers["Content-Type"], "application/json; charset=UTF-8")
        self.assertEqual(answer.headers["x-compute-request-id"], answer.headers["x-openstack-request-id"])

    def audits(self) -> list[str]:
        """Collect the audit lines from now on."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event.get("audit"):
                lines.append("{who} {action} {target}: {outcome}".format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines


class ListTests(ServicesCase):
    """Tests for GET /os-services."""

    def listed(self, query: str = "", version: str = "2.53") -> list[str]:
        services = self.ask("GET", f"{LIST}{query}", version=version).document["services"]
        return [f"{item['binary']}@{item['host']}" for item in services]

    def test_item(self) -> None:
        """Items have forced_down since 2.11, and the uuid as their id since 2.53."""
        item = {
            "id": self.record.id,
            "binary": "novasvc-agent",
            "host": "h1",
            "zone": "internal",
            "status": "enabled",
            "state": "up",
            "updated_at": "1970-01-12T13:46:40.000000",
            "disabled_reason": None,
        }
        for version, more in (
            ("", {}),
            ("2.1", {}),
            ("2.10", {}),
            ("2.11", {"forced_down": False}),
            ("2.52", {"forced_down": False}),
            ("2.53", {"forced_down": False, "id": self.record.uuid}),
            ("2.69", {"forced_down": False, "id": self.record.uuid}),
            ("2.75", {"forced_down": False, "id": self.record.uuid}),
            ("latest", {"forced_down": False, "id": self.record.uuid}),
        ):
            answer = self.ask("GET", LIST, version=version)
            self.assertEqual((answer.status, answer.document), (200, {"services": [{**item, **more}]}), version)
            self.assertEqual(answer.headers["Content-Type"], "application/json")
            self.assertEqual(answer.headers["x-compute-request-id"], answer.headers["x-openstack-request-id"])

    def test_states(self) -> None:
        """Status, state, reason and zone are those of the row; updated_at is null in an unchanged row."""
        silent = self.rig.registry.register("h2", "nova-compute", "compute", 1).result
        self.rig.clock.advance(61)
        forced = self.rig.add("h3", "nova-compute", "compute")
        changes = ServiceChanges(forced_down=True, disabled=True, disabled_reason='Grüße, "disk"')
        self.rig.registry.update(forced.id, changes)
        shown = {item["host"]: item for item in self.ask("GET", LIST, version="2.11").document["services"]}
        self.assertEqual((shown["h1"]["state"], shown["h1"]["zone"]), ("down", "internal"))
        self.assertEqual((shown["h2"]["id"], shown["h2"]["updated_at"], shown["h2"]["zone"]), (silent.id, None, "nova"))
        self.assertEqual((shown["h3"]["state"], shown["h3"]["status"]), ("down", "disabled"))
        self.assertEqual((shown["h3"]["disabled_reason"], shown["h3"]["forced_down"]), ('Grüße, "disk"', True))

    def test_paths(self) -> None:
        """The list is the same at each of its paths; HEAD has its length; similar paths are 404."""
        expected = self.ask("GET", LIST)
        for path in (LIST, "/v2/os-services", "/v2.1/some-project/os-services", "/v2.1/os%2Dservices"):
            answer = self.ask("GET", path)
            self.assertEqual((answer.status, answer.body), (200, expected.body), path)
            head = self.ask("HEAD", path)
            self.assertEqual((head.status, head.body), (200, b""), path)
            self.assertEqual(head.headers["Content-Length"], str(len(expected.body)), path)
        for path in (
            f"{LIST}/", "/v2.1//os-services", "/v2%2E1/os-services", "/v2.1/a/b/os-services", "/v2.1/a%2Fb/os-services"
        ):  # fmt: skip
            self.assertEqual(self.ask("GET", path).status, 404, path)
        self.assertEqual(self.ask("POST", LIST, {}).status, 404)
        self.assertEqual(self.ask("GET", "/v2.1/%ff/os-services").status, 400)

    def test_link(self) -> None:
        """The link to the next page has the Host of its request, although responses are shared."""
        self.rig.add("h2")
        for host in ("localhost:8774", "127.0.0.1"):
            (link,) = self.ask("GET", f"{LIST}?limit=1", Host=host).document["services_links"]
            self.assertEqual(link["href"], f"http://{host}{LIST}?limit=1&marker={self.record.id}")

    def test_nobody(self) -> None:
        """Without a matching service the list is empty."""
        self.assertEqual(self.ask("GET", f"{LIST}?host=zz").document, {"services": []})
        self.assertEqual(self.ask("GET", f"{LIST}?host=h1%00").document, {"services": []})

    def test_filters(self) -> None:
        """Host and binary match exactly; an empty parameter is ignored, and the last of several counts."""
        self.rig.add("h2")
        self.rig.add("h1", "nova-compute", "compute")
        self.rig.add("h1", "nova-osapi_compute", None)
        agents = ["novasvc-agent@h1", "novasvc-agent@h2"]
        for query, expected in (
            ("", [*agents, "nova-compute@h1"]),
            ("?host=h1", ["novasvc-agent@h1", "nova-compute@h1"]),
            ("?binary=novasvc-agent", agents),
            ("?host=h1&binary=nova-compute", ["nova-compute@h1"]),
            ("?host=&binary=", [*agents, "nova-compute@h1"]),
            ("?host=zz&host=h2", ["novasvc-agent@h2"]),
            ("?host=h", []),
            ("?host=H1", []),
        ):
            self.assertEqual(self.listed(query), expected, query)

    def test_any_host(self) -> None:
        """A host with non-ASCII letters is found."""
        self.rig.add("höst & co")
        self.assertEqual(self.listed("?host=h%C3%B6st+%26%20co"), ["novasvc-agent@höst & co"])

    def test_unknown_parameters(self) -> None:
        """Unknown parameters are ignored before 2.75, and rejected since."""
        for version in ("2.1", "2.74"):
            self.assertEqual(self.ask("GET", f"{LIST}?x=1", version=version).status, 200)
        refused = self.ask("GET", f"{LIST}?x=1&host=h1", version="2.75")
        message = "Additional properties are not allowed ('x' was unexpected)"
        self.assert_fault(refused, 400, "badRequest", message)
        refused = self.ask("GET", f"{LIST}?b=1&a=", version="latest")
        message = "Additional properties are not allowed ('a', 'b' were unexpected)"
        self.assert_fault(refused, 400, "badRequest", message)

    def test_pages(self) -> None:
        """With a limit there are pages, whose links lead through the whole list."""
        for number in range(2, 8):
            self.rig.add(f"h{number}")
        for version in ("2.1", "2.53", "2.104"):
            link, seen = f"{LIST}?limit=3&binary=novasvc-agent", []
            for _ in range(4):
                page = self.ask("GET", link, version=version).document
                seen += [item["host"] for item in page["services"]]
                if "services_links" not in page:
                    break
                (following,) = page["services_links"]
                self.assertEqual(following["rel"], "next")
                self.assertTrue(following["href"].startswith(f"http://127.0.0.1:8774{LIST}?"), following)
                link = following["href"].removeprefix("http://127.0.0.1:8774")
            self.assertEqual(seen, [f"h{number}" for number in range(1, 8)])

    def test_limits(self) -> None:
        """A limit is a number; 0, and a number above the maximum, are the maximum."""
        for number in range(MAX_PAGE):
            self.rig.registry.register(f"n{number}", "b", "t", 1)
        for limit in ("0", "00", str(MAX_PAGE), "1001", "9" * 500):
            page = self.ask("GET", f"{LIST}?limit={limit}").document
            self.assertEqual((len(page["services"]), "services_links" in page), (MAX_PAGE, True))
        self.assertEqual(len(self.ask("GET", LIST).document["services"]), MAX_PAGE + 1)
        for limit in ("-1", "x", "1.0", "+1", "\u0663"):
            refused = self.rig.get(f"{LIST}?limit={''.join(f'%{octet:02x}' for octet in limit.encode())}")
            message = f"Invalid input for field/attribute limit. Value: {limit}. {limit!r} does not match '^[0-9]*$'"
            self.assert_fault(refused, 400, "badRequest", message)

    def test_marker(self) -> None:
        """A marker may be a deleted service, but not one that never existed."""
        second = self.rig.add("h2")
        self.rig.add("h3")
        self.rig.registry.delete(second.id)
        self.assertEqual(self.listed(f"?marker={second.uuid}"), ["novasvc-agent@h3"])
        self.assertEqual(self.listed(f"?marker={second.id}", version="2.1"), ["novasvc-agent@h3"])
        refused = self.ask("GET", f"{LIST}?marker={NO_SUCH_UUID}")
        self.assert_fault(refused, 400, "badRequest", f"marker [{NO_SUCH_UUID}] not found")

    def test_bad_queries(self) -> None:
        """A query that is not valid UTF-8, or has hundreds of parameters, is rejected."""
        refused = self.ask("GET", f"{LIST}?host=%ff")
        self.assert_fault(refused, 400, "badRequest", "Query string is not UTF-8 encoded")
        refused = self.ask("GET", f"{LIST}?{'a=1&' * 200}")
        self.assert_fault(refused, 400, "badRequest", "The query string has more than 100 parameters")

    def test_everywhere(self) -> None:
        """The list is the same below a project and below /v2."""
        expected = self.ask("GET", LIST).document
        for path in ("/v2.1/abcdef/os-services", "/v2/os-services", "/v2/abcdef/os-services"):
            self.assertEqual(self.ask("GET", path).document, expected, path)

    def test_head(self) -> None:
        """HEAD has the headers of GET."""
        answer, whole = self.ask("HEAD", LIST), self.ask("GET", LIST)
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["Content-Length"], whole.headers["Content-Length"])

    def test_no_route(self) -> None:
        """A path or method without a route is 404 in the format of Nova's routing, not a fault."""
        for method, path in (
            ("GET", f"{LIST}/1"),
            ("POST", LIST),
            ("PUT", LIST),
            ("DELETE", LIST),
            ("PATCH", f"{LIST}/1"),
            ("GET", f"{LIST}/"),
            ("GET", "/v2.1//os-services"),
            ("GET", "/v2.1/servers"),
            ("GET", "/v2.1/abc/def/os-services"),
            ("POST", "/v2.1"),
        ):
            answer = self.ask(method, path, {} if method in {"POST", "PUT"} else None)
            self.assertEqual((answer.status, answer.document["title"]), (404, "Not Found"), path)
            self.assertEqual([*answer.document], ["message", "code", "title"])


class UnavailableTests(ServicesCase):
    """Tests for a registry that is unavailable or broken."""

    def test_away(self) -> None:
        """List, update and delete get 503 with Retry-After."""
        self.rig.registry.outage = DatabaseUnavailableError("sqlite:///x", "it is locked")
        for method, path, body in (
            ("GET", LIST, None),
            ("GET", "/v2.1/p/os-services", None),
            ("PUT", f"{LIST}/{self.record.uuid}", {"status": "enabled"}),
            ("DELETE", f"{LIST}/{self.record.uuid}", None),
        ):
            answer = self.ask(method, path, body, "2.53")
            problem = str(self.rig.registry.outage)
            self.assert_fault(answer, 503, "serviceUnavailable", problem)
            self.assertEqual(answer.headers["Retry-After"], "5")

    def test_broken(self) -> None:
        """It is 500 with the database's message."""
        self.rig.registry.outage = DatabaseCorruptError("sqlite:///x", "it is no database")
        answer = self.ask("GET", LIST)
        self.assert_fault(answer, 500, "computeFault", str(self.rig.registry.outage))

    def test_not_reached(self) -> None:
        """It is 503 until the registry is connected."""
        self.rig.backend._registry = None  # what it is before it is reached
        self.assertEqual([*self.ask("GET", LIST).document], ["serviceUnavailable"])

    def test_bug(self) -> None:
        """A bug is 500 with the type of the exception; its text is only logged."""
        self.rig.registry.outage = KeyError("s3cret")  # type: ignore[assignment]  # whatever it is
        for path in (LIST, "/v2.1/p/os-services"):
            answer = self.ask("GET", path)
            fault = answer.document["computeFault"]
            self.assertEqual(fault["code"], 500)
            self.assertRegex(fault["message"], r"^Unexpected API Error\. .*req-.*\n<class 'KeyError'>$")
            self.assertNotIn("s3cret", fault["message"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)


class UpdateTests(ServicesCase):
    """Tests for PUT since 2.53."""

    def put(self, body: Any, name: str | None = None, version: str = "2.53", **headers: str) -> Answer:
        return self.ask("PUT", f"{LIST}/{name or self.record.uuid}", body, version, **headers)

    def refused(self, body: Any, message: str, status: int = 400, name: str = "badRequest", **more: Any) -> None:
        self.assert_fault(self.put(body, **more), status, name, message)

    def test_changes(self) -> None:
        """Status, reason and forced_down change separately and together; the response is the item."""
        for body, expected in (
            ({"status": "disabled", "disabled_reason": "disk"}, ("disabled", "disk", False, "up")),
            ({"forced_down": True}, ("disabled", "disk", True, "down")),
            ({"status": "disabled"}, ("disabled", None, True, "down")),
            ({"status": "enabled", "forced_down": False}, ("enabled", None, False, "up")),
            ({"forced_down": "yes", "disabled_reason": "of nothing"}, ("enabled", None, True, "down")),
            ({"forced_down": "0"}, ("enabled", None, False, "up")),
            ({"status": "disabled", "disabled_reason": "x" * 255}, ("disabled", "x" * 255, False, "up")),
        ):
            answer = self.put(body)
            self.assertEqual(answer.status, 200, answer.body)
            item = answer.document["service"]
            self.assertEqual((item["id"], item["host"], item["binary"]), (self.record.uuid, "h1", "novasvc-agent"))
            found = (item["status"], item["disabled_reason"], item["forced_down"], item["state"])
            self.assertEqual(found, expected)
            self.assertEqual([item], self.ask("GET", LIST, version="2.53").document["services"])

    def test_words(self) -> None:
        """A flag is a JSON boolean or one of Nova's words for it."""
        yes = [True, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t"]
        no = [False, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f"]
        for words, expected in ((yes, True), (no, False)):
            for word in words:
                item = self.put({"forced_down": word}).document["service"]
                self.assertIs(item["forced_down"], expected, word)

    def test_same(self) -> None:
        """A change to the present values is no error, and writes nothing."""
        before = self.rig.row(self.record.id).updated_at
        self.rig.clock.advance(5)
        self.assertEqual(self.put({"status": "enabled", "forced_down": False}).status, 200)
        self.assertEqual(self.rig.row(self.record.id).updated_at, before)

    def test_bad_values(self) -> None:
        """An invalid value is rejected with field, value and reason."""
        field = "Invalid input for field/attribute {}. Value: {}. {}"
        flags = "[True, 'True', 'TRUE', 'true', '1', 'ON', 'On', 'on', 'YES', 'Yes', 'yes', 'y', 't', "
        for body, message in (
            ({"status": "bad"}, field.format("status", "bad", "'bad' is not one of ['enabled', 'disabled']")),
            ({"status": 1}, field.format("status", "1", "1 is not of type 'string'")),
            ({"status": None}, field.format("status", "None", "None is not of type 'string'")),
            ({"forced_down": 1}, field.format("forced_down", "1", "1 is not of type 'boolean', 'string'")),
            ({"forced_down": None}, field.format("forced_down", "None", "None is not of type 'boolean', 'string'")),
            ({"disabled_reason": ""}, field.format("disabled_reason", "", "'' is too short")),
            ({"disabled_reason": TOO_LONG}, field.format("disabled_reason", TOO_LONG, f"{TOO_LONG!r} is too long")),
            ({"disabled_reason": ["x"]}, field.format("disabled_reason", "['x']", "['x'] is not of type 'string'")),
            ([], "[] is not of type 'object'"),
            ("x", "'x' is not of type 'object'"),
            (7, "7 is not of type 'object'"),
            (b"null", "None is not of type 'object'"),
        ):
            self.refused(body, message)
        answer = self.put({"forced_down": "maybe"}).document["badRequest"]["message"]
        self.assertTrue(answer.startswith(field.format("forced_down", "maybe", f"'maybe' is not one of {flags}")))

    def test_unstorable(self) -> None:
        """Text that a database cannot store is rejected: NUL and lone surrogates."""
        for reason in ('"\\u0000"', '"a\\ud800b"'):
            body = f'{{"status": "disabled", "disabled_reason": {reason}}}'.encode()
            answer = self.put(body)
            self.assertEqual(answer.status, 400)
            self.assertIn("contains invalid characters", answer.document["badRequest"]["message"])

    def test_unknown_keys(self) -> None:
        """An unknown key is rejected by name."""
        unknown = "Additional properties are not allowed ({} unexpected)"
        self.refused({"status": "enabled", "x": 1}, unknown.format("'x' was"))
        self.refused({"host": "h1", "binary": "b"}, unknown.format("'binary', 'host' were"))

    def test_nothing(self) -> None:
        """A body without a change, or with a contradiction, is rejected."""
        nothing = "No updates were requested. Fields 'status' or 'forced_down' should be specified."
        self.refused({}, nothing)
        self.refused({"disabled_reason": "x"}, nothing)
        together = "Specifying 'disabled_reason' with status 'enabled' is invalid."
        self.refused({"status": "enabled", "disabled_reason": "x"}, together)

    def test_ids(self) -> None:
        """An id that is not a uuid is 400, an unknown one 404; the body is validated first."""
        self.assert_fault(self.put({"status": "enabled"}, "7"), 400, "badRequest", "Invalid uuid 7")
        missing = self.put({"status": "enabled"}, NO_SUCH_UUID)
        self.assert_fault(missing, 404, "itemNotFound", f"Service {NO_SUCH_UUID} could not be found.")
        upper = self.record.uuid.upper()
        if upper != self.record.uuid:
            missing = self.put({"status": "enabled"}, upper)
            self.assert_fault(missing, 404, "itemNotFound", f"Service {upper} could not be found.")
        both = self.put({"status": "bad"}, "7").document["badRequest"]["message"]
        self.assertIn("'bad' is not one of", both)

    def test_bodies(self) -> None:
        """A body that is not JSON is 400; another Content-Type is 415."""
        for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"status": "enabled"} x', b"1" * 5000):
            self.refused(body, "Malformed request body")
        self.assert_fault(self.ask("PUT", f"{LIST}/x", None, "2.53"), 400, "badRequest", "Malformed request body")
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
            refused = self.put({"status": "enabled"}, content_type=kind)
            self.assert_fault(refused, 415, "badMediaType", "Unsupported Content-Type")
        for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.openstack.compute+json"):
            self.assertEqual(self.put({"status": "enabled"}, content_type=kind).status, 200)

    def test_gone_meanwhile(self) -> None:
        """A service that is deleted between read and change is 404."""
        registry = self.rig.registry
        update = registry.update

        def late(service_id: int, changes: ServiceChanges) -> Deferred[Any]:
            registry.delete(service_id)
            return update(service_id, changes)

        self.patch(type(registry), "update", lambda _, *given: late(*given))
        refused = self.put({"status": "enabled"})
        self.assert_fault(refused, 404, "itemNotFound", f"Service {self.record.uuid} could not be found.")

    def test_audit(self) -> None:
        """Every change is audited, also one that the registry rejects."""
        lines = self.audits()
        self.put({"status": "disabled", "disabled_reason": "x", "forced_down": True})
        self.put({"forced_down": False})
        self.put({"status": "enabled"})
        self.assertEqual(
            lines,
            [
                "local (loopback) disable, force down novasvc-agent@h1: done",
                "local (loopback) unset forced down novasvc-agent@h1: done",
                "local (loopback) enable novasvc-agent@h1: done",
            ],
        )


class ActionTests(ServicesCase):
    """Tests for PUT before 2.53."""

    def act(self, action: str, body: Any, version: str = "2.11", base: str = LIST) -> Answer:
        return self.ask("PUT", f"{base}/{action}", body, version)

    def refused(self, action: str, body: Any, message: str, version: str = "2.11", status: int = 400) -> None:
        name = {400: "badRequest", 404: "itemNotFound"}[status]
        self.assert_fault(self.act(action, body, version), status, name, message)

    def test_actions(self) -> None:
        """Each action changes the service with this host and binary, and returns the changed fields."""
        whose = {"host": "h1", "binary": "novasvc-agent"}
        for action, more, shown, expected in (
            ("disable", {}, {"status": "disabled"}, (True, None, False)),
            (
                "disable-log-reason",
                {"disabled_reason": "disk"},
                {"status": "disabled", "disabled_reason": "disk"},
                (True, "disk", False),
            ),
            ("force-down", {"forced_down": "on"}, {"forced_down": True}, (True, "disk", True)),
            ("disable", {"disabled_reason": "unheard"}, {"status": "disabled"}, (True, None, True)),
            ("force-down", {"forced_down": False}, {"forced_down": False}, (True, None, False)),
            ("enable", {}, {"status": "enabled"}, (False, None, False)),
        ):
            answer = self.act(action, {**whose, **more})
            self.assertEqual((answer.status, answer.document), (200, {"service": {**whose, **shown}}))
            row = self.rig.row(self.record.id)
            self.assertEqual((row.disabled, row.disabled_reason, row.forced_down), expected)

    def test_any_binary(self) -> None:
        """Services without a topic, and Nova's, can be changed."""
        for binary, topic in (("nova-conductor", "conductor"), ("novasvc-api", None)):
            self.rig.add("h1", binary, topic)
            self.assertEqual(self.act("disable", {"host": "h1", "binary": binary}).status, 200)

    def test_unknown_actions(self) -> None:
        """An unknown action is 404; force-down is unknown before 2.11."""
        whose = {"host": "h1", "binary": "novasvc-agent"}
        self.refused("explode", whose, "Unknown action", status=404)
        self.refused("force-down", whose, "Unknown action", "2.10", 404)
        message = "Additional properties are not allowed ('forced_down' was unexpected)"
        self.refused("force-down", {**whose, "forced_down": True}, message, "2.10")

    def test_unknown_services(self) -> None:
        """An unknown host and an unknown binary are 404 with Nova's messages."""
        self.refused("enable", {"host": "zz", "binary": "b"}, "Host 'zz' is not mapped to any cell", status=404)
        self.refused("enable", {"host": "h1", "binary": "b"}, "Could not find binary b on host h1.", status=404)

    def test_missing_fields(self) -> None:
        """A missing field is named."""
        whose = {"host": "h1", "binary": "novasvc-agent"}
        self.refused("enable", {}, "'host' is a required property")
        self.refused("enable", {"host": "h1"}, "'binary' is a required property")
        self.refused("disable-log-reason", whose, "Missing disabled reason field")
        self.refused("force-down", whose, "Missing forced_down field")

    def test_bad_values(self) -> None:
        """Invalid hosts, long texts and unknown keys are rejected."""
        field = "Invalid input for field/attribute {}. Value: {}. {}"
        for host, why in (
            ("a b", "'a b' does not match '^[a-zA-Z0-9-._]*$'"),
            ("h\n", "'h\\n' does not match '^[a-zA-Z0-9-._]*$'"),
            ("", "'' is too short"),
            (TOO_LONG, f"{TOO_LONG!r} is too long"),
            (7, "7 is not of type 'string'"),
            (None, "None is not of type 'string'"),
        ):
            self.refused("enable", {"host": host, "binary": "b"}, field.format("host", host, why))
        self.refused("enable", {"host": "h1", "binary": ""}, field.format("binary", "", "'' is too short"))
        unknown = "Additional properties are not allowed ('x' was unexpected)"
        self.refused("enable", {"host": "h1", "binary": "b", "x": 1}, unknown)

    def test_v2(self) -> None:
        """/v2 ignores unknown keys; its actions are those of 2.1."""
        body = {"host": "h1", "binary": "novasvc-agent", "x": 1, "forced_down": True}
        self.assertEqual(self.act("disable", body, "2.53", "/v2/os-services").status, 200)
        self.assertTrue(self.rig.row(self.record.id).disabled)
        self.assertEqual(self.act("force-down", body, "2.53", "/v2/p/os-services").status, 404)


class DeleteTests(ServicesCase):
    """Tests for DELETE."""

    def test_delete(self) -> None:
        """A service is deleted by its number before 2.53, and by its uuid since; the response is empty."""
        lines = self.audits()
        for version, name in (("2.52", str(self.record.id)), ("2.53", self.rig.add("h2").uuid)):
            answer = self.ask("DELETE", f"{LIST}/{name}", version=version)
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertEqual(answer.headers["X-OpenStack-Nova-API-Version"], version)
        self.assertEqual(self.ask("GET", LIST).document, {"services": []})
        self.assertEqual(
            [line.split()[2:] for line in lines], [["delete", f"novasvc-agent@h{n}:", "done"] for n in (1, 2)]
        )

    def test_missing(self) -> None:
        """An unknown service is 404, however large its number."""
        for version, name in (
            ("2.1", "4711"),
            ("2.1", "-1"),
            ("2.1", "9" * 5000),
            ("2.53", NO_SUCH_UUID),
            ("2.53", uuid.UUID(NO_SUCH_UUID).hex),
        ):
            answer = self.ask("DELETE", f"{LIST}/{name}", version=version)
            self.assert_fault(answer, 404, "itemNotFound", f"Service {name[:300]} not found.")

    def test_bad_ids(self) -> None:
        """An invalid id is rejected."""
        bad = self.ask("DELETE", f"{LIST}/{self.record.uuid}", version="2.52")
        self.assert_fault(bad, 400, "badRequest", "Invalid input received: id must be an integer")
        bad = self.ask("DELETE", f"{LIST}/{self.record.id}", version="2.53")
        self.assert_fault(bad, 400, "badRequest", f"Invalid uuid {self.record.id}")
        self.assertEqual(len(self.ask("GET", LIST).document["services"]), 1)


class AccessTests(SynchronousTestCase):
    """Tests for scopes."""

    def setUp(self) -> None:
        self.rig = APIRig(self, TOKENS)
        self.record = self.rig.add("h1")

    def test_strangers(self) -> None:
        """Without a valid token it is 401 in Keystone's format."""
        for given in ({}, {"X_Auth_Token": "wrong"}, {"Authorization": "Bearer wrong"}):
            for method, path in (("GET", LIST), ("GET", f"/v2{LIST}"), ("PUT", f"{LIST}/x"), ("DELETE", f"{LIST}/x")):
                answer = self.rig.ask(method, path.replace("/v2/v2.1", "/v2"), **given)
                self.assertEqual(answer.status, 401)
                message = "The request you have made requires authentication."
                error = {"code": 401, "title": "Unauthorized", "message": message}
                self.assertEqual(answer.document, {"error": error})
                self.assertEqual(answer.headers["WWW-Authenticate"], 'Keystone uri="http://127.0.0.1:8774/"')

    def test_readers(self) -> None:
        """The scope read may list; a change is rejected with Nova's policy message, and audited."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event.get("audit"):
                lines.append("{who} {action} {target}: {outcome}".format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.assertEqual(self.rig.get(LIST, X_Auth_Token=READERS).status, 200)
        for method, body, action in (("PUT", {"status": "disabled"}, "update"), ("DELETE", None, "delete")):
            path = f"{LIST}/{self.record.uuid}"
            answer = self.rig.ask(method, path, body, X_Auth_Token=READERS, OpenStack_API_Version="compute 2.53")
            self.assertEqual(answer.status, 403)
            message = f"Policy doesn't allow os_compute_api:os-services:{action} to be performed."
            self.assertEqual(answer.document, {"forbidden": {"code": 403, "message": message}})
            self.assertEqual(lines.pop(), f"ron (token) {action} {self.record.uuid}: the scope admin is required")
        self.assertFalse(self.rig.row(self.record.id).disabled)

    def test_admins(self) -> None:
        """The scope admin may make changes, which are audited."""
        headers = {"X_Auth_Token": ADMINS, "OpenStack_API_Version": "compute 2.53"}
        answer = self.rig.ask("PUT", f"{LIST}/{self.record.uuid}", {"status": "disabled"}, **headers)
        self.assertEqual(answer.status, 200)

    def test_sessions(self) -> None:
        """A session may list; a cross-site request with its cookie changes nothing."""
        token = self.rig.access.log_in(token=ADMINS)
        assert token is not None
        cookie = f"other=1; {token.partition(';')[0]}"
        for path in (LIST, "/v2.1/p/os-services"):
            self.assertEqual(self.rig.get(path, cookie=cookie).status, 200)
        path, headers = f"{LIST}/{self.record.uuid}", {"cookie": cookie, "OpenStack_API_Version": "compute 2.53"}
        answer = self.rig.ask("DELETE", path, origin="http://evil.example", **headers)
        self.assertEqual((answer.status, [*answer.document]), (403, ["forbidden"]))
        self.assertEqual(self.rig.ask("DELETE", path, origin="http://127.0.0.1:8774", **headers).status, 204)

    def test_other_names(self) -> None:
        """Without tokens a Host that merely resolves to loopback is rejected."""
        rig = APIRig(self)
        answer = rig.get(LIST, host="evil.example")
        self.assertEqual((answer.status, [*answer.document]), (403, ["forbidden"]))


class WaitingTests(SynchronousTestCase):
    """Tests for requests that wait for the registry."""

    def setUp(self) -> None:
        self.rig = APIRig(self)
        self.rig.add("h1")
        self.reads: list[Deferred[Any]] = []
        page = self.rig.registry.page

        def slow(_: Any, query: Any) -> Deferred[Any]:
            reading: Deferred[Any] = Deferred()
            reading.addCallback(lambda _: page(query))
            self.reads.append(reading)
            return reading

        self.patch(type(self.rig.registry), "page", slow)

    def test_shared(self) -> None:
        """Equal requests that arrive during a read share the next one."""
        first = self.rig.send("GET", LIST)
        others = [self.rig.send("GET", path) for path in (LIST, LIST, "/v2.1/os-services?host=")]
        self.assertEqual(len(self.reads), 1)
        self.reads[0].callback(None)
        self.assertTrue(first.answered)
        self.rig.add("h2")
        self.rig.clock.advance(0)
        self.assertEqual(len(self.reads), 2)
        self.reads[1].callback(None)
        self.assertEqual([len(asking.answer.document["services"]) for asking in (first, *others)], [1, 2, 2, 2])

    def test_apart(self) -> None:
        """Different requests do not wait for each other."""
        asked = [self.rig.send("GET", f"{LIST}?host=h{number}") for number in range(3)]
        self.assertEqual(len(self.reads), 3)
        self.reads[2].callback(None)
        self.assertEqual([asking.answered for asking in asked], [False, False, True])

    def test_gone(self) -> None:
        """A client that disconnects does not affect those that share its read."""
        for path in (LIST, "/v2.1/p/os-services"):
            gone, waits = self.rig.send("GET", path), self.rig.send("GET", path)
            gone.protocol.connectionLost(Failure(ConnectionDone()))
            while not waits.answered:
                self.reads.pop().callback(None)
                self.rig.clock.advance(0)
            self.assertEqual(waits.answer.status, 200)
            self.assertEqual(gone.transport.value(), b"")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_kept_connection(self) -> None:
        """Pipelined requests are answered in order, fast path or not."""
        asking = self.rig.send("GET", LIST, connection="keep-alive")
        asking.protocol.dataReceived(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        asking.protocol.dataReceived(b"GET /v2.1/os-services HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        self.assertEqual(asking.transport.value(), b"")
        for _ in range(2):
            self.reads.pop().callback(None)
            self.rig.clock.advance(0)
        sent = asking.transport.value()
        self.assertEqual(sent.count(b"HTTP/1.1 200 OK"), 3)
        self.assertLess(sent.index(b'"services"'), sent.index(b'{"status": "ok"}'))
        self.assertTrue(asking.answered)


class ManyTests(SynchronousTestCase):
    """Tests for a large fleet."""

    def test_in_slices(self) -> None:
        """A list of thousands is serialized in slices; other requests are answered in between."""
        rig = APIRig(self)
        for number in range(1234):
            rig.registry.register(f"h{number}", "b", "t", 1)
        asking = rig.send("GET", LIST)
        self.assertFalse(asking.answered)
        self.assertTrue(rig.send("GET", "/healthz").answered)
        rig.clock.pump([0.001] * 3)
        self.assertEqual(len(json.loads(asking.answer.body)["services"]), 1234)
