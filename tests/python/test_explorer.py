"""The explorer's page in a headless browser: its windows are the oracle's; mouse, keys and touch work."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import oracle
from browser import errors, resize, start, wait
from natten_mlx.cli import main

FIELDS = ("kernel_size", "dilation", "stride", "gna_stride")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from start()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("explorer") / "windows.html"
    assert main(["show", "--html", str(path)]) == 0
    text = path.read_text()
    assert "://" not in text  # nothing is fetched
    return path.as_uri()


def show(browser: Any, page: str, width: int = 1400, **lists: tuple[int, ...]) -> None:
    address = "&".join(f"{name}={','.join(str(int(v)) for v in values)}" for name, values in lists.items())
    resize(browser, width)
    browser.get("about:blank")
    browser.get(f"{page}#{address}")
    wait(browser, "document.documentElement.dataset.ready === 'yes'")


def cells(browser: Any, kind: str) -> set[int]:
    return set(
        browser.execute_script(f"return [...document.querySelectorAll('#grid .{kind}')].map(c => +c.dataset.index)")
    )


def said(browser: Any) -> str:
    return str(browser.execute_script("return document.getElementById('said').textContent"))


def random_axis(rng: random.Random) -> tuple[int, dict[str, int]]:
    kernel, dilation = rng.randint(1, 7), rng.randint(1, 3)
    kind = rng.choice(("plain", "is_causal", "is_circular"))
    axis = {"kernel_size": kernel, "dilation": dilation, "stride": 1, "gna_stride": 1}
    axis |= {"is_causal": kind == "is_causal", "is_circular": kind == "is_circular"}
    axis[rng.choice(("stride", "gna_stride"))] = rng.randint(1, kernel)
    if kind == "is_circular":  # dilation and gna_stride divide what they must
        unit = dilation * axis["gna_stride"]
        return -(-kernel * dilation // unit) * unit + unit * rng.randint(0, 3), axis
    return kernel * dilation + rng.randint(0, 9) if kind == "plain" else rng.randint(1, 20), axis


def test_windows_are_the_oracles(browser: Any, page: str) -> None:
    """Every token of 60 random axes, both directions, through the module that the page carries."""
    show(browser, page)
    rng = random.Random(0)
    for _ in range(60):
        length, axis = random_axis(rng)
        table = browser.execute_script(
            "return tableOf(arguments[0]).map(row => ({...row, keys: [...row.keys], attending: [...row.attending]}))",
            {"length": length, "query_start": 0, "rows": 0, **axis},
        )
        keys = [set(oracle.Axis(length, **axis).keys(query)) for query in range(length)]
        queries = range(0, length, axis["stride"])
        for token, row in enumerate(table):
            where = f"token {token} of {length}, {axis}"
            assert set(row["keys"]) == keys[token], where
            assert set(row["attending"]) == {query for query in queries if token in keys[query]}, where
            assert keys[row["leader"]] == keys[token] if not axis["is_causal"] else row["leader"] >= token, where


def test_refuses_what_the_library_refuses(browser: Any, page: str) -> None:
    import natten_mlx

    show(browser, page)
    rng = random.Random(1)
    verdicts = set()
    for _ in range(80):
        axis = {name: rng.randint(0, 4) for name in FIELDS}
        axis |= {"is_causal": rng.random() < 0.3, "is_circular": rng.random() < 0.3}
        length = rng.randint(1, 12)
        call = (1, length, 1, 1)
        try:
            natten_mlx.explain(call, call, call, **axis)
            legal = True
        except ValueError:
            legal = False
        drawn = browser.execute_script(
            "return tableOf(arguments[0]) !== null", {"length": length, "query_start": 0, "rows": 0, **axis}
        )
        assert drawn == legal, f"{length} tokens, {axis}"
        verdicts.add(legal)
    assert verdicts == {True, False}


def test_mouse_keyboard_and_call(browser: Any, page: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, page, shape=(9, 12), kernel_size=(3, 5), dilation=(1, 2), gna_stride=(3, 1))
    assert cells(browser, "query") == {4 * 12 + 6}
    grid = browser.find_element(By.ID, "grid")
    ActionChains(browser).move_to_element(grid.find_elements(By.CSS_SELECTOR, ".cell")[0]).perform()
    assert cells(browser, "query") == {0} and said(browser).startswith("Token (0, 0) attends 15 keys")
    assert cells(browser, "key") == {row * 12 + column for row in range(3) for column in (0, 2, 4, 6, 8)}
    assert cells(browser, "leader") == {12}
    grid.find_elements(By.CSS_SELECTOR, ".cell")[0].click()
    browser.execute_script("document.getElementById('grid').focus()")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP).perform()
    assert cells(browser, "query") == {12 + 1}
    ActionChains(browser).send_keys(Keys.END).perform()
    assert cells(browser, "query") == {12 + 11}

    kernel = browser.find_element(By.ID, "kernel_size-0")
    kernel.clear()
    kernel.send_keys("99")
    assert "kernel_size" in browser.find_element(By.ID, "problem").text
    assert not browser.find_element(By.ID, "view").is_displayed()
    kernel.clear()
    kernel.send_keys("5")
    call = browser.find_element(By.ID, "call").text
    assert "kernel_size=5, dilation=(1, 2), gna_stride=(3, 1))" in call
    result: dict[str, Any] = {}
    exec(call, result)
    assert result["out"].shape == (1, 9, 12, 4, 32)


@pytest.mark.parametrize("rank", [1, 2])
def test_span(browser: Any, page: str, rank: int) -> None:
    from selenium.webdriver.common.by import By

    lists = {"shape": (9, 12), "kernel_size": (3, 5), "is_circular": (0, 1), "query_start": (3, 10), "rows": (2, 2)}
    show(browser, page, **{name: values[-rank:] for name, values in lists.items()})
    needed = {8, 9, 10, 11, 0, 1}  # of queries 10 and 11 of the circular axis
    rows = range(2, 6) if rank == 2 else range(1)
    assert cells(browser, "needed") == {12 * row + column for row in rows for column in needed}
    assert "The span needs the keys" in said(browser)
    assert len(cells(browser, "attends")) == 2 * rank
    result: dict[str, Any] = {}
    exec(browser.find_element(By.ID, "call").text, result)
    assert result["out"].shape == (1, *lists["rows"][-rank:], 4, 32)
    assert result["key"].shape == (1, *(4, 6)[-rank:], 4, 32)


def test_planes(browser: Any, page: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, page, shape=(6, 5, 7), kernel_size=(3, 3, 3), is_causal=(1, 0, 0))
    assert said(browser).startswith("Token (3, 2, 3) attends 27 keys")
    browser.execute_script("const p = find('plane'); p.value = 4; p.dispatchEvent(new Event('input'))")
    assert not cells(browser, "key") and not cells(browser, "query") and len(cells(browser, "attends")) == 15
    browser.execute_script("document.getElementById('grid').focus()")
    ActionChains(browser).send_keys(Keys.PAGE_UP).perform()
    assert said(browser).startswith("Token (2, 2, 3)") and len(cells(browser, "key")) == 9


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("example", ["decoding", "gna_stride: shared windows", "circular axis", "video"])
def test_fits_the_screen_and_touch(browser: Any, page: str, width: int, example: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    show(browser, page, width)
    Select(browser.find_element(By.ID, "example")).select_by_visible_text(example)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cell = browser.find_elements(By.CSS_SELECTOR, "#grid .cell")[3]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    box = browser.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, b.y + 5]", cell
    )
    touch = [{"x": box[0], "y": box[1]}]
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": touch})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    wait(browser, "document.querySelector('#grid .query')?.dataset.index === '3'")
    assert not errors(browser)
    if os.environ.get("NATTEN_TEST_SCREENSHOTS"):  # a folder, to look at
        name = f"{example.split()[0].strip(':,')}-{width}.png"
        browser.save_screenshot(str(Path(os.environ["NATTEN_TEST_SCREENSHOTS"]) / name))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    assert main(["show", "--html", str(path), "--shape", "9,16", "-k", "3,5", "--causal"]) == 0
    assert '"shape": [9, 16], "kernel_size": [3, 5]' in path.read_text() and "wrote" in capsys.readouterr().out
    assert main(["show", "--html", str(path), "--shape", "16", "-k", "5", "--rows", "4", "--circular"]) == 0
    assert '"is_circular": [true], "query_start": [6], "rows": [4]' in path.read_text()
    capsys.readouterr()
    assert main(["show", "--html", str(path), "--shape", "9,16", "-k", "99"]) == 2
    assert "--kernel-size" in capsys.readouterr().err
    assert main(["show", "--html", str(path), "--shape", "9,16"]) == 2
    assert main(["show", "-k", "3"]) == 2
    assert main(["show", "--html", str(tmp_path / "nowhere" / "page.html")]) == 2
    path.unlink()
    for options, message in (
        (["--html", ""], "--html needs the name of a file"),
        (["--html", str(path), "--causal"], "--shape is required"),  # and is not left out of a page that has its own
        (["--html", str(path), "-d", "2"], "--shape is required"),
        (["--html", str(path), "--query", "3"], "--shape is required"),
        (["--html", str(path), "--png", str(tmp_path / "a.png"), "--shape", "9", "-k", "3"], "--png and --html"),
    ):
        capsys.readouterr()
        assert main(["show", *options]) == 2
        assert message in capsys.readouterr().err and not path.exists()
