"""The report page in a headless Chromium: on a desktop, on a phone, in dark mode, by keyboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chrome import BROWSER, DRIVER, Chrome, open_chrome, until
from PIL import Image
from report_support import DATE, MODELS, make_scenes, measure, read_measured
from selenium.webdriver.common.keys import Keys

from swag_models.recipe.evaluation.report.collect import write_report

# set to docs/report.png to take the screenshot in the documentation again
SCREENSHOT = os.environ.get("SWAG_MODELS_REPORT_SCREENSHOT")
ROOT = Path(__file__).parents[4]
HOSTILE_NAME = "<i>\"it's\" & </i><script>document.title = 'hacked'</script>"
# WCAG contrast ratio of every visible text: [[start of the element's HTML, ratio], ...]
CONTRAST = """
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const findBackground = element => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
};
const hasText = element => [...element.childNodes].some(
  node => node.nodeType === 3 && node.textContent.trim()
);
return [...document.querySelectorAll('body *')].filter(
  element => element.checkVisibility() && hasText(element)
).map(element => {
  const style = getComputedStyle(element);
  const colour = parse(element instanceof SVGElement ? style.fill : style.color);
  const values = [luminance(colour), luminance(findBackground(element))];
  const [dim, bright] = values.sort((a, b) => a - b);
  return [element.outerHTML.slice(0, 80), (bright + 0.05) / (dim + 0.05)];
})"""

pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
    ),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    if SCREENSHOT:
        return measure(root / "report", *make_scenes(root, 30), shots=(1, 5, 10, None))
    return measure(root / "report", *make_scenes(root))


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_chrome(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


def open_page(chrome: Chrome, page: Path, width: int = 1280, dark: bool = False) -> Chrome:
    chrome.resize(width, 900, dark)
    chrome.driver.get(page.as_uri())
    return chrome


@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_complete_and_fits(chrome: Chrome, report: Path, width: int) -> None:
    chrome.driver.get_log("browser")
    page = open_page(chrome, report, width)
    assert page.run("return document.documentElement.scrollWidth") <= width
    titles = [element.text for element in page.find("h2")]
    assert titles == ["Accuracy", "With few labels", "Calibration", "Errors", "How it was made"]
    assert [element.text for element in page.find("nav a")] == titles
    assert [element.text for element in page.find("h1, .model h4")] == [
        "Transfer evaluation",
        *MODELS,
    ]
    images = page.run(
        "return [...document.images].map(each => [each.naturalWidth, each.offsetWidth, each.alt])"
    )
    assert len(images) > 20
    assert all(real > 0 and shown > 0 and words for real, shown, words in images)
    boxes = page.run(
        "return [...document.querySelectorAll('svg, table, .model')]"
        ".map(each => each.getBoundingClientRect())"
    )
    assert len(boxes) >= 3 + 2 + 2
    assert min(box["height"] for box in boxes) > 100
    assert (
        page.run(
            "return document.querySelectorAll('th:not([scope]), table:not(:has(caption))').length"
        )
        == 0
    )
    names = page.run("return [...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(names) == len(set(names))
    assert chrome.driver.get_log("browser") == []


def test_page_requests_nothing_else(chrome: Chrome, report: Path) -> None:
    chrome.read_requests()
    page = open_page(chrome, report)
    assert [url for url in page.read_requests() if not url.startswith("data:")] == [report.as_uri()]
    names = "['src', 'href', 'xlink:href', 'srcset', 'style']"
    script = (
        "return [...document.querySelectorAll('*')]"
        f".flatMap(each => {names}.map(name => each.getAttribute(name)))"
    )
    links = [link for link in page.run(script) if link and not link.startswith(("data:", "#"))]
    assert len(links) > 100  # most of them styles of plots
    assert [
        link for link in links if "//" in link or ("url(" in link and "url(#" not in link)
    ] == []
    assert page.find("script, iframe, object") == []


def test_text_has_enough_contrast_in_light_and_dark_mode(
    chrome: Chrome, report: Path, tmp_path: Path
) -> None:
    evaluations, probes = read_measured(report.parent)
    published = [
        replace(evaluation, published=evaluation.top1.value + 1) for evaluation in evaluations
    ]
    path = write_report(tmp_path, published, probes, date=DATE)
    for dark in (False, True):
        page = open_page(chrome, path, dark=dark)
        assert page.find(".warning")
        assert page.find("svg text")
        contrasts = page.run(CONTRAST)
        assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
        assert len(contrasts) > 100
        ground = page.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 150) == dark


def test_hostile_names_are_shown_as_text(chrome: Chrome, report: Path, tmp_path: Path) -> None:
    evaluations, probes = read_measured(report.parent)
    renamed = [
        replace(
            evaluation,
            model=f"{number} {HOSTILE_NAME}",
            classes=tuple(f"{name} {HOSTILE_NAME}" for name in evaluation.classes),
            facts={**evaluation.facts, "name": HOSTILE_NAME},
            records=tuple(
                record._replace(name=f"{record.name}{HOSTILE_NAME}")
                for record in evaluation.records
            ),
        )
        for number, evaluation in enumerate(evaluations)
    ]
    renamed_probes = [
        replace(probe, model=f"{MODELS.index(probe.model)} {HOSTILE_NAME}") for probe in probes
    ]
    write_report(
        tmp_path,
        renamed,
        renamed_probes,
        date=HOSTILE_NAME,
        load_image=lambda _, record: (
            Image.new("RGB", (40, 30), "red") if record.probability > 0.2 else None
        ),
        origins={HOSTILE_NAME: HOSTILE_NAME},
    )
    page = open_page(chrome, tmp_path / "index.html", 390)
    assert page.driver.title == "Transfer evaluation"
    assert page.find("i, script") == []
    assert [element.text for element in page.find(".model h4")] == [
        evaluation.model for evaluation in renamed
    ]
    assert page.find(".model li p b")[0].text.endswith(HOSTILE_NAME)
    assert all(
        HOSTILE_NAME in text
        for text in page.run("return [...document.images].map(image => image.alt)")
    )
    assert page.run("return document.documentElement.scrollWidth") <= 390


def test_wide_table_scrolls_by_keyboard(chrome: Chrome, report: Path) -> None:
    page = open_page(chrome, report, 390)
    for _ in range(len(page.find("nav a")) + 1):
        page.press(Keys.TAB)
    assert (
        page.run("return document.activeElement.getAttribute('aria-label')")
        == "In percent, with 95% intervals."
    )
    assert page.run("return parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    page.press(*[Keys.ARROW_RIGHT] * 3)
    until(lambda: page.run("return document.activeElement.scrollLeft") > 0, "the table to scroll")
    left = page.run("return document.querySelector('tbody th').getBoundingClientRect().left")
    assert 0 <= left < 30  # the column of models stays in view


def test_screenshot_for_the_documentation(chrome: Chrome, report: Path, tmp_path: Path) -> None:
    path = ROOT / SCREENSHOT if SCREENSHOT else tmp_path / "report.png"
    page = open_page(chrome, report)
    page.save_screenshot(path)
    height = page.run("return document.querySelector('#calibration').offsetTop")
    with Image.open(path) as screenshot:
        assert screenshot.width > 1200
        top = screenshot.convert("RGB").crop((0, 0, screenshot.width, height))
    top.save(path, optimize=True)
    assert len(top.resize((50, 50)).getcolors(2500) or []) > 50
