"""The report in a real browser: nothing wider than a phone, every picture loaded, no request, no complaint."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from m4oe_ds.report.html import render
from tests.integration import browser
from tests.unit.report.test_patient_pages import GROUP, PLACE
from tests.unit.report.test_patient_pages import run as of_two_sides
from tests.unit.report.test_sections import filled

pytestmark = pytest.mark.integration
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
# what reaches beyond the window without a box of its own that scrolls
OVERFLOW = """[...document.querySelectorAll('main *')].filter(e => {
  if (e.closest('.scroll') || e.closest('pre') || !e.getClientRects().length) return false;
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 0.5 || box.left < -0.5;
}).map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40))"""
IMAGES = "[...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 0, i.getBoundingClientRect().width])"
SMALL_TEXT = """[...document.querySelectorAll('main *')]
  .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
  .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))"""
# WCAG contrast of every text with the nearest opaque background
CONTRAST = """(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const f = [r, g, b].map(v => linear(v / 255));
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2];
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length)
    .map(e => {
      const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)];
    })
    .filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(filled(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    program = browser.find()
    if program is None:
        pytest.skip(f"no browser here; install one of {', '.join(browser.NAMES)}")
    with browser.page(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("size", SIZES)
def test_the_report_in_a_browser(report: Path, page: browser.Page, size: str) -> None:
    width, height = SIZES[size]
    page.open(report, width, height, phone=size == "phone")
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOW) == []
    images = page.evaluate(IMAGES)
    assert len(images) >= 15
    assert all(alt and loaded and shown > 0 for alt, loaded, shown in images), images
    assert page.evaluate(SMALL_TEXT) == []
    assert page.evaluate(CONTRAST) == []
    assert page.requests == [report.resolve().as_uri()]  # itself, and nothing else
    assert page.problems == []


def test_links_lead_somewhere_and_everything_can_be_reached_by_keyboard(report: Path, page: browser.Page) -> None:
    page.open(report, *SIZES["desktop"])
    links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    inside = [link for link in links if link.startswith("#")]
    assert page.evaluate(f"{inside}.filter(link => !document.querySelector(link)).length") == 0
    beside = [link for link in links if not link.startswith(("#", "data:"))]
    assert beside
    assert all((report.parent / link).is_file() for link in beside)
    assert page.evaluate("document.querySelectorAll('nav a').length") >= 8
    # a box that scrolls takes the focus, and says what it is
    assert (
        page.evaluate("[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex !== 0 || !e.ariaLabel).length")
        == 0
    )
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_the_way_back_to_the_top_is_there_where_a_page_is_long(report: Path, page: browser.Page) -> None:
    shown = "getComputedStyle(document.querySelector('.top')).display !== 'none'"
    page.open(report, *SIZES["phone"], phone=True)
    assert page.evaluate(shown) is True
    page.open(report, *SIZES["desktop"])
    assert page.evaluate(shown) is False


def test_a_wide_page_is_used(report: Path, page: browser.Page) -> None:
    page.open(report, *SIZES["desktop"])
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('figure img')].map(i => i.getBoundingClientRect().right))"
    )
    assert widest > 1000


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = of_two_sides(tmp_path_factory.mktemp("pages") / "run")
    render(folder)
    return folder / "patients" / f"{GROUP}.html"


@pytest.mark.parametrize("size", SIZES)
def test_a_page_of_a_patient_in_a_browser(patient: Path, page: browser.Page, size: str) -> None:
    width, height = SIZES[size]
    page.open(patient, width, height, phone=size == "phone")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOW) == []
    assert all(alt and loaded for alt, loaded, _ in page.evaluate(IMAGES))
    assert page.evaluate(SMALL_TEXT) == []
    assert page.evaluate(CONTRAST) == []
    assert page.requests == [patient.resolve().as_uri()]
    assert page.problems == []


def test_overlays_are_faded_chosen_and_switched_off(patient: Path, page: browser.Page) -> None:
    page.open(patient, *SIZES["desktop"])
    seen = "[...document.querySelectorAll('.over')].filter(e => e.getClientRects().length).map(e => e.dataset.task)"
    opacity = "getComputedStyle(document.querySelector('.over:not([hidden])')).opacity"
    change = "((id, value) => {{ const e = document.getElementById(id); e.{0} = value; "
    change += "e.dispatchEvent(new Event('input')); }})"
    assert set(page.evaluate(seen)) == {"0"}
    assert float(page.evaluate(opacity)) == pytest.approx(0.6)
    page.evaluate(change.format("value") + "('opacity', 25)")
    assert float(page.evaluate(opacity)) == pytest.approx(0.25)
    page.evaluate(change.format("value") + "('task', '3')")
    assert set(page.evaluate(seen)) == {"3"}
    page.evaluate(change.format("value") + "('task', '')")
    assert page.evaluate(seen) == []
    outlined = "[...document.querySelectorAll('ellipse')].filter(e => e.getClientRects().length).length"
    assert page.evaluate(outlined) == 1
    page.evaluate(change.format("checked") + "('planted', false)")
    assert page.evaluate(outlined) == 0


def test_an_outline_lies_on_its_view(patient: Path, page: browser.Page) -> None:
    page.open(patient, *SIZES["desktop"])
    view, mark = page.evaluate(
        "[document.querySelector('.stack'), document.querySelector('ellipse')].map(e => e.getBoundingClientRect())"
        ".map(b => [b.left, b.top, b.width, b.height])"
    )
    height = view[3] - 6.4  # without the line below the view
    assert mark[0] + mark[2] / 2 == pytest.approx(view[0] + PLACE["column"] * view[2], abs=1)
    assert mark[1] + mark[3] / 2 == pytest.approx(view[1] + PLACE["row"] * height, abs=2)
    assert mark[2] == pytest.approx(2 * PLACE["width"] * view[2], abs=4)


def test_the_browser_notices_what_these_tests_look_for(page: browser.Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><body><main>"
        "<div style='width: 900px; color: #aaa'>wide</div>"
        "<img alt=x src='missing.png'><script>console.error('oh')</script></main>"
    )
    page.open(bad, *SIZES["phone"], phone=True)
    assert page.evaluate("document.documentElement.scrollWidth") > 390
    assert len(page.evaluate(CONTRAST)) == 1
    assert page.evaluate(IMAGES)[0][1] is False
    assert any(address.endswith("missing.png") for address in page.requests)
    assert any("oh" in problem for problem in page.problems)
