"""The page of an audit in a headless Chromium: it shows, filters and sorts, wide and on a phone."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from playwright.sync_api import Browser, expect, sync_playwright

import verify
from lrp_rules import Epsilon, attach, composites
from tests.lrp_rules.networks import IMAGE, prepared, residual

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.browser

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """As that of the benchmark's report."""
    program = os.environ.get("BENCH_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine; install one, or name it in BENCH_BROWSER")
    with sync_playwright() as playwright:
        expect.set_options(timeout=30_000)
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page(width: int, browser: Browser, tmp_path: Path) -> None:
    rules = composites.EpsilonPlus()
    wrong = composites.MixedComposite([composites.NameMapComposite({"7": Epsilon(1e-3)}), rules])
    model, x = prepared(residual, constants=True), torch.randn(IMAGE, dtype=torch.float64)
    found = verify.audit(model, x, rules, pipeline=lambda model: attach(model, wrong))
    found.html(tmp_path / "audit.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
    page.goto((tmp_path / "audit.html").as_uri())
    shown = page.locator("#rows tr.row:visible")
    expect(shown).to_have_count(len(found.rows))
    page.get_by_label("only what did not hold").check()
    expect(shown).to_have_count(1)
    expect(shown).to_contain_text("Epsilon with a stabilizer of 0.001")
    page.get_by_label("only what did not hold").uncheck()
    page.get_by_label("Find").fill("4.relu relu")
    expect(shown).to_have_count(2)
    page.locator("svg a").first.click()  # a step of the picture leads to its row, also to one that was filtered out
    expect(page.locator("tr:target")).to_contain_text("Linear")
    details = page.locator("tr.detail:visible")  # and shows its entries
    expect(details).to_have_count(1)
    expect(details.locator("table.entries tr")).to_have_count(1 + len(found.rows[0].entries))
    expect(details).to_contain_text("Largest ratio")
    page.locator("tr:target").get_by_role("button").click()
    expect(details).to_have_count(0)
    page.locator("tr:target").get_by_role("button").press("Enter")  # the keyboard does, too
    expect(details).to_have_count(1)
    expect(shown).to_have_count(len(found.rows))
    page.get_by_role("button", name="R in", exact=True).click()
    values = [float(v or 0) for v in page.locator("#rows tr.row > td:nth-child(4)").all_inner_texts()]
    assert values == sorted(values)
    # nothing of the page is wider than the window, but what scrolls by itself
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
