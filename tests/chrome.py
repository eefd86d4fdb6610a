"""A real Chromium, driven as a user would: the few things that the tests of the page do with it."""

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
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --window-size=1280,1000"
)


class Chrome:
    """One window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, selector: str, saying: str = "", seconds: float = 30) -> WebElement:
        """The first element there is, and shown, with that text in it; waits until there is one."""

        def look() -> WebElement | None:
            script = """
            return [...document.querySelectorAll(arguments[0])].find(
              each => each.checkVisibility() && each.textContent.includes(arguments[1]))"""
            return self.run(script, selector, saying)

        return until(look, f"{selector} saying {saying!r}", seconds)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def upload(self, path: Path) -> None:
        """Give the page a picture, in place of the one it has."""
        (field,) = until(
            lambda: self.find("#picture input[type=file]"), "a field for files"
        )  # none during another upload
        field.send_keys(str(path))

    def choose(self, label: str, value: str) -> None:
        """Choose from a drop-down list, by keyboard."""
        box = self.find(f"input[aria-label='{label}']")[0]
        box.click()
        self.wait("[role=option]")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value)
        self.wait("[role=option]", value)
        box.send_keys(Keys.ENTER)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """The window of another device."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def photograph(self, path: Path) -> None:
        """The whole page as a PNG file."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    def read_requests(self) -> list[str]:
        """Addresses asked for by pages since this was last called."""
        events = (
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        )
        return [
            each["params"]["request"]["url"]
            for each in events
            if each["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def open_chrome(profile: Path) -> Iterator[Chrome]:
    """A window with a fresh profile, closed at the end."""
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
    """What `look` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")
