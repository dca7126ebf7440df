"""Tests for the page in a real browser, on a real twistd."""

import re
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import BrowserTestCase, quit_browser
from tests.e2e.process import Process, program

pytestmark = pytest.mark.timeout(120)

RUNNING = "is running"
INSERT = """
INSERT INTO services (uuid, host, binary, topic, disabled, disabled_reason, forced_down, report_count, created_at,
                      last_seen_up, version, deleted)
VALUES (:uuid, :host, :binary, :topic, :disabled, :reason, :forced, 1, datetime('now'),
        strftime('%Y-%m-%d %H:%M:%f', 'now', -:age || ' seconds') || '000', 0, 0)
"""
BEAT = """
UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now') || '000', report_count = report_count + 1
WHERE report_count > 0 AND last_seen_up > strftime('%Y-%m-%d %H:%M:%f', 'now', '-60 seconds')
  AND host NOT IN ('alive', 'mortal')
"""
LEASE = """
INSERT INTO novasvc_leases (topic, task, holder, owner, fencing, created_at, acquired_at, expires_at)
VALUES ('shop', 'nightly', 'h7 worker 2', 'an id', 4, datetime('now') || '.000000', datetime('now') || '.000000',
        datetime('now', '+1 hour') || '.000000')
"""
GREETER = '''
import random
from novasvc import Manager, periodic_task, rpc

class Greeter(Manager):
    """A manager with something to do."""
    @rpc.expose
    async def greet(self, context, name):
        return f"hello {name}"
    @rpc.expose(blocking=True)
    def count(self, context, numbers):
        return sum(range(numbers))
    @periodic_task(spacing=1, run_immediately=True)
    async def greet_everybody(self, context):
        greeter = self.attachments.rpc.prepare(topic="greeter")
        for _ in range(random.randrange(1, 9)):
            await greeter.call(context, "greet", name="you")
        await greeter.call(context, "count", numbers=random.randrange(10000, 900000))
    @periodic_task(spacing=3600)
    def report(self, context):
        pass
'''
FAST = ("--report-interval", "1", "--service-down-time", "6", "--periodic-fuzzy-delay", "0")


def tearDownModule() -> None:
    quit_browser()


class Folder:
    """Where a server keeps its state.

    :param owner: has addCleanup.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        holder = tempfile.TemporaryDirectory()
        owner.addCleanup(holder.cleanup)
        self.path = Path(holder.name)
        (self.path / "greeters.py").write_text(GREETER)

    def twistd(self, *options: str, host: str = "h1") -> Process:
        """Start `twistd -n novasvc`."""
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--host", host, *options]
        environment = {"NOVASVC_STATE_DIR": str(self.path / "state"), "PYTHONPATH": str(self.path)}
        return Process(self._owner, command, self.path, **environment)

    def api(self, *options: str, host: str = "h1") -> tuple[Process, str]:
        """Start twistd with an API; return the page's URL, too."""
        process = self.twistd("--api", "--api-listen-port", "0", *options, host=host)
        address = process.wait_for(r"page +(http://\S+)").group(1)
        return process, address

    def seed(self, rows: Iterable[dict[str, Any]]) -> None:
        """Register services that do not run.

        :param rows: of the table; "age" is the seconds since the last heartbeat.
        """
        usual = {"binary": "novasvc-agent", "topic": None, "disabled": 0, "reason": None, "forced": 0, "age": 0}
        self.execute(INSERT, [{"uuid": str(uuid.uuid4()), **usual, **row} for row in rows])

    def keep_alive(self) -> None:
        """Send heartbeats for the registered services that do not run, and were alive a minute ago."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(1):
                self.execute(BEAT, [{}])

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        self._owner.addCleanup(thread.join, 30)
        self._owner.addCleanup(ended.set)

    def execute(self, statement: str, rows: list[dict[str, Any]]) -> None:
        """Change the database directly."""
        connection = sqlite3.connect(self.path / "state" / "novasvc.sqlite", timeout=20)
        with connection:
            connection.executemany(statement, rows)
        connection.close()


class OfClass:
    """Ends a class's processes with the class."""

    def __init__(self, case: type[TestCase]) -> None:
        self.addCleanup = case.addClassCleanup


