"""Live pages in a real browser, offline: nothing fails, nothing leaves, hover reads."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from test_viz import HOSTILE, attention, every_figure, knockout, patching

from mechvlm import report, viz
from mechvlm.report import Section

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)"
)


class Visit:
    """One page, opened offline, and what it did that it should not."""

    def __init__(self, context, page_file: Path):
        self.faults: list[str] = []
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(f"error {error}"))
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)
        self.page.on("dialog", lambda dialog: self.faults.append("dialog"))
        self.page.goto(page_file.as_uri())

    def _heard(self, message):
        if message.type == "error":
            self.faults.append(f"console {message.text}")

    def _asked(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"request {request.url}")

    def read_out(self) -> str:
        """Text of the first figure's read-out."""
        return self.page.locator(".mv-read").first.inner_text()


@pytest.fixture(scope="module")
def context() -> Iterator:
    """A browser without a network."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=BROWSER,
            # Without WebGL circuitsvis computes on the processor: sooner here.
            args=["--no-sandbox", "--disable-gpu", "--disable-software-rasterizer"],
        )
        yield browser.new_context(offline=True, viewport={"width": 1000, "height": 800})
        browser.close()


@pytest.fixture
def visit(context, tmp_path):
    """Open a figure's page; at the end it must have done nothing it should not."""
    visits = []

    def opened(page: str) -> Visit:
        file = tmp_path / f"page{len(visits)}.html"
        file.write_text(page, "utf-8")
        visits.append(Visit(context, file))
        return visits[-1]

    yield opened
    for made in visits:
        assert made.page.evaluate("window.ran") is None, "a token ran as script"
        assert made.faults == []
        made.page.close()


def test_hover_reads_a_cell_of_the_map(visit):
    page = visit(viz.heatmap(patching()).html).page
    box = page.locator("canvas.mv-cells").bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + box["height"] - 4)
    value = f"{patching().values[0, 0]:.3g}".replace("-", "\N{MINUS SIGN}")
    said = page.locator(".mv-read").inner_text()
    assert [part.strip() for part in said.split("·")] == [
        value, "layer 0", "position 0", HOSTILE[0], "bos"
    ]  # fmt: skip
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 4)
    assert "layer 2" in page.locator(".mv-read").inner_text()
    assert "image row" in page.locator(".mv-read").inner_text()
    page.mouse.move(2, 2)
    assert page.locator(".mv-read").inner_text().startswith("strongest")


def test_the_map_is_painted_in_the_colour_of_its_value(visit):
    plane = patching(2).isel(position=slice(0, 1)) * 0
    plane[1, 0] = 1.0
    page = visit(viz.heatmap(plane).html).page
    pixel = """y => {
      const c = document.querySelector('canvas.mv-cells');
      const pen = c.getContext('2d');
      return Array.from(pen.getImageData(5, y * c.height, 1, 1).data);
    }"""
    assert page.evaluate(pixel, 0.25) == [0x1B, 0x2A, 0x60, 255], "layer 1 is on top"
    assert page.evaluate(pixel, 0.75) == [0xF6, 0xF5, 0xF1, 255]


def test_arrow_keys_walk_the_map(visit):
    made = visit(viz.heatmap(patching()).html)
    made.page.locator(".mv-plot").focus()
    for _ in range(30):
        made.page.keyboard.press("ArrowLeft")
    made.page.keyboard.press("ArrowRight")
    assert "position 1" in [part.strip() for part in made.read_out().split("·")]


def test_hover_reads_all_lines_at_a_layer(visit):
    made = visit(viz.lines(knockout()).html)
    box = made.page.locator("path.mv-line").first.bounding_box()
    made.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    said = made.read_out().replace("\N{MINUS SIGN}", "-")
    assert "layer 1" in said
    assert "image→last -50" in said
    assert "</script> 2" in said


def with_intervals():
    lines = knockout()
    return lines.assign_coords(low=lines - 3, high=lines + 4)


