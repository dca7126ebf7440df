"""Tests for what is on the first screen of the page: three widths, light and dark, with real workers."""

import re
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import BrowserTestCase, quit_browser
from tests.e2e.process import Process
from tests.e2e.test_page import CONTRASTS, Folder, OfClass

pytestmark = pytest.mark.timeout(180)

SHOP = '''
from novasvc import Manager, periodic_task, rpc

class Shop(Manager):
    """Sells, and fails to."""
    @rpc.expose
    async def sell(self, context, number):
        if number % 10 == 0:
            raise ValueError(f"there are no {number} of these")
        return number
    @periodic_task(spacing=1, run_immediately=True)
    async def sell_some(self, context):
        shop = self.attachments.rpc.prepare(topic="shop")
        for number in range(1, 11):
            try:
                await shop.call(context, "sell", number=number)
            except Exception:
                pass  # as its buyers do
'''
SLOW = ("--report-interval", "1", "--service-down-time", "3600", "--periodic-fuzzy-delay", "0")
"""The services of this test that do not run are up for an hour."""
SCREENS = ((1400, 900), (1024, 768), (390, 844))
SCHEMES = ("light", "dark")
BINARIES = ("nova-compute", "nova-conductor", "nova-scheduler", "cinder-volume", "neutron-agent", "image-cache")
TROUBLES: tuple[dict[str, Any], ...] = (
    *({"age": 5400},) * 6,
    *({"forced": 1},) * 4,
    *({"disabled": 1, "reason": "new disk in slot 3"},) * 5,
    *({"disabled": 1, "reason": "kernel upgrade, ticket 4711"},) * 4,
    *({"disabled": 1},) * 3,
    *({"disabled": 1, "reason": "burn-in", "age": 7000},) * 2,
)
"""What is wrong with 24 of 270 services."""


def tearDownModule() -> None:
    quit_browser()