class FleetTests(BrowserTestCase):
    """Tests with a server without tokens, a running node and some registered services."""

    folder: Folder
    address: str

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.folder = Folder(OfClass(cls))
        service = ("--binary", "novasvc-greeter", "--topic", "greeter", "--manager", "greeters.Greeter")
        _, cls.address = cls.folder.api(*FAST, *service, host="alive")
        cls.folder.seed(
            [
                *({"host": f"node{number}"} for number in range(1, 12)),
                {"host": "node1", "binary": "novasvc-scheduler"},
                {"host": "old", "age": 7200},
                {"host": "resting", "disabled": 1, "reason": "new disk"},
                {"host": "off", "forced": 1},
                {"host": "<script>alert(1)</script>", "disabled": 1, "reason": "<b onclick=alert(2)>'\"&amp;"},
            ]
        )
        cls.folder.keep_alive()

    def setUp(self) -> None:
        super().setUp()
        self.browser.address = self.address.rstrip("/")

    def cell(self, host: str, binary: str = "novasvc-agent") -> str:
        """Return a CSS selector of a service's link in the list."""
        code = (
            "return [...document.querySelectorAll('#services tbody th a')]"
            f".filter(link => link.textContent === {f'{binary}@{host}'!r}).map(link => link.id)[0]"
        )
        found = self.browser.until(lambda: self.browser.script(code), f"there is a row of {binary} at {host}")
        return f"#{found}"

    def row(self, host: str, binary: str = "novasvc-agent") -> str:
        """Return a CSS selector of a service's row in the list."""
        return self.cell(host, binary).replace("#s", "#r")

    def hosts(self) -> list[str]:
        """Return the hosts of the services that are shown, in their order."""
        return [text.partition("@")[2] for text in self.browser.texts("#services tbody th a")]

    def troubled(self) -> list[str]:
        """Return the shown hosts whose services were never up."""
        return [host for host in self.hosts() if host in {"off", "old"}]

    def test_list_and_filter(self) -> None:
        """All services are listed with their states in words; a filter finds services, and is in the URL."""
        browser = self.browser
        browser.open("/?sort=host")
        browser.says("#live", "live")
        nodes = [host for host in self.hosts() if host.startswith("node")]
        self.assertEqual(nodes, ["node1", *(f"node{number}" for number in range(1, 12))])
        self.assertGreaterEqual(int(browser.text("[data-total=services]")), 17)
        for host, words in (("old", "down"), ("off", "forced down"), ("node1", "up"), ("resting", "disabled")):
            self.assertIn(words, browser.text(self.row(host)))
        self.assertRegex(browser.text(self.row("old")), r"12\d min|2 h")
        self.assertRegex(browser.driver.title, r"^\d down, \d forced down")
        browser.one("input[name=q]").send_keys("NEW DI", Keys.ENTER)
        browser.until(lambda: self.hosts() == ["resting"], "the disk's host is found")
        self.assertTrue(browser.driver.current_url.endswith("/?q=NEW+DI&sort=host"), browser.driver.current_url)
        browser.click(".clear")
        browser.until(lambda: len(self.hosts()) >= 17, "all are back")
        browser.click("select[name=binary] option:last-child")
        browser.until(lambda: self.hosts() == ["node1"], "the one scheduler is found")
        browser.click(".clear")
        browser.click("select[name=state] option[value=forced]")
        browser.until(lambda: self.troubled() == ["off"], "the one that is forced down is found")
        browser.open("/?q=o&state=trouble&sort=host")
        browser.until(lambda: self.troubled() == ["off", "old"], "those in trouble are found")
        browser.click("select[name=sort] option[value='-host']")
        browser.until(lambda: self.troubled() == ["old", "off"], "they are sorted")
        self.assertIn("state=trouble&sort=-host", browser.driver.current_url)
        browser.driver.back()
        browser.until(lambda: self.troubled() == ["off", "old"], "the way back works")
        browser.open("/?q=nowhere")
        browser.says("#grid", "No service matches")

    def test_hostile_names(self) -> None:
        """A host named like a script is shown as text."""
        browser = self.browser
        browser.open("/")
        name = "<script>alert(1)</script>"
        self.assertIn(name, self.hosts())
        browser.open("/?q=onclick")
        browser.until(lambda: self.hosts() == [name], "it is found by its reason")
        browser.click("#services tbody th a")
        browser.says("h1", name)
        browser.says("#facts", "<b onclick=alert(2)>'\"&amp;")

    @pytest.mark.long
    def test_killed_node(self) -> None:
        """A killed node goes down on the page without a reload, and comes up when it is started again."""
        browser = self.browser
        node = self.folder.twistd(*FAST, host="mortal")
        node.wait_for(RUNNING)
        browser.open("/")
        browser.until(lambda: "mortal" in self.hosts(), "it has appeared")
        cell = self.row("mortal")
        browser.says(cell, "up")
        browser.script("window.unbroken = true")
        node.stop(signal.SIGKILL)
        browser.says(cell, "down")
        browser.says("#timeline", "novasvc-agent@mortal went down")
        again = self.folder.twistd(*FAST, host="mortal")
        again.wait_for(RUNNING)
        browser.until(lambda: browser.one(cell).get_attribute("data-look") == "up", "it is up again")
        browser.says("#timeline", "novasvc-agent@mortal came up")
        self.assertTrue(browser.script("return window.unbroken"))
        browser.screenshot("killed")
        again.stop()

    def test_new_service_appears(self) -> None:
        """A new service appears on the page, and the focus stays."""
        browser = self.browser
        browser.open("/")
        browser.says("#live", "live")
        cell = self.cell("node7")
        browser.script(f"document.querySelector('{cell}').focus(); window.unbroken = true")
        self.folder.seed([{"host": "newcomer"}])
        browser.until(lambda: "newcomer" in self.hosts(), "it appears")
        self.assertEqual(f"#{browser.driver.switch_to.active_element.get_attribute('id')}", cell)
        self.assertTrue(browser.script("return window.unbroken"))

    def test_without_streams(self) -> None:
        """Without event streams the page polls, and is as live."""
        browser = self.browser
        script = browser.command("Page.addScriptToEvaluateOnNewDocument", source="delete window.EventSource")
        self.addCleanup(browser.command, "Page.removeScriptToEvaluateOnNewDocument", **script)
        browser.open("/?q=node8")
        browser.says("#live", "live")
        cell = self.row("node8")
        self.folder.execute("UPDATE services SET forced_down = 1 WHERE host = :host", [{"host": "node8"}])
        browser.says(cell, "forced down")
        browser.says("#timeline", "novasvc-agent@node8 was forced down")

    def test_disable_with_reason(self) -> None:
        """Disabling asks for confirmation and a reason, reports success, and shows everywhere; enabling undoes it."""
        browser = self.browser
        browser.open("/?q=node2")
        browser.click(self.cell("node2"))
        browser.click("#do-disable")
        browser.says("dialog h1", "Disable novasvc-agent@node2?")
        browser.screenshot("dialog")
        browser.one("dialog input[name=reason]").send_keys("fan is <loud>", Keys.ENTER)
        browser.says(".message", "It is disabled.")
        browser.says("#facts", "fan is <loud>")
        browser.says("#state", "disabled")
        browser.says("#happened", "was disabled: fan is <loud>")
        browser.click(".brand")
        browser.until(lambda: "disabled" in browser.text(self.row("node2")), "the fleet's page shows it")
        browser.click(self.cell("node2"))
        browser.click("#do-enable")
        browser.click("dialog .does button")
        browser.says(".message", "It is enabled.")
        self.assertEqual(browser.all("#facts .reason"), [])

    def test_force_down(self) -> None:
        """Forcing down asks for confirmation, which can be cancelled; the change shows on other open pages."""
        browser = self.browser
        browser.open("/?q=node3")
        browser.says("#live", "live")
        fleet = browser.driver.current_window_handle
        cell = self.cell("node3")
        (address,) = browser.attributes(cell, "href")
        assert address is not None
        browser.driver.switch_to.new_window("tab")
        browser.driver.get(address)
        browser.click("#do-force-down")
        browser.click("dialog [data-back]")
        browser.until(lambda: not browser.one("dialog").is_displayed(), "the question is gone")
        self.assertEqual(browser.driver.switch_to.active_element.get_attribute("id"), "do-force-down")
        browser.click("#do-force-down")
        browser.click("dialog .does button")
        browser.says(".message", "It is forced down.")
        browser.says("#state", "forced down")
        browser.driver.switch_to.window(fleet)
        browser.says(self.row("node3"), "forced down")
        browser.driver.switch_to.window(browser.driver.window_handles[-1])
        browser.click("#do-let-up")
        browser.click("dialog .does button")
        browser.says(".message", "Its heartbeats count again.")
        browser.driver.close()
        browser.driver.switch_to.window(fleet)
        browser.until(lambda: browser.one(self.row("node3")).get_attribute("data-look") == "up", "it is up again")

    def test_node(self) -> None:
        """A node's page shows its description, runs a task, and pings it."""
        browser = self.browser
        browser.open("/?q=alive")
        browser.click(self.cell("alive", "novasvc-greeter"))
        browser.says("#health", "broker")
        browser.says("#workers", "single process")
        browser.says("#events", "greet")
        self.assertRegex(browser.text("#facts"), r"(?s)uptime\s+\d+ s")
        task = "//th[.='report']/../"
        self.assertEqual(browser.text(f"{task}td[3]"), "0")
        browser.click(f"{task}td/a")
        browser.says("dialog h1", "Run the task report of novasvc-greeter@alive now?")
        browser.click("dialog .does button")
        browser.says(".message", "The task was started.")
        runs = "the run is seen without loading again"
        browser.until(lambda: browser.text(f"{task}td[3]") == "1", runs)
        browser.click("#do-ping")
        browser.click("dialog .does button")
        browser.until(lambda: re.search(r"responded within \d+\.\d ms", browser.text(".message")), "it answered")
        browser.until(lambda: "charts of the last" in browser.text("#reach"), "its history is there")
        drawn = "//th[.='greet']/../td//*[name()='path'][string-length(@d) > 15]"
        browser.until(lambda: len(browser.all(drawn)) == 2, "two lines are drawn")
        browser.screenshot("node")

    def test_leases(self) -> None:
        """The page of the leases is reached from the fleet's, shows who has which, and updates itself."""
        browser = self.browser
        browser.open("/")
        browser.click(".places a:last-child")
        browser.says("h1", "Leases")
        browser.says("#leases", "There are none")
        browser.says("#live", "live")
        self.folder.execute(LEASE, [{}])
        browser.says("#leases", "nightly")
        browser.says("#leases", "h7 worker 2")
        browser.screenshot("leases")

    def test_node_pauses(self) -> None:
        """A node's page says that it does not update itself while text is selected, or a confirmation is open."""
        browser = self.browser
        browser.open("/?q=alive")
        browser.click(self.cell("alive", "novasvc-greeter"))
        browser.says("#live", "live")
        browser.script("getSelection().selectAllChildren(document.getElementById('name'))")
        browser.says("#live", "paused")
        browser.script("getSelection().empty()")
        browser.until(lambda: browser.text("#live") == "live", "it goes on")
        browser.click("#do-ping")
        browser.says("#live", "paused")

    def test_silent_node(self) -> None:
        """The page of a node that does not respond says so, and shows its row."""
        browser = self.browser
        self.folder.seed([{"host": "mute", "topic": "agent"}])
        browser.open("/?q=mute")
        browser.until(lambda: self.hosts() == ["mute"], "it is there")
        browser.click(self.cell("mute"))
        browser.says("#facts", "is unreachable")
        browser.says("#facts", "last heartbeat")
        browser.says("#tasks", "Unknown.")

    def test_narrow(self) -> None:
        """At a width of 360 pixels no page scrolls horizontally."""
        browser = self.browser
        browser.size(360, 740)
        for path in ("/", "/?state=down", "/login"):
            browser.open(path)
            self.assertLessEqual(browser.script("return document.documentElement.scrollWidth"), 360, path)
        browser.open("/")
        browser.screenshot("narrow")
        browser.open("/?q=alive")
        browser.click(self.cell("alive", "novasvc-greeter"))
        browser.says("#health", "broker")
        self.assertLessEqual(browser.script("return document.documentElement.scrollWidth"), 360)
        browser.screenshot("narrow-node")

    def test_keyboard(self) -> None:
        """The page can be used with the keyboard only."""
        browser = self.browser
        browser.open("/?q=node5")
        keys = browser.driver.switch_to.active_element.send_keys

        def press(*what: str) -> Any:
            browser.driver.switch_to.active_element.send_keys(*what)
            return browser.driver.switch_to.active_element

        def walk_to(selector: str) -> None:
            wanted = browser.one(selector)
            for _ in range(40):
                if press(Keys.TAB) == wanted:
                    outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle")
                    self.assertEqual(outline, "solid", f"the focus is not seen on {selector}")
                    return
            self.fail(f"Tab never gets to {selector}")

        keys(Keys.TAB)
        self.assertEqual(browser.driver.switch_to.active_element.text, "Skip to content")
        press(Keys.ENTER)
        self.assertEqual(browser.driver.switch_to.active_element.get_attribute("id"), "main")
        walk_to(self.cell("node5"))
        press(Keys.ENTER)
        browser.says("h1", "node5")
        walk_to("#do-disable")
        press(Keys.ENTER)
        browser.says("dialog h1", "Disable")
        press(Keys.ESCAPE)
        browser.until(lambda: not browser.one("dialog").is_displayed(), "Escape leaves")
        self.assertEqual(browser.driver.switch_to.active_element.get_attribute("id"), "do-disable")
        press(Keys.ENTER)
        browser.says("dialog h1", "Disable")
        press("by hand", Keys.ENTER)
        browser.says(".message", "It is disabled.")

    def test_place(self) -> None:
        """Updates move neither the focus nor what was scrolled: on the map, and in the tables of a node."""
        browser = self.browser
        browser.open("/")
        focused = "return document.activeElement.getAttribute('href')"
        browser.says("#live", "live")
        browser.until(lambda: "node7" in self.hosts(), "the fleet was read")
        browser.script("document.querySelectorAll('#map .squares a')[3].focus()")
        square = browser.script(focused)
        squares = len(browser.all("#map .squares a"))
        self.folder.seed([{"host": "latecomer"}])
        browser.until(lambda: len(browser.all("#map .squares a")) > squares, "the map was loaded again")
        self.assertEqual(browser.script(focused), square)
        browser.size(360, 740)
        browser.open("/?q=alive")
        browser.click(self.cell("alive", "novasvc-greeter"))
        browser.says("#tasks", "report")
        rows = "document.getElementById('tasks-rows')"
        browser.script(f"{rows}.focus(); {rows}.scrollLeft = 20; {rows}.append('different')")
        self.assertEqual(browser.script(f"return {rows}.scrollLeft"), 20)
        browser.until(lambda: "different" not in browser.text("#tasks"), "the table was replaced")
        self.assertEqual(browser.script("return document.activeElement.id"), "tasks-rows")
        self.assertEqual(browser.script(f"return {rows}.scrollLeft"), 20)

    def test_without_scripts(self) -> None:
        """Without JavaScript fleet, filters, node page and confirmed actions work."""
        browser = self.browser
        browser.scripts(allowed=False)
        browser.open("/")
        browser.says("main", "Without JavaScript")
        browser.one("input[name=q]").send_keys("node4")
        browser.click(".filter button")
        browser.until(lambda: self.hosts() == ["node4"], "it is found")
        browser.click("#services tbody th a")
        browser.says("h1", "node4")
        browser.click("#do-disable")
        browser.says("h1", "Disable novasvc-agent@node4?")
        browser.one("input[name=reason]").send_keys("no script")
        browser.click(".does button")
        browser.says(".message", "It is disabled.")
        browser.says("#facts", "no script")