def test_bands_are_drawn_and_read(visit):
    made = visit(viz.lines(with_intervals()).html)
    assert made.page.locator("path.mv-band").count() == 2
    box = made.page.locator("path.mv-line").first.bounding_box()
    made.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    said = made.read_out().replace("\N{MINUS SIGN}", "-")
    assert "image→last -50 (-53 to -46)" in said


def test_hover_reads_all_bars_of_a_condition(visit):
    made = visit(viz.bars(with_intervals()).html)
    assert made.page.locator("line.mv-whisker").count() == 6
    box = made.page.locator("rect.mv-bars").nth(2).bounding_box()
    made.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    said = made.read_out().replace("\N{MINUS SIGN}", "-")
    assert said.split("·")[0].strip() == "1"
    assert "image→last -50 (-53 to -46)" in said


def test_the_overlay_reads_its_cells_and_changes_its_layer(visit):
    figure = viz.overlay(patching(), Image.new("RGB", (64, 64), "white"))
    made = visit(figure.html)
    made.page.locator("input[type=range]").fill("1")
    box = made.page.locator("canvas.mv-big").bounding_box()
    made.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 3)
    said = made.read_out()
    value = f"{patching().values[1, 4]:.3g}".replace("-", "\N{MINUS SIGN}")
    for part in (value, "layer 1", "image row 0", "col 3", "position 4"):
        assert part in said
    made.page.locator("button.mv-thumb", has_text="2").click()
    assert "layer 2" in made.read_out()


def test_circuitsvis_shows_hostile_tokens_as_text(visit):
    made = visit(viz.attention(attention()).html)
    made.page.wait_for_selector(".mv-circuits .tokens button")
    texts = made.page.locator(".mv-circuits .tokens button").all_inner_texts()
    shown = [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts]
    assert shown[0] == HOSTILE[0]
    assert HOSTILE[1] in shown
    assert "<image>" in shown
    assert "image x16 (keys: sum, queries: mean)" in shown
    assert made.page.locator(".mv-circuits .tokens img").count() == 0
    made.page.locator(".mv-choose select").select_option(label="layer 5")
    made.page.wait_for_selector(".mv-circuits .tokens button")
    assert "layer 5" in made.read_out()


@pytest.mark.parametrize("width", [360, 1200])
def test_a_report_of_every_kind_works_and_fits(visit, width):
    figures = every_figure()
    sections = [Section(f"{HOSTILE[0]} {k}", "x", figure=f) for k, f in figures.items()]
    sections.append(Section("Again", figure=figures["attention"]))
    made = visit(report.page(HOSTILE[1], sections, lead=HOSTILE[3]))
    made.page.set_viewport_size({"width": width, "height": 800})
    made.page.wait_for_function("document.querySelectorAll('.tokens').length === 2")
    made.page.wait_for_timeout(200)
    assert made.page.locator("h1").inner_text() == HOSTILE[1]
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width
    assert made.page.locator(".mv-plot").count() == len(sections)
    heights = made.page.evaluate(
        "Array.from(document.querySelectorAll('.mv-plot'), p => p.clientHeight)"
    )
    assert min(heights) > 100


def test_the_notebook_form_shows_the_live_view_over_the_still(visit):
    html = viz.heatmap(patching())._repr_mimebundle_()["text/html"]
    made = visit(f"<!doctype html><meta charset=utf-8>{html}")
    inside = made.page.frame_locator("iframe")
    inside.locator("canvas.mv-cells").wait_for()
    assert "strongest" in inside.locator(".mv-read").inner_text()


def test_without_scripts_a_report_still_shows_the_still(context, tmp_path):
    page = report.page("x", [Section("Map", figure=viz.heatmap(patching()))])
    (tmp_path / "page.html").write_text(page, "utf-8")
    quiet = context.browser.new_context(offline=True, java_script_enabled=False)
    opened = quiet.new_page()
    opened.goto((tmp_path / "page.html").as_uri())
    assert opened.locator("noscript img").is_visible()
    quiet.close()