class ScreenTests(BrowserTestCase):
    """Tests with 270 services of 6 binaries, 24 of them in trouble, and a node with two workers."""

    folder: Folder
    server: Process

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.folder = Folder(OfClass(cls))
        (cls.folder.path / "shop.py").write_text(SHOP)
        service = ("--binary", "novasvc-shop", "--topic", "shop", "--manager", "shop.Shop", "--workers", "2")
        cls.server, address = cls.folder.api(*SLOW, *service, host="till")
        cls.browser.address = address.rstrip("/")
        cls.troubled = {f"{BINARIES[11 * number % 6]}@{host(11 * number)}" for number in range(24)}
        cls.folder.seed(
            {
                "host": host(number),
                "binary": BINARIES[number % 6],
                **(TROUBLES[number // 11] if number % 11 == 0 and number < 264 else {}),
            }
            for number in range(270)
        )

    def show(self, path: str, width: int, height: int, scheme: str) -> None:
        self.browser.size(width, height)
        self.browser.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        self.browser.open(path)
        self.browser.says("#live", "live")

    def check(self, where: str, width: int) -> None:
        """Check what is true of every page: no horizontal scrolling, and enough contrast."""
        self.assertLessEqual(self.browser.script("return document.documentElement.scrollWidth"), width, where)
        self.assertEqual(self.browser.script(CONTRASTS), [], where)

    def on_screen(self, selector: str, height: int) -> list[str]:
        """Return the texts of the elements that are on the first screen as a whole."""
        code = f"""
        return [...document.querySelectorAll({selector!r})].filter(element => {{
          const box = element.getBoundingClientRect();
          return box.height && box.top >= 0 && box.bottom <= {height} && box.left >= 0 && box.right <= innerWidth;
        }}).map(element => element.innerText)"""
        return [" ".join(text.split()) for text in self.browser.script(code)]

    def test_first_screen(self) -> None:
        """What is wrong, since when and why is on the first screen at every width, light and dark."""
        browser = self.browser
        self.show("/", *SCREENS[0], "light")
        browser.until(lambda: browser.text("[data-total=services]") == "271", "all are counted")
        browser.until(lambda: browser.text("#headline") == "8 down, 4 forced down", "the heartbeats have come")
        for width, height in SCREENS:
            for scheme in SCHEMES:
                where = f"{width} {scheme}"
                self.show("/", width, height, scheme)
                self.check(where, width - 15)  # without the scroll bar
                ground = browser.script("return getComputedStyle(document.body).backgroundColor")
                self.assertEqual(sum(map(int, re.findall(r"\d+", ground)[:3])) < 200, scheme == "dark")
                browser.screenshot(f"fleet-{width}-{scheme}")
                said = self.on_screen("#problems .what", height)
                expected = [
                    "Down no heartbeat",
                    "Forced down by an operator",
                    "Down no heartbeat; disabled: burn-in",
                    "Disabled new disk in slot 3",
                    "Disabled kernel upgrade, ticket 4711",
                    "Disabled no reason given",
                ]
                self.assertEqual([re.sub(r" all \d+$", "", text) for text in said], expected, where)
                named = self.on_screen("#problems .affected a", height)
                self.assertRegex(named[0], r"^\S+@rack\d+-n\d+ 9\d min$", where)
                if width > 390:
                    names = {re.sub(r" >? ?\d+ \w+$", "", text) for text in named}
                    self.assertEqual(names, self.troubled, where)
                    self.assertTrue(self.on_screen("#map-title", height), where)

    def test_map(self) -> None:
        """Every service has a square; one in trouble says why, and the arrow keys walk from square to square."""
        browser = self.browser
        self.show("/", *SCREENS[0], "light")
        browser.until(lambda: len(browser.all("#map .squares a")) == 271, "each has a square")
        self.assertEqual(browser.text("#map section:nth-child(2) h3").partition(" ")[0], "image-cache")
        titles = browser.attributes("#map .squares a.o", "title")
        self.assertIn("disabled, new disk in slot 3", {(title or "").partition(": ")[2] for title in titles})
        squares = browser.all("#map section:first-child .squares a")
        stops = [square.get_attribute("tabindex") for square in squares]
        self.assertEqual(stops[:3], [None, "-1", "-1"])
        squares[0].send_keys(Keys.ARROW_RIGHT)
        self.assertEqual(browser.driver.switch_to.active_element, squares[1])
        host = squares[1].get_attribute("title").partition(":")[0]
        squares[1].send_keys(Keys.ENTER)
        browser.says("h1", host)

    @pytest.mark.long
    def test_many_at_once(self) -> None:
        """Services that are selected in the list are disabled after one confirmation, with one reason."""
        browser = self.browser
        self.show("/?q=image-cache@rack9-&sort=host", *SCREENS[2], "light")
        browser.until(lambda: len(browser.all("#services tbody tr")) == 5, "they are found")
        self.assertFalse(browser.one(".bulk").is_displayed())
        for box in browser.all("#services input[name=id]")[:2]:
            box.click()
        browser.says(".bulk .picked", "2 selected")
        browser.screenshot("selected-390-light")
        self.check("selected", SCREENS[2][0])
        browser.click(".bulk button")
        browser.says("h1", "Disable 2 services?")
        browser.screenshot("bulk-390-light")
        browser.one("input[name=reason]").send_keys("new <switch>", Keys.ENTER)
        browser.says("h1", "Disable: done for 2 of 2")
        browser.click(".does a")
        browser.until(lambda: len(browser.all('#services tr[data-look="disabled"]')) == 2, "they are disabled")
        self.assertIn("q=image-cache", browser.driver.current_url)
        browser.click("#all")
        browser.says(".bulk .picked", "All 5 that match")
        browser.click(".bulk button[formaction$=enable]")
        browser.click(".card button")
        browser.says("h1", "Enable: done for 5 of 5")

    @pytest.mark.long
    def test_node(self) -> None:
        """A service's page has the figures of all its workers, and the errors behind a number."""
        browser = self.browser
        self.show("/?q=novasvc-shop", *SCREENS[0], "light")
        browser.click("#services tbody th a")
        browser.says("#workers", "ready")
        sold = "//th[.='sell']/../td[1]"
        browser.until(lambda: int(browser.text(sold)) >= 20, "some are sold")
        counts: list[int] = []

        def watch() -> bool:
            counts.append(int(browser.text(sold)))
            return len(set(counts)) > 3

        browser.until(watch, "the count grows")
        self.assertEqual(counts, sorted(counts))
        self.assertNotIn("describe", browser.text("#methods"))
        browser.says("#errors", "ValueError: there are no 10 of these")
        self.assertRegex(
            browser.text("#errors tbody tr"), r"^\d\d:\d\d:\d\d sell ValueError.* \d\S* [µm]?s req-\S+ worker \d"
        )
        self.assertNotIn("describe", browser.text("#events"))
        self.assertRegex(browser.text("#events"), r"call sell done \d\S* [µm]?s req-")
        browser.until(lambda: "charts of the last" in browser.text("#reach"), "its history is there")
        address = browser.driver.current_url
        for width, height in SCREENS:
            for scheme in SCHEMES:
                self.show(address.removeprefix(browser.address), width, height, scheme)
                browser.says("#errors", "ValueError")
                self.check(f"node {width} {scheme}", width)
                browser.screenshot(f"node-{width}-{scheme}")
        browser.open(f"{address.removeprefix(browser.address)}?kind=problem&find=sell")
        browser.says("#events", "failed")
        self.assertNotIn(" done ", browser.text("#events"))


def host(number: int) -> str:
    return f"rack{number // 30 + 1}-n{number // 6 % 5 + 1}"
