"""The documentation site builds without a warning, fits a phone, and its page of results works in a browser."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from browser import errors, resize, start, wait
from natten_mlx import distributed, models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Of the site on a server of this machine: browsers don't search pages that are files."""
    handler = functools.partial(SilentHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from start()


def test_pages(site: Path) -> None:
    python, cpp = ((site / "reference" / f"{name}.html").read_text() for name in ("python", "cpp"))
    assert 'id="na2d"' in python and "Query stride: only queries" in python
    for module in (models, distributed):  # every name, and what is below it
        for name in module.__all__:
            assert f'id="{module.__name__.rpartition(".")[2]}{name}"'.lower() in python, name
    assert "Channels C, divisible by num_heads" in python
    assert 'id="modelsltxdecoderframes"' in python and "The same video in pieces" in python
    assert "lambda" not in python and "<factory>" not in python
    assert 'id="neighborhood"' in cpp and "Which keys a query attends." in cpp
    assert "fonts.googleapis" not in (site / "index.html").read_text()


def test_releases_are_called_what_their_pages_are() -> None:
    navigation = re.findall(r"- (From NATTEN .*): (migrating-natten-.*\.md)", (ROOT / "mkdocs.yml").read_text())
    assert len(navigation) == 5
    for name, page in navigation:
        assert f"# {name}\n" in (ROOT / "docs" / page).read_text(), page


@pytest.mark.parametrize("width", [400, 1400])
def test_pages_fit(address: str, browser: Any, width: int) -> None:
    resize(browser, width)
    for page in (
        "index",
        "explorer",
        "windows",
        "results",
        "concepts",
        "performance",
        "reference/python",
        "laboratory/fast-tier",
    ):
        browser.get(f"{address}/{page}.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
        assert not errors(browser), page


def test_the_explorer_in_its_frame(address: str, browser: Any) -> None:
    """Without its own heading, controls and tokens stand side by side."""
    resize(browser, 1400)
    browser.get(f"{address}/explorer.html")
    browser.switch_to.frame("explorer")
    wait(browser, "document.querySelectorAll('#grid .cell').length > 1")
    top = "return document.getElementById('{}').getBoundingClientRect().top"
    assert abs(browser.execute_script(top.format("controls")) - browser.execute_script(top.format("view"))) < 20


def test_search_finds_the_pages_of_users_first(address: str, browser: Any) -> None:
    from selenium.webdriver.common.by import By

    resize(browser, 1400)
    for words in ("circular axes", "forked process"):
        browser.get(f"{address}/index.html")
        field = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
        field.click()
        field.send_keys(words)
        first = ".md-search-result__item a.md-search-result__link"
        wait(browser, f"document.querySelector('{first}') !== null")
        found = [link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, first)]
        assert not any(folder in found[0] for folder in ("/laboratory/", "/project/", "/design")), (words, found)


def test_results(address: str, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    resize(browser, 1400)
    browser.get(f"{address}/results.html")
    form = browser.find_element(By.ID, "results-filters")
    Select(form.find_element(By.NAME, "machine")).select_by_visible_text("NVIDIA H200")
    Select(form.find_element(By.NAME, "direction")).select_by_visible_text("forward")
    form.find_element(By.NAME, "words").send_keys("na2d K 13x13")
    wait(browser, "document.querySelectorAll('#results-table tbody tr').length < 20")
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#results-table tbody tr")]
    assert rows and all("256x256x8x64 K 13x13" in row and " forward " in row for row in rows)
    assert any("natten-mlx" in row for row in rows) and any("flex_attention" in row for row in rows)
    browser.find_element(By.XPATH, "//th/button[starts-with(., 'milliseconds')]").click()
    times = browser.execute_script(
        "return [...document.querySelectorAll('#results-table td.time')].map(t => +t.textContent)"
    )
    assert times == sorted(times) and len(times) == len(rows)
    assert not errors(browser)
