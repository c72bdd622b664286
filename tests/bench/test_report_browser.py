"""The report's page in a real browser: it shows, filters, sorts, folds, fits a phone, and asks for nothing."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bench import table
from bench.report_data import load
from bench.report_page import context, html

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.browser

#: As root, without a screen, and asking nothing of any server.
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SHOWN = "#table tbody tr:visible"
_HOSTILE = "<img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium with an empty profile. BENCH_BROWSER names one, and thereby demands it."""
    program = os.environ.get("BENCH_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine; install one, or name it in BENCH_BROWSER")
    with sync_playwright() as playwright:
        expect.set_options(timeout=30_000)  # milliseconds: a busy machine is no mistake
        chromium = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def file(example_run: Path, tmp_path: Path) -> str:
    """The page of two runs, the second with hostile names, as an address."""
    run = table.read(example_run)
    other = run.table.copy()
    other.loc[other.rule == "ZPlus()", ["rule", "code"]] = _HOSTILE
    table.write(tmp_path / "other", other, run.samples, run.facts | {"run_id": "other", "machine": _HOSTILE})
    settings = load([example_run, tmp_path / "other"])
    path = tmp_path / "report.html"
    path.write_text(html(settings, context(settings, ["lrp-bench", "report"])), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Browser, file: str) -> Iterator[Page]:
    """The page on a desk. Whatever it complains of, or asks for, is a failure."""
    complaints: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file)
    yield tab
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [file]
    assert tab.evaluate("window.broken") is None
    tab.close()


def texts(page: Page, column: int) -> list[str]:
    """What the shown rows say in a column."""
    return page.locator(f"{_SHOWN} td:nth-child({column})").all_inner_texts()


def column(page: Page, label: str) -> int:
    """The number of a column of the table of all measurements."""
    return page.locator("#table thead th").all_inner_texts().index(label) + 1


def test_shows_all_parts(page: Page) -> None:
    expect(page).to_have_title("How fast are the LRP rules?")
    assert page.locator("html").get_attribute("lang") == "en"
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for name in ("Machines", "Results", "Side by side", "All measurements", "How to read it", "Make it again"):
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    expect(page.locator("svg.panel:visible")).to_have_count(1)
    expect(page.locator(_SHOWN)).to_have_count(38)


def test_text_is_filtered_word_by_word(page: Page) -> None:
    page.get_by_label("Filter").fill("conv2d ALPHABETA")
    expect(page.locator("#count")).to_have_text("4 of 38 rows")
    assert set(texts(page, column(page, "rule"))) == {"AlphaBeta(2, 1)"}
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#count")).to_have_text("38 rows")


def test_menus_filter(page: Page) -> None:
    page.locator("select[data-column=verdict]").select_option("ambiguous")
    expect(page.locator("#count")).to_have_text("2 of 38 rows")
    page.locator("select[data-column=setting]").select_option("run1-cpu-float32-2")
    expect(page.locator(_SHOWN)).to_have_count(1)
    assert texts(page, column(page, "rule")) == ["Flat()"]


def test_numbers_are_sorted_with_what_is_missing_last(page: Page) -> None:
    place = column(page, "ratio")
    head = page.locator(f"#table thead th:nth-child({place})")
    for order in ("ascending", "descending"):
        head.get_by_role("button").press("Enter")  # by keyboard
        assert head.get_attribute("aria-sort") == order
        shown = texts(page, place)
        numbers = [float(text.rstrip("\N{MULTIPLICATION SIGN}")) for text in shown if text != "—"]
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert shown[len(numbers) :] == ["—"] * 8


def test_sorting_by_text_keeps_other_columns_unsorted(page: Page) -> None:
    page.locator("#table thead").get_by_role("button", name="rule").click()
    shown = texts(page, column(page, "rule"))
    assert shown == sorted(shown, key=str.lower)
    assert page.locator("#table thead th[aria-sort=ascending]").count() == 1


def test_a_row_unfolds_its_code_and_samples(page: Page) -> None:
    page.get_by_label("Filter").fill("run1 vgg16 lrp_rules gradient")
    button = page.locator(_SHOWN).get_by_role("button")
    button.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    detail = page.locator("#table .detail")
    expect(detail).to_contain_text("from lrp_rules import ZPlus")
    expect(detail.locator(".strip circle")).to_have_count(50)
    button.press("Enter")
    expect(detail).to_have_count(0)


def test_hostile_code_is_shown_and_not_run(page: Page) -> None:
    page.get_by_label("Filter").fill("run2 onerror conv2d zennit gradient")
    page.locator(_SHOWN).get_by_role("button").first.click()
    expect(page.locator("#table .detail pre").first).to_have_text(_HOSTILE)


def test_a_row_without_a_time_says_why(page: Page) -> None:
    page.get_by_label("Filter").fill("run1 captum disagrees")
    assert texts(page, column(page, "time")) == ["—"]
    page.locator(_SHOWN).get_by_role("button").click()
    expect(page.locator("#table .detail")).to_contain_text("got 0.41, expected 0.52")
    assert not re.search(r"\d (s|ms|µs|ns)\b", page.locator("#table .detail").inner_text())
    assert page.locator("#table .detail circle").count() == 0


def test_one_setting_is_shown_at_a_time(page: Page) -> None:
    expect(page.locator("section.setting:visible")).to_have_count(1)
    page.get_by_role("radio", name="2. ").check()
    expect(page.locator("#run2-cpu-float32-2")).to_be_visible()
    expect(page.locator("#run1-cpu-float32-2")).to_be_hidden()


def test_the_heat_map_shows_another_subject(page: Page) -> None:
    part = page.locator(".heats:visible")
    part.get_by_label("Subject").select_option("captum")
    expect(part.locator(".heat:visible h5")).to_have_text(["captum, compute-bound"])


def test_a_cell_of_the_heat_map_leads_to_its_rows(page: Page) -> None:
    page.locator(".heatmap:visible").get_by_role("link", name="1.62").click()
    expect(page.locator("#count")).to_have_text("1 of 38 rows")
    assert texts(page, column(page, "rule")) == ["ZPlus()"]


def test_a_rule_unfolds_its_cells(page: Page) -> None:
    button = page.locator(".dots:visible").get_by_role("button", name="ZPlus()")
    part = page.locator(".dots .part:visible")
    expect(part).to_have_count(0)
    button.press("Enter")
    expect(part).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("details").first.click()
    page.locator(_SHOWN).get_by_role("button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    # nothing but what scrolls by itself sticks out
    outside = """[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > 361
        && !one.closest('.scroll:not(.cells), .sr, .defs, svg')).map((one) => one.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside) == []


def test_dark_is_dark(page: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    assert (light, page.evaluate(colour)) == ("rgb(255, 255, 255)", "rgb(20, 24, 28)")


def test_print_leaves_the_menus_out(page: Page) -> None:
    page.emulate_media(media="print")
    expect(page.locator("form:visible")).to_have_count(0)
    expect(page.locator("#table")).to_be_hidden()  # hundreds of rows
    page.emulate_media(media="screen")
    page.get_by_label("Filter").fill("vgg16")
    page.emulate_media(media="print")
    expect(page.locator("#table")).to_be_visible()


def test_without_scripts_everything_is_there(browser: Browser, file: str) -> None:
    tab = browser.new_context(java_script_enabled=False).new_page()
    tab.goto(file)
    assert tab.locator("section.setting:visible").count() == 2
    assert tab.locator("#table tbody tr:visible").count() == 38
    assert tab.locator(".part:visible").count() == 4
    tab.close()
