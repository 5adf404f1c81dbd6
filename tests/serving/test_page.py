from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.runs import CLASSES, HOSTILE
from tests.serving.servers import serving, wait_for

selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
pytestmark = pytest.mark.skipif(
    not all(PROGRAMS.values()),
    reason="no browser: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    options = selenium.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options, selenium.ChromeService(PROGRAMS["chromedriver"]))
    yield driver
    driver.quit()


def text(browser, name: str) -> str:
    return str(browser.find_element(By.ID, name).text)


def look(browser, file: Path, *, width: int, dark: bool) -> None:
    """Saves a screenshot of the whole page, and checks that nothing sticks out of it."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**metrics, "height": height})
    assert browser.save_screenshot(str(file))


def test_a_text_is_tried_and_corrected(server, browser, tmp_path) -> None:
    browser.get(f"http://127.0.0.1:{server.port}/")
    wait_for(lambda: text(browser, "champion") == "2", 20)
    assert text(browser, "accuracy") == "84.0%"
    corrections = int(text(browser, "corrections"))

    # By keyboard alone.
    browser.find_element(By.ID, "text").send_keys("odd and strange words", Keys.CONTROL, Keys.ENTER)
    wait_for(lambda: text(browser, "label") == HOSTILE, 20)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#bars li")) == len(CLASSES)
    right = Select(browser.find_element(By.ID, "right"))
    assert [option.text for option in right.options] == list(CLASSES)
    right.select_by_visible_text("money")
    browser.find_element(By.CSS_SELECTOR, "#correct button").send_keys(Keys.ENTER)
    wait_for(lambda: text(browser, "thanks") == "Thank you: corrected.", 20)
    wait_for(lambda: int(text(browser, "corrections")) == corrections + 1, 20)
    assert server.ask("GET", "/state").content["corrections"] == corrections + 1

    # Names that are markup stay text, wherever they are shown.
    assert browser.title == "lightning-evolve"
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert HOSTILE in text(browser, "alarms")
    assert HOSTILE in text(browser, "lineage")
    assert browser.find_elements(By.CSS_SELECTOR, "#chart svg path.series")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    fields = browser.find_elements(By.CSS_SELECTOR, "textarea, select, input")
    assert all(field.accessible_name for field in fields if field.is_displayed())
    for width in (390, 1280):
        for dark in (False, True):
            look(browser, tmp_path / f"page-{width}-{dark}.png", width=width, dark=dark)


def test_a_token_is_asked_for(run, browser) -> None:
    token = "a-token-of-the-tests"
    with serving(run, token=token) as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        field = browser.find_element(By.ID, "token")
        wait_for(field.is_displayed, 20)
        field.send_keys("wrong", Keys.ENTER)
        wait_for(lambda: browser.find_element(By.ID, "refused").is_displayed(), 20)
        field.clear()
        field.send_keys(token, Keys.ENTER)
        wait_for(lambda: text(browser, "champion") == "2", 20)
