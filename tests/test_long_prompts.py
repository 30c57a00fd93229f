"""Figures of 600 to 3,000 image tokens: small pages, no peak lost, little work a move.

Work is counted, not timed: paints, measured words, calls for each column.
"""

import io
import json
import sys

import numpy as np
import pytest
import xarray as xr
from pages import needs_browser, until
from PIL import Image

from mechvlm import viz
from mechvlm.viz.labels import Axis, axis
from mechvlm.viz.plots.heatmap import thinned

LAYERS = 32
SIDE = 24
PEAK = (20, 1700)
TILES = ((0, 0, 672, 672), (0, 0, 336, 336), (336, 0, 672, 336))
TILES = (*TILES, (0, 336, 336, 672), (336, 336, 672, 672))


def tiled() -> xr.DataArray:
    """LLaVA-NeXT's prompt: a whole picture and four tiles, each ended by a break."""
    words, groups, grids = ["<s>"], ["bos"], []
    for box in TILES:
        grids.append({"start": len(words), "rows": SIDE, "cols": SIDE, "box": box})
        words += ["<image>"] * SIDE**2 + ["\n"]
        groups += ["image"] * SIDE**2 + ["newline"]
    rest = 3000 - len(words)
    words += [f"▁word{i}" for i in range(rest)]
    groups += ["query"] * rest
    values = np.random.default_rng(0).normal(0, 0.01, (LAYERS, len(words)))
    values[PEAK] = -1.0
    return xr.DataArray(
        values,
        dims=("layer", "position"),
        coords={
            "layer": range(LAYERS),
            "position": range(len(words)),
            "token": ("position", words),
            "group": ("position", groups),
        },
        attrs={"units": "nats", "grids": json.dumps(grids)},
    )


@pytest.fixture(scope="module")
def large() -> xr.DataArray:
    result = tiled()
    assert result.shape == (LAYERS, 3000)
    return result


def photo() -> Image.Image:
    return Image.effect_noise((672, 672), 60).convert("RGB")


@pytest.fixture(scope="module")
def figures(large):
    lines = large.isel(position=slice(0, 6)).transpose("position", "layer")
    lines = lines.assign_coords(low=lines - 1, high=lines + 1)
    return {
        "map": viz.heatmap(large),
        "overlay": viz.overlay(large, photo(), grid=0),
        "tile": viz.overlay(large, photo(), grid=4),
        "lines": viz.lines(lines),
        "bars": viz.bars(lines),
    }


# --- building -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("map", 560_000),
        ("overlay", 480_000),
        ("tile", 480_000),
        ("lines", 60_000),
        ("bars", 60_000),
    ],
)
def test_pages_stay_small(figures, kind, most):
    """Three bytes a cell, a few for each token; the map has 96,000 cells."""
    assert len(figures[kind].html.encode()) < most


@pytest.mark.parametrize("kind", ["map", "overlay", "lines"])
def test_building_does_as_much_for_a_column_whatever_their_number(kind):
    """Twice the columns may cost twice the calls, not four times."""

    def calls(n: int) -> int:
        result = tiled().isel(position=slice(1, n + 1)).drop_attrs()
        grid = {"start": 1, "rows": 1, "cols": n, "box": [0, 0, 64, 64]}
        result.attrs["grids"] = json.dumps([grid])
        counted = 0

        def count(frame, event, argument):
            nonlocal counted
            counted += 1

        sys.setprofile(count)
        try:
            match kind:
                case "map":
                    figure = viz.heatmap(result)
                case "overlay":
                    figure = viz.overlay(result, Image.new("RGB", (64, 64)))
                case _:
                    figure = viz.lines(result[:2])
            assert figure.html
            assert figure.alt
            figure.draw()
        finally:
            sys.setprofile(None)
        return counted

    calls(100)  # what is loaded at first use is not counted
    assert calls(2400) < 2.6 * calls(1200)


def test_a_place_is_described_without_a_walk_along_the_axis(large, monkeypatch):
    along = axis(large, "position")
    monkeypatch.setattr(Axis, "quiet", lambda self: pytest.fail("walks the axis"))
    assert along.place(1) == "position 1 · image"
    assert along.place(2999) == "position 2999 · “word113” · query"


# --- peaks ----------------------------------------------------------------------------


def test_a_pixel_shows_the_strongest_of_its_cells():
    pixels = [16.1, *[0.2] * 8, 16]  # a still has 160 to the inch
    borders = np.array([0, *np.cumsum(pixels)]) / 160
    values = np.array([[5.0, 1, -3, 2, np.nan, 0, 0, np.nan, 1, 7]])
    values = np.vstack([values, np.full(10, np.nan)])
    drawn, strongest = thinned(values, borders)
    np.testing.assert_allclose(drawn, borders[[0, 1, 6, 9, 10]])
    np.testing.assert_array_equal(strongest[0], [5, -3, 1, 7])
    assert np.isnan(strongest[1]).all()


