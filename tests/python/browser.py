"""A headless browser for tests of pages."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest


def start() -> Iterator[Any]:
    """Chromium or Chrome, driven by the chromedriver on the path, quit at the end.

    Missing on a Mac, the tests are skipped with a reason; elsewhere scripts/system_packages has installed it.
    """
    driver = shutil.which("chromedriver")
    if driver is None and sys.platform == "darwin":
        pytest.skip("no chromedriver on this Mac: pages are tested on Linux")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def resize(browser: Any, width: int) -> None:
    """Narrower than a window of the system may be, as a phone is."""
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda found: found.execute_script(f"return {condition}"))


def errors(browser: Any) -> list[str]:
    """What the page's programs complained about since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
