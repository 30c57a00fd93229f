"""A report in a real browser, offline: it fits, it prints, and its numbers download."""

import csv
import io
import re

import numpy as np
import pytest
from pages import MATRIX, needs_browser
from reported import SCENE, count, made
from test_viz import HOSTILE

from mechvlm import viz
from mechvlm.report import report

pytestmark = needs_browser

SHOWN = ("integrated_gradients", "logit_lens", "knockout_windows", "attention_patterns")
SHOWN += ("freeze", "token_ablation", "discover")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "whole.html"
    results = [made(analysis) for analysis in SHOWN]
    report(results, path, prompt=count(), answer=HOSTILE[1], title=HOSTILE[0])
    return path.read_text("utf-8")


@MATRIX
def test_a_report_fits_and_every_figure_is_drawn(whole, visit, theme, width):
    made = visit(whole, theme=theme, width=width)
    made.page.wait_for_timeout(300)
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width
    assert made.page.locator("h1").inner_text() == HOSTILE[0]
    assert HOSTILE[1] in made.page.locator(".asked dd").last.inner_text()
    heights = made.page.evaluate(
        "Array.from(document.querySelectorAll('.mv-plot'), p => p.clientHeight)"
    )
    assert len(heights) == 9
    assert min(heights) > 60


def test_a_table_downloads_as_csv_from_disk(visit, tmp_path):
    heat = made("activation_patching")
    page = report(heat, tmp_path / "x.html", image=SCENE.image).read_text("utf-8")
    opened = visit(page).page
    with opened.expect_download() as waiting:
        opened.locator("a.mv-csv").click()
    assert waiting.value.suggested_filename == "activation_patching.csv"
    text = waiting.value.path().read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    values = np.array([row["recovery"] for row in rows], dtype=heat.dtype)
    np.testing.assert_array_equal(values.reshape(heat.shape), heat.values)


def test_without_scripts_the_table_downloads_packed(browser, tmp_path):
    page = report(made("freeze"), tmp_path / "x.html")
    quiet = browser.new_context(offline=True, java_script_enabled=False)
    opened = quiet.new_page()
    opened.goto(page.as_uri())
    with opened.expect_download() as waiting:
        opened.locator("a.mv-csv").first.click()
    assert waiting.value.suggested_filename == "frozen_image_source.csv.gz"
    assert waiting.value.path().read_bytes()[:2] == b"\x1f\x8b"
    quiet.close()


LOOKS = """() => Array.from(document.querySelectorAll(".mv-plot *"), one => {
  const { color, fontSize, fontWeight, padding } = getComputedStyle(one);
  return [one.tagName, color, fontSize, fontWeight, padding].join(" ");
})"""


def test_a_figure_looks_in_a_report_as_it_does_alone(visit, tmp_path):
    """The report's own tables must not dress those of the lens."""
    figure = viz.lens(made("logit_lens"), SCENE.image)
    within = report(figure, tmp_path / "x.html").read_text("utf-8")
    alone, inside = (
        set(visit(page).page.evaluate(LOOKS)) for page in (figure.html, within)
    )
    assert any(look.startswith("TH ") for look in alone)
    assert inside == alone


def test_on_paper_it_is_light_without_controls(whole, visit):
    made = visit(whole, theme="dark", width=1000).page
    made.emulate_media(media="print")
    for control in (".downloads", "nav", ".mv-read", ".mv-slide"):
        found = made.locator(control)
        assert found.count()
        assert not any(found.nth(i).is_visible() for i in range(found.count())), control
    paper = "getComputedStyle(document.querySelector('.mv-report')).backgroundColor"
    assert made.evaluate(paper) == "rgb(255, 255, 255)"
    pdf = made.pdf(format="A4")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