def test_columns_of_a_pixel_and_more_are_left_alone():
    borders = np.linspace(0, 1, 41)
    values = np.random.default_rng(0).random((3, 40))
    drawn, same = thinned(values, borders)
    np.testing.assert_array_equal(drawn, borders)
    np.testing.assert_array_equal(same, values)


def orange(colours: np.ndarray) -> np.ndarray:
    """Where a picture has the colour of the strongest value below zero."""
    return (np.abs(colours.astype(int) - [0x61, 0x1A, 0x12]).sum(-1) < 30) & True


def test_one_strong_cell_of_96000_is_seen_in_the_still(figures):
    shown = np.asarray(Image.open(io.BytesIO(figures["map"].png)).convert("RGB"))
    found = np.argwhere(orange(shown[:, : shown.shape[1] * 8 // 10]))
    assert len(found) > 0, "the peak is averaged away"
    assert np.ptp(found[:, 1]) <= 1


# --- in the browser -------------------------------------------------------------------

COUNTED = """() => {
  window.work = { paints: 0, measures: 0, nodes: 0 };
  const spy = (kind, name, key) => {
    const real = kind.prototype[name];
    kind.prototype[name] = function (...given) {
      window.work[key] += 1;
      return real.apply(this, given);
    };
  };
  spy(CanvasRenderingContext2D, "drawImage", "paints");
  spy(CanvasRenderingContext2D, "putImageData", "paints");
  spy(SVGTextContentElement, "getComputedTextLength", "measures");
  spy(Document, "createElement", "nodes");
  spy(Document, "createElementNS", "nodes");
}"""


@needs_browser
@pytest.mark.parametrize(
    ("kind", "target"),
    [("map", "canvas.mv-cells"), ("tile", "canvas.mv-big"), ("lines", ".mv-plot svg")],
)
def test_a_pointer_move_paints_and_measures_nothing(visit, figures, kind, target):
    page = visit(figures[kind].html).page
    page.wait_for_timeout(200)
    page.evaluate(COUNTED)
    box = page.locator(target).first.bounding_box()
    said = set()
    for step in range(1, 11):
        x, y = (box["x"] + box["width"] * step / 11, box["y"] + box["height"] * 0.6)
        page.mouse.move(x, y)
        said.add(page.locator(".mv-read").inner_text())
    work = page.evaluate("window.work")
    assert len(said) > 4, "nothing was read: this test shows nothing"
    assert work["paints"] == work["measures"] == 0
    assert work["nodes"] < 10 * 40, "the read-out and no more"


@needs_browser
def test_one_strong_cell_is_seen_and_read_where_it_shows(visit, figures):
    made = visit(figures["map"].html)
    across = made.page.evaluate(
        """row => {
          const c = document.querySelector('canvas.mv-cells');
          const y = Math.floor((row + 0.5) * c.height / 32);
          const line = c.getContext('2d').getImageData(0, y, c.width, 1).data;
          const dark = [];
          for (let x = 0; x < c.width; x++)
            if (line[4 * x] === 0x61 && line[4 * x + 1] === 0x1a) dark.push(x);
          return dark;
        }""",
        LAYERS - 1 - PEAK[0],
    )
    assert len(across) == 1
    box = made.page.locator("canvas.mv-cells").bounding_box()
    y = box["y"] + box["height"] * (LAYERS - PEAK[0] - 0.5) / LAYERS
    made.page.mouse.move(box["x"] + across[0], y)
    cell = PEAK[1] - (1 + 2 * (SIDE**2 + 1))
    assert made.parts() == [
        "-1",
        f"layer {PEAK[0]}",
        f"position {PEAK[1]}",
        f"grid 2, row {cell // SIDE}, col {cell % SIDE}",
    ]


@needs_browser
def test_a_redraw_measures_few_words(visit, figures):
    page = visit(figures["map"].html).page
    page.evaluate(COUNTED)
    page.set_viewport_size({"width": 700, "height": 800})
    until(page, "window.work.paints > 0")
    assert page.evaluate("window.work.measures") < 120


@needs_browser
def test_a_tile_lies_where_it_was_cut(visit, large):
    loud = large.copy(data=np.zeros(large.shape))
    fourth = json.loads(large.attrs["grids"])[4]
    loud[7, fourth["start"]] = 1.0
    picture = Image.new("RGB", (672, 672), "white")
    made = visit(viz.overlay(loud, picture, grid=4).html)
    made.page.wait_for_timeout(200)
    cell = 0.5 / SIDE / 2
    assert made.pixel("canvas.mv-big", 0.5 + cell, 0.5 + cell)[2] < 0xC0
    assert made.pixel("canvas.mv-big", cell, cell)[:3] == [255, 255, 255]
    assert "grid 4" in made.page.locator("figcaption").inner_text()
    assert f"position {fourth['start']}" in made.parts()
    box = made.page.locator("canvas.mv-big").bounding_box()
    made.page.mouse.move(box["x"] + 20, box["y"] + 20)
    assert made.read_out() == "outside this view of the image"