class OutageTests(BrowserTestCase):
    """Tests with a server that is stopped and started again."""

    expected_on_console = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET")

    @pytest.mark.long
    def test_server_goes_away(self) -> None:
        """A banner says that the state is old when the server is unreachable, and disappears when it is back."""
        browser = self.browser
        folder = Folder(self)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        options = ("--api", "--api-listen-port", port, *FAST)
        server = folder.twistd(*options)
        server.wait_for("page +http")
        browser.address = f"http://127.0.0.1:{port}"
        browser.open("/")
        browser.says("#live", "live")
        browser.script("window.unbroken = true")
        begun = time.monotonic()
        self.assertEqual(server.stop(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - begun, 10, "a page that is open does not hold up the end")
        browser.says("#banner", "The server does not respond")
        self.assertEqual(browser.text("#live"), "not live")
        browser.screenshot("stale")
        again = folder.twistd(*options)
        again.wait_for("page +http")
        browser.until(lambda: not browser.text("#banner"), "the banner is gone")
        browser.says("#live", "live")
        self.assertTrue(browser.script("return window.unbroken"))
        again.stop()


class RefusedTests(BrowserTestCase):
    """Tests with a server whose responses are errors."""

    expected_on_console = ("404 (Not Found)", "503 (Service Unavailable)", "500 (Internal Server Error)")

    def test_node(self) -> None:
        """A node's page shows the reason of the server when it cannot be loaded again."""
        browser = self.browser
        folder = Folder(self)
        _, address = folder.api(*FAST)
        browser.address = address.rstrip("/")
        folder.seed([{"host": "mute"}])
        browser.open("/?q=mute")
        browser.until(lambda: len(browser.all("#services tbody th a")) == 1, "it is there")
        browser.click("#services tbody th a")
        browser.says("#live", "live")
        folder.execute("ALTER TABLE services RENAME TO moved", [{}])
        browser.says("#banner", "This state is old: database ")
        browser.says("#live", "not live")
        folder.execute("ALTER TABLE moved RENAME TO services", [{}])
        browser.until(lambda: not browser.text("#banner"), "the banner is gone")
        self.assertEqual(browser.text("#live"), "live")
        folder.execute("DELETE FROM services WHERE host = 'mute'", [{}])
        browser.says("#banner", "could not be found")


class LoginTests(BrowserTestCase):
    """Tests with a server with tokens."""

    expected_on_console = ("401 (Unauthorized)",)

    def test_login(self) -> None:
        """A login link works once; the scope read shows no actions; logging out ends the session."""
        browser = self.browser
        folder = Folder(self)
        tokens = folder.path / "tokens"
        tokens.write_text("ada admin 0123456789abcdef-ada\nron read 0123456789abcdef-ron\n")
        tokens.chmod(0o600)
        server, link = folder.api("--api-token-file", str(tokens), *FAST)
        browser.address, _, code = link.partition("/login")
        self.assertTrue(code, link)

        browser.open("/?state=up")
        browser.says("h1", "Log in")
        browser.one("input[name=token]").send_keys("not a token at all", Keys.ENTER)
        browser.says("[role=alert]", "This token is not valid.")
        browser.screenshot("login")

        browser.open(f"/login{code}")
        browser.click("main button")
        browser.says("#services-title", "Services")
        browser.says("#live", "live")
        browser.says(".who", "admin")
        browser.click("#services tbody th a")
        browser.until(lambda: browser.all("#do-drain"), "an administrator may act")
        browser.click(".who button")
        browser.says("h1", "Log in")

        browser.open(f"/login{code}")
        browser.click("main button")
        browser.says("[role=alert]", "used already")

        browser.open("/?state=up")
        browser.one("input[name=token]").send_keys("0123456789abcdef-ron", Keys.ENTER)
        browser.says("#services-title", "Services")
        self.assertTrue(browser.driver.current_url.endswith("/?state=up"), "it is led to where it wanted to go")
        browser.click("#services tbody th a")
        browser.says("#tasks", "refresh_host_facts")
        self.assertEqual(browser.all("#do-drain, #actions, #tasks a, input[type=checkbox]"), [])
        self.assertNotIn("0123456789abcdef", server.output)
        browser.leave()
        server.stop()


class ManyTests(BrowserTestCase):
    """Tests with a fleet of 2,000 services."""

    @pytest.mark.long
    def test_two_thousand(self) -> None:
        """A fleet of 2,000 services is counted, paged, filtered and updated."""
        browser = self.browser
        folder = Folder(self)
        server, address = folder.api("--service-down-time", "600", host="control")
        browser.address = address.rstrip("/")
        odd = {
            (0, 3): {"age": 5400},
            (0, 9): {"disabled": 1, "reason": "new disk"},
            (0, 14): {"forced": 1},
            (7, 11): {"age": 9000},
        }
        folder.seed(
            {"host": f"rack{rack}-n{number}", "binary": binary, "age": 7 * number % 20, **odd.get((rack, number), {})}
            for rack in range(50)
            for number in range(20)
            for binary in ("novasvc-agent", "novasvc-storage")
        )
        browser.open("/")
        browser.until(lambda: browser.text("[data-total=services]") == "2,001", "all are counted")
        browser.open("/")
        browser.says(".pages", "of 2,001 services, page 1 of 21")
        browser.says("#live", "live")
        browser.script("window.unbroken = true")
        change = "UPDATE services SET disabled = 1, disabled_reason = 'fan is loud' WHERE host = :host"
        folder.execute(change, [{"host": "rack0-n5"}])
        browser.says("#timeline", "was disabled: fan is loud")
        folder.execute("UPDATE services SET forced_down = 1 WHERE host LIKE :host", [{"host": "rack5-%"}])
        browser.says("#timeline", "40 services were forced down")
        browser.until(lambda: browser.text("[data-total=forced]") == "42", "they are counted")
        self.assertTrue(browser.script("return window.unbroken"))
        browser.screenshot("fleet")

        browser.click("[rel=next]")
        browser.says(".pages", "page 2 of 21")
        browser.open("/?sort=silent")
        self.assertEqual(browser.texts("#services tbody th a")[0].partition("@")[2], "rack7-n11")
        browser.open("/?q=rack49-n1&state=up")
        self.assertEqual(len(browser.all("#services tbody tr")), 22)
        self.assertEqual(len(browser.all("#map .squares a")), 22)
        took = browser.script("return performance.getEntriesByType('navigation')[0].duration")
        sys.stdout.write(f"a page of 2,001 services took {took:.0f} ms\n")  # for who looks; a budget would be a guess
        browser.leave()
        server.stop()


CONTRASTS = """
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (!text || !element.checkVisibility() || element.closest(".unseen, .sprite, option")) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) poor.push(`${element.className || element.tagName} ${text}: ${contrast.toFixed(2)}`);
}
return poor;
"""
"""Finds texts whose contrast with what is behind them is less than WCAG's AA wants."""
