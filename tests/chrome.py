"""A headless Chromium for tests of the page, controlled like a user would."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,1000"
)


class Chrome:
    """One browser window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, selector: str) -> list[WebElement]:
        """Return all elements that match a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, selector: str, text: str = "", seconds: float = 30) -> WebElement:
        """Wait for a visible element that contains the text, and return the first."""

        def look() -> WebElement | None:
            script = """
            return [...document.querySelectorAll(arguments[0])].find(
              e => e.checkVisibility() && e.textContent.includes(arguments[1]))"""
            return self.run(script, selector, text)

        return until(look, f"{selector} with the text {text!r}", seconds)

    def read(self, selector: str, text: str = "", seconds: float = 30) -> str:
        """Wait like `wait`; returns the text, also if the page replaces the element."""

        def look() -> str | None:
            try:
                return self.wait(selector, text, seconds).text
            except StaleElementReferenceException:
                return None

        return until(look, f"{selector} with the text {text!r}", seconds)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys in the element that has the focus."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def upload(self, path: Path) -> None:
        """Upload an image, which replaces the current one."""
        # the file input is missing during another upload
        (field,) = until(lambda: self.find("#image input[type=file]"), "a file input")
        field.send_keys(str(path))

    def choose(self, label: str, value: str) -> None:
        """Choose from a drop-down list with the keyboard."""
        box = self.find(f"input[aria-label='{label}']")[0]
        box.click()
        self.wait("[role=option]")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value)
        self.wait("[role=option]", value)
        box.send_keys(Keys.ENTER)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Emulate a device with this screen and colour scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def save_screenshot(self, path: Path) -> None:
        """Save the whole page as a PNG file."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        screenshot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        path.write_bytes(base64.b64decode(screenshot["data"]))

    def read_requests(self) -> list[str]:
        """Return the URLs that pages have requested since the last call."""
        log = self.driver.get_log("performance")
        events = (json.loads(entry["message"])["message"] for entry in log)
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def open_chrome(profile: Path) -> Iterator[Chrome]:
    """Open a window with a new profile; close it when the block ends."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield Chrome(driver)
    finally:
        driver.quit()


def until(look: Callable[[], T | None], what: str, seconds: float = 30) -> T:
    """Call `look` until it returns a true value, and return that value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := look():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")
