import re
from collections.abc import Sequence
from html import unescape
from typing import Any
from urllib.parse import urlencode

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import DatabaseUnavailableError, StateError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.record import ServiceChanges
from novasvc.rpc import Server, expose
from novasvc.rpc.endpoint import Endpoints
from novasvc.rpc.target import Target
from tests.support.middleware_rig import Failing
from tests.support.page_rig import ADMINS, READERS, TOKENS, Connection, PageRig

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


class InnerLife:
    """A stand-in for a node, whose methods return what the test sets."""

    answer: Any

    def __init__(self) -> None:
        self.answer = {}
        self.done: list[str] = []

    @expose(namespace="node", version="1.0")
    def describe(self, context: RequestContext) -> Any:
        return self.answer

    @expose(namespace="node", version="1.0", expected=(StateError,))
    def run_task(self, context: RequestContext, name: str) -> Any:
        if name == "busy":
            raise StateError("the task", "running", "begin")
        self.done.append(f"run {name}")
        return {"started": True}

    @expose(namespace="node", version="1.0")
    def drain(self, context: RequestContext) -> Any:
        self.done.append("drain")
        return {"draining": "process"}


def serve(rig: PageRig, life: InnerLife, transport: Any, middleware: Sequence[Any] = ()) -> None:
    """Serve a node at h1."""
    server = Server(
        transport,
        Target(topic="agent", server="h1"),
        Endpoints(life),
        clock=rig.clock,
        run_blocking=rig.runtime.run_blocking,
        middleware=middleware,
    )
    assert server.start().called
    rig.clock.advance(0)


class FleetTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = PageRig(self)

    def test_empty(self) -> None:
        """The page of an empty fleet says how to start a node."""
        answer = self.rig.ask("/")
        self.assertEqual(answer.status, 200)
        self.assertIn("No service has registered yet", answer.text)

    def test_states_in_words(self) -> None:
        """A row has the state as icon and word, the age of the heartbeat and the reason, and links to the service."""
        uuid = self.rig.add("h1")
        self.rig.registry.update(1, ServiceChanges(forced_down=True, disabled=True, disabled_reason="new disk"))
        self.rig.see()
        text = self.rig.ask("/").text
        row = re.search(r'<tr id="r1".*?</tr>', text, re.DOTALL)
        assert row is not None
        self.assertIn(f'href="/node/{uuid}"', row[0])
        self.assertIn('<use href="#i-forced"/>', row[0])
        words = " ".join(re.sub(r"<[^>]*>", " ", row[0]).split())
        said = "novasvc-agent @ h1 forced down disabled heartbeat 10 s ago by an operator; disabled: new disk"
        self.assertEqual(words, said)
        self.assertIn("<title>1 forced down · novasvc</title>", text)

    def test_what_is_wrong(self) -> None:
        """The page begins with what is wrong, since when and why."""
        for number in (1, 2, 3):
            self.rig.add(f"h{number}")
        self.rig.see()
        self.assertIn("Nothing is wrong: all 3 services are up", self.rig.ask("/").text)
        self.rig.registry.update(1, ServiceChanges(disabled=True, disabled_reason="new disk"))
        self.rig.see()
        for _ in range(7):
            self.rig.registry.beat(2)
            self.rig.see()
        problems = self.rig.ask("/").text.partition('id="problems"')[2].partition("</div>")[0]
        words = " ".join(re.sub(r"<[^>]*>", " ", problems).replace("&gt;", ">").split())
        self.assertIn("Down no heartbeat novasvc-agent@h3 90 s", words)
        self.assertIn("Down no heartbeat; disabled: new disk novasvc-agent@h1 90 s", words)
        self.rig.registry.beat(1)
        self.rig.see()
        problems = self.rig.ask("/").text.partition('id="problems"')[2].partition("</div>")[0]
        self.assertIn("Disabled new disk novasvc-agent@h1 80 s", " ".join(re.sub(r"<[^>]*>", " ", problems).split()))

    def test_detail(self) -> None:
        """What is particular about a service follows its age, and is told apart from it."""
        start = ServiceStart(host="h1", binary="agent", topic="agent", version=1, owner="o", machine="m")
        number = self.rig.registry.begin(start).result.id
        self.rig.registry.enter(number, 1, "draining", until=0.0, calls=3)
        self.rig.see()
        problems = self.rig.ask("/").text.partition('id="problems"')[2].partition("</div>")[0]
        words = " ".join(re.sub(r"<[^>]*>", "", problems).split())
        self.assertIn("Draining too long agent@h1 10 s: 3 calls in flight", words)

    def test_suspect(self) -> None:
        """When many services become silent at once they are suspect, and the page begins with what may be the cause."""
        for number in range(1, 11):
            self.rig.add(f"h{number}")
        self.rig.see()
        for _ in range(8):
            for number in range(1, 7):
                self.rig.registry.beat(number)
            self.rig.see()
        text = self.rig.ask("/").text
        self.assertIn('<h1 id="headline">4 suspect</h1>', text)
        outage = re.search(r'<p class="outage">.*?</p>', text)
        assert outage is not None
        self.assertIn("4 of 10 services of novasvc-agent became silent at the same time", outage[0])
        self.assertLess(text.index('class="outage"'), text.index('data-look="suspect"'))
        self.assertIn("class=s></a>", text)
        self.rig.registry.update(7, ServiceChanges(forced_down=True))
        self.rig.see()
        self.assertIn("3 suspect, 1 forced down", self.rig.ask("/").text)

    def test_map(self) -> None:
        """The map has a square for each service that matches, by binary; its short link leads to the service."""
        uuid = self.rig.add("h1")
        self.rig.add("two words", "novasvc-storage")
        self.rig.registry.update(2, ServiceChanges(disabled=True, disabled_reason="new disk"))
        self.rig.see()
        text = self.rig.ask("/").text
        self.assertIn("<a href=/s/1 title=h1></a>", text)
        self.assertIn('<a href=/s/2 title="two words: disabled, new disk" class=o></a>', text)
        self.assertIn("<h3>novasvc-storage <span class=hint>1, 1 disabled</span></h3>", text)
        self.assertNotIn("href=/s/1 ", self.rig.ask("/?state=disabled").text)
        answer = self.rig.ask("/s/1")
        self.assertEqual((answer.status, answer.headers["location"]), (303, f"/node/{uuid}"))
        self.assertEqual(self.rig.ask("/s/7").status, 404)
        self.assertEqual(self.rig.ask("/s/x").status, 404)

    def test_parts(self) -> None:
        """The scripts of the page load the list and the map alone."""
        self.rig.add("h1")
        self.rig.see()
        for part, begins in (("services", '<div id="services"'), ("map", '<div id="map"')):
            text = self.rig.ask(f"/?part={part}").text
            self.assertTrue(text.lstrip().startswith(begins), text)
            self.assertIn("h1", text)

    def test_hostile_text(self) -> None:
        """Text of a service is never interpreted as HTML or as a template."""
        uuid = self.rig.add(HOSTILE, HOSTILE, HOSTILE)
        self.rig.registry.update(1, ServiceChanges(disabled=True, disabled_reason=HOSTILE))
        self.rig.clock.advance(10)
        self.rig.registry.update(1, ServiceChanges(disabled=False))
        self.rig.clock.advance(10)
        self.rig.registry.update(1, ServiceChanges(disabled=True, disabled_reason=HOSTILE))
        self.rig.see()
        for path in ("/", "/?q=%3Cscript%3E", f"/node/{uuid}", f"/action/disable/{uuid}", "/action/%3Cscript%3E/x"):
            text = self.rig.ask(path).text
            self.assertNotIn("<script>alert", text, path)
            shown = HOSTILE if "/x" not in path else "<script>"
            self.assertIn(shown, unescape(text), path)

    def test_no_inline(self) -> None:
        """No page has an inline script or style, which the content security policy forbids."""
        uuid = self.rig.add("h1")
        self.rig.see()
        for path in ("/", f"/node/{uuid}", f"/action/disable/{uuid}", "/nowhere", "/login"):
            text = self.rig.ask(path).text
            self.assertEqual(re.findall(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", text), [], path)

    def test_outage(self) -> None:
        """During an outage of the database the page shows the last state, its age and the reason."""
        self.rig.add("h1")
        self.rig.see()
        self.rig.registry.outage = DatabaseUnavailableError("mysql://db", "it is gone")
        self.rig.clock.advance(30)
        text = self.rig.ask("/").text
        self.assertIn("h1", text)
        self.assertRegex(text, r"This state is \d+ s old: .*it is gone")

    def test_query(self) -> None:
        """The query is kept in the form and in all links."""
        for number in range(150):
            self.rig.add(f"h{number}")
        self.rig.see()
        text = self.rig.ask("/?q=h&sort=-host&page=2").text
        self.assertIn('value="h"', text)
        self.assertIn('<option value="-host" selected>', text)
        self.assertIn('<a rel="prev" href="/?q=h&amp;sort=-host">', text)
        self.assertIn("101–150 of 150 services, page 2 of 2", text)  # noqa: RUF001 - a dash
        self.assertIn('data-events="/events?q=h&amp;sort=-host&amp;page=2"', text)

    def test_static(self) -> None:
        """The static files of a page exist, may be cached for a year, and have no other URL."""
        text = self.rig.ask("/").text
        names = re.findall(r'"(/static/[^"]+)"', text)
        self.assertEqual(len(names), 3)
        for name in names:
            answer = self.rig.ask(name)
            self.assertEqual(
                (answer.status, answer.headers["cache-control"]), (200, "public, max-age=31536000, immutable")
            )
        for name in ("/static/0123/page.css", f"{names[0]}x", "/static/", "/static/x/../../setup.py"):
            self.assertEqual(self.rig.ask(name).status, 404, name)

    def test_methods(self) -> None:
        """A POST to a page gets 405."""
        self.assertEqual(self.rig.ask("/", {}).status, 405)


class NodeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = PageRig(self)
        self.uuid = self.rig.add("h1", "novasvc-agent", "agent")
        self.life = InnerLife()

    def serve(self) -> None:
        transport = self.successResultOf(self.rig.runtime.broker.acquire())
        serve(self.rig, self.life, transport)

    def test_nobody_there(self) -> None:
        """If a node does not respond, its page shows the row."""
        answer = self.rig.ask(f"/node/{self.uuid}")
        self.assertEqual(answer.status, 200)
        self.assertIn("novasvc-agent@h1 is unreachable", answer.text)
        self.assertIn("last heartbeat", answer.text)

    def test_unknown(self) -> None:
        """The page of an unknown service is 404."""
        for uuid in ("0", "x" * 36, "00000000-0000-0000-0000-000000000000"):
            self.assertEqual(self.rig.ask(f"/node/{uuid}").status, 404)

    def test_odd_answers(self) -> None:
        """The page is rendered whatever the node's description is."""
        self.serve()
        rows = {"tasks": [{}], "methods": [{}], "calls": [{}], "workers": [{}], "events": [{}], "health": [{}]}
        wrong = {
            "tasks": 7,
            "methods": ["x", None],
            "events": {"a": 1},
            "health": [{"name": 7, "ready": "x"}],
            "pid": "x",
        }
        for answer in (None, [], "x", {}, rows, wrong, {"uptime": 1e300, "pid": True, "methods": [{"calls": "9"}]}):
            self.life.answer = answer
            self.rig.clock.advance(2)
            self.assertEqual(self.rig.ask(f"/node/{self.uuid}").status, 200, answer)

    def test_hostile_answers(self) -> None:
        """Text in a node's description is escaped."""
        self.serve()
        self.life.answer = {
            "version": HOSTILE,
            "state": HOSTILE,
            "tasks": [{"name": HOSTILE}],
            "methods": [{"method": HOSTILE, "namespace": HOSTILE, "calls": 1}],
            "calls": [{"method": HOSTILE, "request_id": HOSTILE, "fraction": 0.5, "text": HOSTILE}],
            "workers": [{"server": HOSTILE, "state": HOSTILE, "trouble": HOSTILE}],
            "events": [{"time": HOSTILE, "kind": HOSTILE, "text": HOSTILE}],
            "health": [{"name": HOSTILE, "detail": HOSTILE}],
        }
        text = self.rig.ask(f"/node/{self.uuid}").text
        self.assertNotIn("<script>alert", text)
        self.assertGreaterEqual(unescape(text).count(HOSTILE), 10)

    def test_running_calls(self) -> None:
        """Running calls are shown with the fraction and the text that they have reported."""
        self.serve()
        self.life.answer = {
            "calls": [
                {"method": "copy", "request_id": "req-7", "seconds": 12.5, "fraction": 0.4, "text": "copying"},
                {"method": "hang", "request_id": "req-8", "seconds": 1.0},
            ]
        }
        text = self.rig.ask(f"/node/{self.uuid}").text
        self.assertIn('<progress max="1" value="0.400" aria-label="progress of copy"></progress> 40 %', text)
        self.assertIn("copying", text)
        self.assertEqual((text.count("<progress"), text.count("req-8")), (1, 1))

    def test_one_question(self) -> None:
        """A node is called at most once a second, however many viewers it has."""
        self.serve()
        for _ in range(5):
            self.rig.ask(f"/node/{self.uuid}")
        self.assertLessEqual(self.rig.clock.seconds(), 1_000_002)


class ActionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = PageRig(self)
        self.uuid = self.rig.add("h1", "novasvc-agent", "agent")
        self.rig.see()

    def do(self, verb: str, **fields: str) -> Any:
        return self.rig.ask(f"/action/{verb}/{self.uuid}", {"mark": self.rig.mark(), **fields})

    def row(self) -> Any:
        return self.successResultOf(self.rig.registry.get(self.uuid))

    def test_changes(self) -> None:
        """Each action is performed, and redirects to the service's page with a message."""
        for verb, fields, disabled, reason, forced in (
            ("disable", {"reason": " new\r\n disk "}, True, "new disk", False),
            ("force-down", {}, True, "new disk", True),
            ("let-up", {}, True, "new disk", False),
            ("enable", {}, False, None, False),
            ("disable", {}, True, None, False),
        ):
            answer = self.do(verb, **fields)
            self.assertEqual(answer.status, 303)
            self.assertEqual(answer.headers["location"], f"/node/{self.uuid}?done={verb}")
            row = self.row()
            self.assertEqual((row.disabled, row.disabled_reason, row.forced_down), (disabled, reason, forced))
            self.assertIn('class="message"', self.rig.ask(answer.headers["location"]).text)

    def test_seen_at_once(self) -> None:
        """A change shows on the fleet's page at once."""
        self.do("force-down")
        self.assertIn('data-look="forced down"', self.rig.ask("/").text)

    def test_asks_first(self) -> None:
        """The confirmation changes nothing, and its form works without JavaScript."""
        for verb in ("enable", "disable", "force-down", "let-up", "drain", "ping", "run-task"):
            answer = self.rig.ask(f"/action/{verb}/{self.uuid}")
            self.assertEqual(answer.status, 200)
            self.assertIn(f'<form method="post" action="/action/{verb}/{self.uuid}">', answer.text)
        self.assertEqual((self.row().disabled, self.row().forced_down), (False, False))

    def test_forms_of_others(self) -> None:
        """A form with a wrong CSRF token, or from another site, changes nothing."""
        path = f"/action/disable/{self.uuid}"
        for form, headers in (
            ({}, {}),
            ({"mark": "x"}, {}),
            ({"mark": "\udcff".encode("utf-8", "surrogatepass").hex()}, {}),
            ({"mark": self.rig.mark()}, {"Origin": "http://evil.example"}),
            ({"mark": self.rig.mark()}, {"Sec_Fetch_Site": "cross-site"}),
        ):
            self.assertEqual(self.rig.ask(path, form, **headers).status, 403)
        self.assertFalse(self.row().disabled)

    def test_wrong(self) -> None:
        """A failed action shows an error page with the right status."""
        for path, form, status in (
            ("/action/explode/" + self.uuid, {}, 404),
            ("/action/disable/nobody", {}, 404),
            (f"/action/disable/{self.uuid}", {"reason": "x" * 256}, 400),
            (f"/action/disable/{self.uuid}", {"reason": "a\0b"}, 400),
        ):
            answer = self.rig.ask(path, {"mark": self.rig.mark(), **form})
            self.assertEqual(answer.status, status)
            self.assertIn("<h1>", answer.text)

    def test_node_silent(self) -> None:
        """Ping, drain and run-task fail if the node does not respond."""
        for verb in ("ping", "drain", "run-task"):
            answer = self.do(verb, task="x")
            self.assertEqual(answer.status, 503)
            self.assertIn("is unreachable", answer.text)

    def test_node_told(self) -> None:
        """Drain and run-task call the node; its errors are shown."""
        life = InnerLife()
        transport = self.successResultOf(self.rig.runtime.broker.acquire())
        serve(self.rig, life, transport)
        self.assertEqual(self.do("run-task", task="report").headers["location"], f"/node/{self.uuid}?done=run-task")
        self.assertEqual(self.do("drain").status, 303)
        self.assertEqual(life.done, ["run report", "drain"])
        self.assertEqual(self.do("run-task", task="busy").status, 409)
        self.assertEqual(self.rig.ask(f"/action/run-task/{self.uuid}?task=report").status, 200)

    def test_answer_is_an_error(self) -> None:
        """An exception of Python that the node raises is shown as an error of the node."""
        serve(self.rig, InnerLife(), self.successResultOf(self.rig.runtime.broker.acquire()), [Failing()])
        answer = self.do("drain")
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)  # the node's, not the page's
        self.assertEqual(answer.status, 502)
        self.assertIn("responded with an error: remote error: LookupError no such tenant", answer.text)

    def test_audit(self) -> None:
        """Performed and rejected actions are in the audit log, with caller, action and client address."""
        lines: list[str] = []

        def note(event: Any) -> None:
            if event.get("audit"):
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        self.do("disable", reason="x")
        self.do("ping")
        self.rig.ask(f"/action/disable/{self.uuid}", {})
        who = "audit: local (loopback) from 127.0.0.1:"
        self.assertEqual(lines[0], f"{who} disable novasvc-agent@h1: done")
        self.assertRegex(lines[1], f"{re.escape(who)} ping novasvc-agent@h1: .* is unreachable")
        self.assertRegex(lines[2], f"{re.escape(who)} disable {self.uuid}: this form does not belong to your session")

    def test_messages_are_ours(self) -> None:
        """No query parameter can put its text on a page."""
        for query in (
            "done=You+are+hacked",
            "done=ping&ms=You+are+hacked",
            "done=ping&ms=1.0x",
            "done=ping&ms=9999999.0",
        ):
            text = self.rig.ask(f"/node/{self.uuid}?{query}").text
            self.assertNotIn("hacked", text)
        self.assertIn("It responded within 1.5 ms.", self.rig.ask(f"/node/{self.uuid}?done=ping&ms=1.5").text)


class LoginTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = PageRig(self, TOKENS)
        self.uuid = self.rig.add("h1", "novasvc-agent", "agent")
        self.rig.see()

    def cookie(self, token: str) -> str:
        answer = self.rig.ask("/login", {"token": token})
        self.assertEqual(answer.status, 303, answer.text)
        return str(answer.headers["set-cookie"]).partition(";")[0]

    def test_led_there(self) -> None:
        """An unauthenticated browser is redirected to the login page, and back after the login."""
        answer = self.rig.ask("/?state=down")
        self.assertEqual((answer.status, answer.headers["location"]), (302, "/login?next=%2F%3Fstate%3Ddown"))
        answer = self.rig.ask("/login", {"token": READERS, "next": "/?state=down"})
        self.assertEqual((answer.status, answer.headers["location"]), (303, "/?state=down"))

    def test_led_nowhere_else(self) -> None:
        """The login redirects only to our own pages."""
        for path in (
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "/node/../x",
            "/?\r\nx: y",
            "/action/x",
        ):
            answer = self.rig.ask("/login", {"token": READERS, "next": path})
            self.assertEqual(answer.headers["location"], "/", path)

    def test_wrong_token(self) -> None:
        """A wrong token is rejected after a second, without a cookie."""
        before = self.rig.clock.seconds()
        answer = self.rig.ask("/login", {"token": "a reader's token "[:-2]})
        self.assertEqual(answer.status, 401)
        self.assertIn("not valid", answer.text)
        self.assertNotIn("set-cookie", answer.headers)
        self.assertGreaterEqual(self.rig.clock.seconds() - before, 1.0)

    def test_guessing(self) -> None:
        """A client with many concurrent attempts gets 429; other clients are not affected."""
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "7"}
        tries = [Connection(self.rig) for _ in range(11)]
        for connection in tries:
            connection.send("POST", "/login", headers, "token=x")
        self.assertIn(b" 429 ", tries[-1].octets.splitlines()[0])
        self.assertEqual(b"".join(connection.octets for connection in tries[:-1]), b"")
        other = Connection(self.rig, "127.0.0.2")
        body = urlencode({"token": ADMINS})
        other.send("POST", "/login", {**headers, "Content-Length": str(len(body))}, body)
        self.assertIn(b" 303 ", other.octets.splitlines()[0])
        self.rig.clock.advance(1)
        self.assertEqual({connection.octets.split()[1] for connection in tries[:-1]}, {b"401"})

    def test_link(self) -> None:
        """A GET of a login link does not use it; the button does, once."""
        code = self.rig.login_links.issue()
        for _ in range(3):
            self.assertIn(f'name="code" value="{code}"', self.rig.ask(f"/login?code={code}").text)
        answer = self.rig.ask("/login", {"code": code})
        self.assertEqual(answer.status, 303)
        self.assertRegex(str(answer.headers["set-cookie"]), "HttpOnly; SameSite=Strict$")
        code = self.rig.login_links.issue()
        proxied = self.rig.ask("/login", {"code": code}, X_Forwarded_Proto="https")
        self.assertRegex(str(proxied.headers["set-cookie"]), "SameSite=Strict; Secure$")
        self.assertEqual(self.rig.ask("/login", {"code": code}).status, 401)

    def test_other_sites(self) -> None:
        """Another site's page cannot log a browser in."""
        self.assertEqual(self.rig.ask("/login", {"token": ADMINS}, Origin="http://evil.example").status, 403)

    def test_reader(self) -> None:
        """A caller with the scope read sees all pages without buttons, and may not confirm or perform actions."""
        cookie = self.cookie(READERS)
        text = self.rig.ask(f"/node/{self.uuid}", Cookie=cookie).text
        self.assertIn("last heartbeat", text)
        self.assertNotIn("/action/", text)
        self.assertEqual(self.rig.ask(f"/action/disable/{self.uuid}", Cookie=cookie).status, 403)
        session = self.rig.sessions.read(cookie.partition("=")[2])
        assert session is not None
        form = {"mark": self.rig.sessions.csrf_token(session.id)}
        self.assertEqual(self.rig.ask(f"/action/disable/{self.uuid}", form, Cookie=cookie).status, 403)

    def test_administrator(self) -> None:
        """An administrator's action needs the CSRF token of their own session."""
        cookie = self.cookie(ADMINS)
        text = self.rig.ask(f"/action/disable/{self.uuid}", Cookie=cookie).text
        (mark,) = re.findall(r'name="mark" value="([^"]+)"', text.partition("<main")[2])
        path = f"/action/disable/{self.uuid}"
        other = self.cookie(ADMINS)
        self.assertEqual(self.rig.ask(path, {"mark": mark}, Cookie=other).status, 403)
        self.assertEqual(self.rig.ask(path, {"mark": mark}, Cookie=cookie).status, 303)

    def test_logout(self) -> None:
        """Logging out expires the cookie, and needs the CSRF token."""
        cookie = self.cookie(ADMINS)
        self.assertEqual(self.rig.ask("/logout", {}, Cookie=cookie).status, 403)
        session = self.rig.sessions.read(cookie.partition("=")[2])
        assert session is not None
        answer = self.rig.ask("/logout", {"mark": self.rig.sessions.csrf_token(session.id)}, Cookie=cookie)
        self.assertIn("Max-Age=0", str(answer.headers["set-cookie"]))

    def test_nothing_to_log_in_for(self) -> None:
        """Without authentication there is no login page."""
        rig = PageRig(self)
        self.assertEqual(rig.ask("/login").headers["location"], "/")
        self.assertEqual(rig.ask("/login", {"token": "x"}).headers["location"], "/")
