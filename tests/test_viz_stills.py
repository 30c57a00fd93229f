"""Stills: nothing runs off the sheet or over its neighbour, whatever the shape."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import mechvlm as mv
from mechvlm import viz
from mechvlm.viz.stills import styled


def drawing(figure):
    """The still, laid out."""
    with styled():
        made = figure.draw()
        made.canvas.draw()
    return made


def outside(made) -> list[str]:
    """Words that are not wholly on the sheet."""
    sheet, pen = made.bbox, made.canvas.get_renderer()
    words = [text for axes in made.axes for text in axes.texts if text.get_text()]
    ends = [(text.get_text(), text.get_window_extent(pen)) for text in words]
    return [
        word
        for word, box in ends
        if box.x0 < sheet.x0 or box.x1 > sheet.x1 or box.y1 > sheet.y1
    ]


def lines(n: int, name: str = "a line of many words") -> xr.DataArray:
    values = np.arange(2.0 * n).reshape(2, n)
    coords = {"cut": [f"{name} {i}" for i in range(2)]}
    return xr.DataArray(values, dims=("cut", "layer"), coords=coords)


@pytest.mark.parametrize("n", [1, 2, 3, 32])
def test_names_of_lines_stay_on_the_sheet(n):
    assert outside(drawing(viz.lines(lines(n)))) == []
    assert outside(drawing(viz.compare(lines(n), lines(n) / 2))) == []


def test_a_colour_bar_of_one_row_keeps_its_numbers_apart():
    plane = xr.DataArray([[0.5, 0.1]], dims=("layer", "head"))
    made = drawing(viz.heatmap(plane))
    pen = made.canvas.get_renderer()
    ticks = [t for t in made.axes[1].get_yticklabels() if t.get_text()]
    low, high = made.axes[1].get_ylim()
    shown = [t for t in ticks if low <= t.get_position()[1] <= high]
    boxes = sorted((t.get_window_extent(pen) for t in shown), key=lambda b: b.y0)
    assert boxes
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


def test_a_large_photograph_is_shrunk_once(monkeypatch):
    """Each panel shrinks what is small already: 33 times 12 megapixels take seconds."""
    grid = '[{"start": 0, "rows": 2, "cols": 2, "box": [0, 0, 1600, 1200]}]'
    planes = xr.DataArray(
        np.ones((8, 4)), dims=("layer", "position"), attrs={"grids": grid}
    )
    figure = viz.overlay(planes, Image.new("RGB", (1600, 1200)))
    sizes = []
    shrink = Image.Image.thumbnail

    def counted(self, size, *more, **named):
        sizes.append(self.width)
        return shrink(self, size, *more, **named)

    monkeypatch.setattr(Image.Image, "thumbnail", counted)
    made = drawing(figure)
    assert sum(width == 1600 for width in sizes) == 1
    assert made.axes[1].get_xlim() == (0, 1600), "it still counts the picture's pixels"
    assert made.axes[1].get_ylim() == (1200, 0)


@pytest.mark.parametrize("weak", [0.001, 0.5])
def test_edges_too_thin_to_scale_are_owned_up_to(weak):
    labels = ("[image] -> L0.v0", "L0.H0 -> logits")
    effects = {labels[0]: weak, labels[1]: 1.0}
    found = replace(mv.Circuit.parse(labels, mv.Shape(1, 1, 1)), effects=effects)
    figure = viz.circuit(found)
    told = [text.get_text() for text in drawing(figure).axes[0].texts]
    said = "below 0.0889 all are equally thin"
    assert (said in figure.spec["units"]) == (weak < 0.01)
    assert any(said in words for words in told) == (weak < 0.01)
    assert math.isclose(max(edge["width"] for edge in figure.spec["edges"]), 9.0)
