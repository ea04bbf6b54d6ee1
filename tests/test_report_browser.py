"""The page in a real browser: drawn, quiet, alone, within the screen, dark where the reader is."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_content as made
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from normwise.report import page

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}: apt-get install chromium"),
]


class Visit:
    """A page opened from disk, with everything it complained of or asked for."""

    def __init__(self, shown: Page, path: Path) -> None:
        self.page, self.said, self.asked = shown, [], []
        shown.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        shown.on("pageerror", lambda error: self.said.append(str(error)))
        shown.on("dialog", self._refuse)
        shown.on("request", lambda request: self.asked.append(request.url))
        shown.goto(path.as_uri())

    def _refuse(self, dialog: Dialog) -> None:
        self.said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def unfold(self) -> None:
        """Opens every detail and waits until what is in it is drawn."""
        self.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        self.page.wait_for_function(
            "[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg.main-svg'))"
        )

    def strangers(self) -> list[str]:
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    found = {name: folder / f"{name}.html" for name in ("content", "hostile", "unfinished", "diverged", "bare")}
    for name, path in found.items():
        page.write(getattr(made, name)(), path)
    page.write(lopsided(), folder / "lopsided.html")
    return found | {"lopsided": folder / "lopsided.html"}


def lopsided() -> dict[str, Any]:
    """Two arms very far apart: the band stands at the edge of its panel."""
    content = made.bare()
    cell = content["verdict"]["per_batch_size"][0]
    cell["arms"] = [cell["arms"][0], cell["arms"][5]]
    cell["arms"][1]["difference"] = {"mean": -0.28, "low": -0.37, "high": -0.19}
    return content


@pytest.fixture
def visit(browser: Browser, paths: dict[str, Path]) -> Iterator[Any]:
    contexts = []

    def go(name: str = "content", width: int = 1280, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        return Visit(context.new_page(), paths[name])

    yield go
    for context in contexts:
        context.close()


def luminance(color: str) -> float:
    red, green, blue = (int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize(
    ("name", "width", "plots"),
    [
        ("content", 1280, 19),
        ("content", 390, 19),
        ("hostile", 390, 19),
        ("unfinished", 390, 6),
        ("diverged", 1280, 19),
        ("bare", 390, 9),
    ],
)
def test_the_page_is_drawn_without_a_word_and_without_a_network(visit: Any, name: str, width: int, plots: int) -> None:
    opened = visit(name, width)
    opened.unfold()
    assert opened.said == []
    assert opened.strangers() == []
    drawn = "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.scatter')).length"
    assert opened.page.evaluate(drawn) == plots
    assert opened.page.locator(".fallback").count() == 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width


def test_the_main_figure_is_drawn_when_the_page_has_loaded(visit: Any) -> None:
    panels = "[...document.querySelectorAll('[data-figure=differences]')]"
    counts = visit().page.evaluate(f"{panels}.map(p => p.querySelectorAll('.scatter').length)")
    assert counts == [11, 11]


CUT = """[...document.querySelectorAll('.plot')].flatMap(place => {
    const frame = place.getBoundingClientRect();
    const outside = (box) => box.width && (box.left < frame.left - 2 || box.right > frame.right + 2 ||
        box.top < frame.top - 2 || box.bottom > frame.bottom + 2);
    return [...place.querySelectorAll('svg text')].filter(text => outside(text.getBoundingClientRect()))
        .map(text => `${place.dataset.figure}: ${text.textContent}`);
})"""
CLASHES = """[...document.querySelectorAll('.plot')].flatMap(place => {
    const texts = [...place.querySelectorAll('.annotation-text, .xtick text, .ytick text')];
    const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
    const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1 ||
        a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
    return boxes.flatMap(([name, box], i) => boxes.slice(i + 1).filter(([, other]) => !apart(box, other))
        .map(([other]) => `${place.dataset.figure}: ${name} / ${other}`));
})"""


@pytest.mark.parametrize(("name", "width"), [("content", 1280), ("content", 390), ("lopsided", 390)])
def test_no_label_of_a_figure_is_cut_off_or_lies_on_another(visit: Any, name: str, width: int) -> None:
    opened = visit(name, width)
    opened.unfold()
    assert opened.page.locator(".plot .annotation-text").count() > 10
    assert opened.page.evaluate(CUT) == []
    assert opened.page.evaluate(CLASHES) == []


def test_a_dark_reader_gets_a_dark_page_and_light_figures_turn_with_it(visit: Any) -> None:
    opened = visit(color_scheme="dark")
    style = "getComputedStyle(document.body)"
    assert luminance(opened.page.evaluate(f"{style}.backgroundColor")) < 0.15
    assert luminance(opened.page.evaluate(f"{style}.color")) > 0.8
    label = "getComputedStyle(document.querySelector('.plot .annotation-text')).fill"
    assert luminance(opened.page.evaluate(label)) > 0.8
    opened.page.emulate_media(color_scheme="light")
    opened.page.wait_for_function(f"{label} === 'rgb(27, 31, 36)'")
    assert luminance(opened.page.evaluate(f"{style}.backgroundColor")) > 0.9


def test_the_first_column_stays_while_the_table_scrolls(visit: Any) -> None:
    opened = visit(width=390)
    left = "document.querySelector('tbody th').getBoundingClientRect().left"
    before = opened.page.evaluate(left)
    opened.page.evaluate("document.querySelector('.scroll').scrollLeft = 200")
    assert opened.page.evaluate("document.querySelector('.scroll').scrollLeft") == 200
    assert opened.page.evaluate(left) == before


def test_a_command_is_copied_or_at_least_selected(visit: Any) -> None:
    opened = visit()
    opened.page.locator("button[data-copy=swap]").click()
    opened.page.wait_for_function("document.getElementById('status').textContent !== ''")
    assert opened.page.evaluate("getSelection().toString()") == made.content()["config"]["next_step"]


def test_hovering_shows_an_arm_s_numbers(visit: Any) -> None:
    opened = visit()
    opened.page.locator("[data-figure=differences] .scatter .point").nth(1).hover(force=True)
    opened.page.wait_for_selector(".hovertext")
    assert "n 16" in opened.page.locator(".hovertext").first.text_content()


def test_without_javascript_the_numbers_are_there(visit: Any) -> None:
    opened = visit(java_script_enabled=False)
    assert "instance \u22120.6" in opened.page.locator(".fallback").nth(1).text_content()
    assert opened.page.locator("noscript").first.is_visible()


def test_printing_unfolds_everything_in_light_colours(visit: Any) -> None:
    opened = visit(color_scheme="dark")
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details:not([open])").count() == 0
    label = "getComputedStyle(document.querySelector('.plot .annotation-text')).fill"
    assert opened.page.evaluate(label) == "rgb(27, 31, 36)"
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator("details[open]").count() == 0
    assert luminance(opened.page.evaluate(label)) > 0.8
