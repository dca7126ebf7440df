"""A real headless browser for tests."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest import SkipTest, TestCase

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.e2e.process import PATIENCE

T = TypeVar("T")

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
WIDTH, HEIGHT = 1280, 800

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-dev-shm-usage",  # which is small in containers
    "--disable-gpu",
    # It is to speak with the server under test, and with nobody else.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-domain-reliability",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Browser:
    """Chromium, for all tests of a module; each begins with :meth:`fresh`."""

    def __init__(self) -> None:
        for program in (CHROMIUM, DRIVER):
            if not Path(program).exists():
                problem = f"there is no {program}; Debian's packages chromium and chromium-driver have it"
                raise AssertionError(problem) if os.environ.get("CI") else SkipTest(problem)
        self._profile = tempfile.mkdtemp(prefix="novasvc-tests-browser-")
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*_OPTIONS, f"--user-data-dir={self._profile}", f"--window-size={WIDTH},{HEIGHT}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options=options, service=Service(DRIVER))
        self.driver.set_page_load_timeout(PATIENCE)
        self.driver.set_script_timeout(PATIENCE)
        self.address = ""

    def quit(self) -> None:
        """End it, and remove what it left."""
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def fresh(self) -> None:
        """Reset the browser to the state before the first test."""
        self.leave()
        self.driver.delete_all_cookies()
        self.command("Network.clearBrowserCookies")
        self.scripts(allowed=True)
        self.media()
        self.size(WIDTH, HEIGHT)
        self.console()

    # -- what it looks like ----------------------------------------------------------------------

    def command(self, name: str, **arguments: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def size(self, width: int, height: int) -> None:
        """Set the size of the window, in pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def media(self, **features: str) -> None:
        """Set media features; underscores stand for dashes."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=named)

    def scripts(self, *, allowed: bool) -> None:
        """Enable or disable JavaScript."""
        self.command("Emulation.setScriptExecutionDisabled", value=not allowed)

    def console(self) -> list[str]:
        """Return the console's messages since the last call."""
        return [f"{entry['level']} {entry['message']}" for entry in self.driver.get_log("browser")]

    def screenshot(self, name: str) -> None:
        """Save a screenshot in the directory that NOVASVC_SCREENSHOTS names, if it is set."""
        folder = os.environ.get("NOVASVC_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    # -- what is on the page ---------------------------------------------------------------------

    def open(self, path: str) -> None:
        """Load a page of the server under test."""
        self.driver.get(self.address + path)

    def leave(self) -> None:
        """Close the page. Call it before the server ends: a live page reports that it cannot reach it."""
        self.driver.get("about:blank")

    # A page that updates itself may replace an element between the request that finds it and the one that uses it. So
    # tests read elements and click on them by their selectors, which are looked up again then.

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that match a CSS selector, or an XPath, which begins with a slash."""
        return self.driver.find_elements(_language(selector), selector)

    def one(self, selector: str) -> WebElement:
        """Return the first element that matches."""
        return self.driver.find_element(_language(selector), selector)

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return self._read(lambda: self.one(selector).text)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that match."""
        return self._read(lambda: [element.text for element in self.all(selector)])

    def attributes(self, selector: str, name: str) -> list[str | None]:
        """Return an attribute of all elements that match; None where it is missing."""
        return self._read(lambda: [element.get_attribute(name) for element in self.all(selector)])

    def click(self, selector: str) -> None:
        """Click on an element as soon as it exists and is visible."""

        def clicked() -> bool:
            element = self.one(selector)
            if not element.is_displayed():
                return False
            element.click()
            return True

        self.until(clicked, selector)

    def _read(self, read: Callable[[], T]) -> T:
        while True:
            with suppress(StaleElementReferenceException):
                try:
                    return read()
                except WebDriverException as error:
                    # Chrome says so if the element goes away in the midst of a command.
                    if "does not belong to the document" not in str(error):
                        raise

    def script(self, code: str) -> Any:
        """Run JavaScript."""
        return self.driver.execute_script(code)

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """Wait until a condition is true, and return its value."""
        deadline = time.monotonic() + patience
        while True:
            try:
                found = condition()
            except (NoSuchElementException, StaleElementReferenceException):
                found = None
            if found:
                return found
            if time.monotonic() > deadline:
                page = self.driver.find_element(By.TAG_NAME, "body").text[:3000]
                raise AssertionError(f"not after {patience} s: {what}\n{self.driver.current_url}\n{page}")
            time.sleep(0.05)

    def says(self, selector: str, text: str) -> None:
        """Wait until an element has a text."""
        self.until(lambda: text in self.text(selector), f"{selector} says {text!r}")


def _language(selector: str) -> str:
    return By.XPATH if selector.startswith("/") else By.CSS_SELECTOR


class BrowserTestCase(TestCase):
    """A test with the browser; at its end nothing may be on the console that it does not expect.

    :cvar browser: one for all tests of a module.
    """

    browser: Browser
    expected_on_console: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.browser = shared_browser()

    def setUp(self) -> None:
        super().setUp()
        self.browser.fresh()
        self.addCleanup(self._look_at_console)

    def tearDown(self) -> None:
        self.browser.leave()  # before any cleanup ends the server
        super().tearDown()

    def _look_at_console(self) -> None:
        unexpected = [
            line for line in self.browser.console() if not any(part in line for part in self.expected_on_console)
        ]
        self.assertEqual(unexpected, [])


_browsers: list[Browser] = []


def shared_browser() -> Browser:
    """Return the browser of this process, started when it is first asked for."""
    if not _browsers:
        _browsers.append(Browser())
    return _browsers[0]


def quit_browser() -> None:
    """End the browser of this process."""
    while _browsers:
        _browsers.pop().quit()
