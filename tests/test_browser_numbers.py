"""What one reads off a live page, where numbers or shapes are out of the ordinary."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from pages import needs_browser
from PIL import Image

import mechvlm as mv
from mechvlm import viz
from mechvlm.viz.labels import number

pytestmark = needs_browser

VALUES = (
    1e6, 1e-6, -1e-6, 0.02, -3.0, 0.0, 1.0, 999.7, -1e-9, 2.5e-12, 31999.0, 65535.0,
    65536.0, 99951.0, 9.9996e-5, 123456.0,
)  # fmt: skip


def test_every_cell_reads_as_the_number_that_it_is(visit):
    """Small ones beside large ones too, and as the still and the words write it."""
    made = visit(viz.heatmap(xr.DataArray([VALUES], dims=("layer", "head"))).html)
    made.page.locator(".mv-plot").focus()
    for _ in VALUES:
        made.page.keyboard.press("ArrowLeft")
    for value in VALUES:
        assert made.parts()[0] == number(value).replace("\N{MINUS SIGN}", "-")
        made.page.keyboard.press("ArrowRight")


def test_keys_of_the_browser_stay_its_own(visit):
    """Alt and an arrow leave the page; they walk no cell."""
    made = visit(viz.heatmap(xr.DataArray([[1.0, 3, 2]], dims=("layer", "head"))).html)
    made.page.locator(".mv-plot").focus()
    made.page.keyboard.press("ArrowRight")
    before = made.read_out()
    assert "head 2" in before
    for key in ("Alt", "Control", "Meta"):
        swallowed = made.page.evaluate(
            """name => !document.querySelector('.mv-plot').dispatchEvent(
              new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true,
                cancelable: true, [name]: true }))""",
            {"Alt": "altKey", "Control": "ctrlKey", "Meta": "metaKey"}[key],
        )
        assert not swallowed
        assert made.read_out() == before


def test_a_lone_point_of_a_long_line_is_seen(visit):
    """Where no neighbour has a value there is no stroke, so a dot says it."""
    line = np.full(60, np.nan)
    line[7], line[30:33] = 2.0, 1.0
    made = visit(viz.lines(xr.DataArray(line, dims="layer")).html)
    assert made.page.locator("svg.mv-text circle").count() == 1


def test_several_grids_are_told_apart(visit):
    grids = [{"start": s, "rows": 1, "cols": 2, "box": [0, 0, 8, 4]} for s in (1, 3)]
    plane = xr.DataArray(
        [[0.0, 1, 0, 0, 5]], dims=("layer", "position"),
        coords={"position": range(5)}, attrs={"grids": json.dumps(grids)},
    )  # fmt: skip
    made = visit(viz.heatmap(plane).html)
    assert "grid 1, row 0, col 1" in made.parts()
    alone = plane.assign_attrs(grids=json.dumps(grids[1:]))
    assert "image row 0, col 1" in visit(viz.heatmap(alone).html).parts()


def test_a_map_with_words_for_rows_reads_them_too(visit):
    plane = xr.DataArray(
        [[0.0, 1], [5, 0]], dims=("target", "source"),
        coords={"target_token": ("target", ["red", "<b>"])},
    )  # fmt: skip
    assert visit(viz.heatmap(plane).html).parts() == [
        "strongest", "5", "target 1", "<b>", "source 0"
    ]  # fmt: skip


@pytest.mark.parametrize("coords", [{}, {"layer": 5}])
def test_a_map_over_the_picture_says_of_which_layer_it_is(visit, coords):
    grid = {"start": 0, "rows": 1, "cols": 2, "box": [0, 0, 8, 4]}
    over = xr.DataArray(
        [0.0, 1.0], dims="position", coords=coords, attrs={"grids": json.dumps([grid])}
    )
    made = visit(viz.overlay(over, Image.new("RGB", (8, 4))).html)
    said = "layer 5" if coords else "map"
    assert made.parts()[:3] == ["strongest", "1", said]
    assert made.page.locator("button.mv-thumb").last.get_attribute("aria-label") == said
    assert not made.page.locator(".mv-slide").is_visible()


@pytest.mark.parametrize("width", [400, 1280])
def test_widths_of_the_legend_are_those_of_the_edges(visit, width):
    labels = ("[image] -> L0.v0", "L0.H0 -> logits")
    effects = dict.fromkeys(labels, 1.0)
    found = replace(mv.Circuit.parse(labels, mv.Shape(1, 1, 1)), effects=effects)
    page = visit(viz.circuit(found).html, width=width).page
    scale = page.evaluate(
        """(() => { const drawn = document.querySelector('svg.mv-graph');
          return drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width;
        })()"""
    )
    edge = page.locator("path.mv-way").first.get_attribute("stroke-width")
    key = page.locator(".mv-sizes line").first.get_attribute("stroke-width")
    assert scale != pytest.approx(1, abs=0.05)
    assert float(key) == pytest.approx(float(edge) * scale, rel=1e-3)
