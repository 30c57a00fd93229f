"""Live pages in a real browser, offline: nothing fails, nothing leaves, hover reads."""

import numpy as np
import pytest
import xarray as xr
from pages import MATRIX, fits, needs_browser, until
from PIL import Image
from test_viz import HOSTILE, attention, every_figure, knockout, patching

from mechvlm import viz
from mechvlm.report import Section, page
from mechvlm.viz import DARK, LIGHT

pytestmark = needs_browser


def test_hover_reads_a_cell_of_the_map(visit):
    made = visit(viz.heatmap(patching()).html)
    page = made.page
    box = page.locator("canvas.mv-cells").bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + box["height"] - 4)
    value = f"{patching().values[0, 0]:.3g}"
    assert made.parts() == [
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
    assert "position 1" in made.parts()


def test_hover_reads_all_lines_at_a_layer(visit):
    made = visit(viz.lines(knockout()).html)
    box = made.page.locator("path.mv-line").first.bounding_box()
    made.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    said = made.read_out()
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
    said = made.read_out()
    assert "image→last -50 (-53 to -46)" in said


def test_hover_reads_all_bars_of_a_condition(visit):
    made = visit(viz.bars(with_intervals()).html)
    assert made.page.locator("line.mv-whisker").count() == 6
    box = made.page.locator("rect.mv-bars").nth(1).bounding_box()
    made.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    said = made.read_out()
    assert said.split("·")[0].strip() == "1"
    assert "image→last -50 (-53 to -46)" in said


def test_arrow_keys_walk_the_layers_of_lines_and_the_conditions_of_bars(visit):
    made = visit(viz.lines(knockout()).html)
    made.page.locator(".mv-plot").focus()
    for _ in range(2):
        made.page.keyboard.press("ArrowRight")
    assert made.parts() == ["layer 1", "image→last -50", "</script> 2"]
    made = visit(viz.bars(knockout()).html)
    made.page.locator(".mv-plot").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        made.page.keyboard.press(key)
    assert made.parts() == ["1", "image→last -50", "</script> 2"]


def layered():
    """A 2 x 2 image that the layers read: nothing, its first cell, its last cell."""
    values = [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1]]
    return xr.DataArray(
        np.array(values, float),
        dims=("layer", "position"),
        coords={"layer": [4, 5, 6]},
        attrs={"grids": '[{"start": 0, "rows": 2, "cols": 2, "box": [0, 0, 64, 64]}]'},
    )


@pytest.mark.parametrize(
    ("theme", "ground", "veiled"),
    [(LIGHT, [0xFF, 0xFF, 0xFF], 0.5), (DARK, [0x15, 0x17, 0x1B], 0.5)],
    ids=["light", "dark"],
)
def test_the_slider_moves_the_overlay(visit, theme, ground, veiled):
    picture = Image.new("RGB", (64, 64), (120, 120, 120))
    made = visit(viz.overlay(layered(), picture).html, theme.name)
    until(
        made.page,
        "document.querySelector('canvas.mv-big').getContext('2d')"
        ".getImageData(9, 9, 1, 1).data[3] === 255",
    )
    pale = [120 * (1 - veiled) + part * veiled for part in ground]
    strong = {
        5: ((0.25, 0.25), theme.above[-1]),
        6: ((0.75, 0.75), theme.below[-1]),
    }
    for step, layer in ((1, 5), (2, 6), (0, 4)):
        made.page.locator("input[type=range]").fill(str(step))
        for at in ((0.25, 0.25), (0.75, 0.75), (0.75, 0.25)):
            wanted = pale
            if layer in strong and strong[layer][0] == at:
                colour = [int(strong[layer][1][i : i + 2], 16) for i in (1, 3, 5)]
                wanted = [0.9 * c + 0.1 * p for c, p in zip(colour, pale, strict=True)]
            found = made.pixel("canvas.mv-big", *at)
            np.testing.assert_allclose(found, [*wanted, 255], atol=3)
        assert f"layer {layer}" in made.parts()
        told = made.page.locator("input[type=range]").get_attribute("aria-valuetext")
        assert told == f"layer {layer}"
    made.page.locator("button.mv-thumb", has_text="image").click()
    assert made.pixel("canvas.mv-big", 0.25, 0.25) == [120, 120, 120, 255]


def test_the_overlay_reads_its_cells_and_changes_its_layer(visit):
    made = visit(viz.overlay(patching(), Image.new("RGB", (64, 64), "white")).html)
    page = made.page
    page.locator("input[type=range]").fill("1")
    box = page.locator("canvas.mv-big").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 3)
    value = f"{patching().values[1, 4]:.3g}"
    assert made.parts() == [value, "layer 1", "image row 0", "col 3", "position 4"]
    marked = page.locator(".mv-frame .mv-cell").bounding_box()
    assert marked["x"] == pytest.approx(box["x"] + 0.75 * box["width"], abs=4)
    page.locator("button.mv-thumb", has_text="2").click()
    assert "layer 2" in made.read_out()
    page.locator(".mv-frame").focus()
    page.locator("button.mv-thumb", has_text="0").press("Enter")
    page.locator(".mv-frame").focus()
    for key in [*["ArrowUp"] * 4, *["ArrowLeft"] * 4, "ArrowRight", "ArrowDown"]:
        page.keyboard.press(key)
    value = f"{patching().values[0, 6]:.3g}"
    assert made.parts() == [value, "layer 0", "image row 1", "col 1", "position 6"]


def test_every_kind_is_reached_by_tab_and_shows_it(visit):
    for kind, figure in every_figure().items():
        page = visit(figure.html).page
        page.keyboard.press("Tab")
        where = "(e => [e.tagName, getComputedStyle(e).outlineStyle])"
        tag, outline = page.evaluate(f"{where}(document.activeElement)")
        assert tag != "BODY", kind
        assert outline != "none", f"{kind}: what has the focus does not show it"
        plot = page.locator(".mv-plot")
        assert plot.get_attribute("aria-label") == figure.alt
        assert len(figure.alt) > 40


def test_names_of_many_lines_wrap_and_are_told_in_full_where_there_is_no_room(visit):
    names = [f"a long name of cut {i}" for i in range(8)]
    many = xr.DataArray(
        np.arange(16.0).reshape(8, 2), dims=("cut", "layer"), coords={"cut": names}
    )
    for figure in (viz.lines(many), viz.bars(many)):
        made = fits(visit, figure.html, "light", 400)
        told = made.page.locator(".mv-legend b")
        assert told.all_inner_texts() == names
        right = max(told.nth(i).bounding_box()["x"] for i in range(8))
        assert right < 400


@MATRIX
@pytest.mark.parametrize("kind", every_figure())
def test_every_kind_fits_in_light_and_dark(visit, kind, theme, width):
    fits(visit, every_figure()[kind].html, theme, width)


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
    made = visit(page(HOSTILE[1], sections, lead=HOSTILE[3]))
    made.page.set_viewport_size({"width": width, "height": 800})
    until(made.page, "document.querySelectorAll('.tokens').length === 2")
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


def test_without_scripts_a_report_still_shows_the_still(browser, tmp_path):
    text = page("x", [Section("Map", figure=viz.heatmap(patching()))])
    (tmp_path / "page.html").write_text(text, "utf-8")
    quiet = browser.new_context(offline=True, java_script_enabled=False)
    opened = quiet.new_page()
    opened.goto((tmp_path / "page.html").as_uri())
    assert opened.locator("noscript img").is_visible()
    quiet.close()
