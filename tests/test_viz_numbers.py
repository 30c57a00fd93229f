"""Numbers on their way to a reader: none loses its size, its sign or its meaning."""

import io
import json

import numpy as np
import pytest
import xarray as xr
from payloads import unpacked
from PIL import Image
from unchecked import check_refusals

import mechvlm as mv
from mechvlm import viz
from mechvlm.errors import OutputError, ResultError
from mechvlm.viz.figure import asset
from mechvlm.viz.labels import LARGE, axis, describe, number, subtitle, title
from mechvlm.viz.payload import light_png, packed

MINUS = "\N{MINUS SIGN}"


def plane(values, **more) -> xr.DataArray:
    return xr.DataArray(np.asarray(values), dims=("layer", "head"), **more)


# --- packing --------------------------------------------------------------------------


def test_packed_numbers_come_back():
    values = np.array([[-1.5, np.nan, 0.25], [4.0, 0.0, np.inf]])
    back = unpacked(packed(values))
    assert back.tolist()[:1] + back.tolist()[2:5] == [-1.5, 0.25, 4.0, 0.0]
    assert np.isnan(back[[1, 5]]).all()


@pytest.mark.parametrize("largest", [1.0, 1e6, -1e6, 1e30, 1e-9])
def test_a_small_number_beside_a_large_one_keeps_size_and_sign(largest):
    values = np.array([largest, 1e-6, -1e-6, 0.02, -3.0, 0.0, 1.0])
    back = unpacked(packed(values))
    np.testing.assert_allclose(back, values, rtol=2**-16, atol=0)
    assert back[5] == 0


def test_what_is_too_large_for_the_page_is_missing_and_not_wrong():
    assert np.isnan(unpacked(packed(np.array([1e300])))).all()


# --- reading --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (999.7, "1000"), (-999.96, f"{MINUS}1000"), (-0.0, "0"), (0.0, "0"),
        (1e-9, f"1e{MINUS}9"), (12e-12, f"1.2e{MINUS}11"), (1e6, "1e6"),
        (-2.5e6, f"{MINUS}2.5e6"), (31999.0, "31999"), (1e300, "1e300"), (99.96, "100"),
    ],
)  # fmt: skip
def test_a_number_is_written_as_one_reads_it(value, said):
    assert number(value) == said


def test_infinite_cells_are_missing_in_the_words_too():
    told = describe(plane([[1.0, np.inf], [-3.0, -np.inf]]))
    assert f"from {MINUS}3 to 1. Strongest: {MINUS}3 at layer 1, head 0" in told
    tokens = xr.DataArray(
        [np.inf, 2.0, -1.0],
        dims="position",
        coords={"token": ("position", list("abc"))},
    )
    assert "Highest: 2 at “b”" in viz.tokens(tokens).about
    pair = plane([[1.0, np.inf], [5.0, 0.0]]), plane([[1.0, np.inf], [2.0, 0.0]])
    assert "a difference of 3" in viz.compare(*pair).about


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("recovery", "Recovery"),
        ("p(answer)", "p(answer)"),
        ("log10 rank", "Log10 rank"),
    ],
)
def test_a_heading_begins_with_a_capital_where_it_is_a_word(name, heading):
    assert title(plane([[1.0]], name=name)) == heading


def test_coordinates_are_read_without_the_dust_of_floats():
    found = axis(plane([[1.0, 2, 3, 4]], coords={"head": np.arange(4) * 0.1}), "head")
    assert found.labels == ("0", "0.1", "0.2", "0.3")


def test_a_dimension_of_groups_is_not_banded_by_itself():
    means = xr.DataArray(
        [[1.0, 2.0]], dims=("layer", "group"), coords={"group": ["bos", "image"]}
    )
    assert axis(means, "group").labels == ("bos", "image")
    assert axis(means, "group").groups == ()


def test_what_a_layer_is_stands_under_the_heading():
    said = plane([[1.0]], attrs={"layer_convention": "layer k is h[k]"})
    assert "layer k is h[k]" in subtitle(said)


def test_the_band_counts_positions_and_not_blocks():
    names = {"source_group": ("source", ["bos", *["image"] * 4])}
    blocks = xr.DataArray(
        [[0.1] * 5], dims=("head", "source"),
        coords=names | {"source_size": ("source", [1, 9, 9, 9, 9])},
    )  # fmt: skip
    spec = viz.heatmap(blocks).spec
    said = [run[3] for run in spec["cols"]["groups"]]
    assert said == ["bos", "image \N{MULTIPLICATION SIGN}36 as 4"]


# --- maps of no layer -----------------------------------------------------------------


def over(**coords) -> xr.DataArray:
    grid = {"start": 0, "rows": 1, "cols": 2, "box": [0, 0, 8, 4]}
    return xr.DataArray(
        [0.0, 1.0], dims="position", coords=coords, attrs={"grids": json.dumps([grid])}
    )


def test_a_map_of_no_layer_is_not_called_layer_0():
    figure = viz.overlay(over(), Image.new("RGB", (8, 4)))
    assert figure.spec["layers"] == [""]
    assert "layer" not in figure.alt
    chosen = viz.overlay(over(layer=5), Image.new("RGB", (8, 4)))
    assert chosen.spec["layers"] == ["5"]


@pytest.mark.parametrize("size", [(16, 8), (4, 8)])
def test_a_picture_of_another_size_than_the_prompts_is_refused(size):
    grid = {"start": 0, "rows": 1, "cols": 2, "box": [0, 0, 8, 4], "size": [8, 4]}
    result = over().assign_attrs(grids=json.dumps([grid]))
    assert viz.overlay(result, Image.new("RGB", (8, 4))).png
    with pytest.raises(ResultError, match="the prompt's was of 8 x 4"):
        viz.overlay(result, Image.new("RGB", size))


def test_a_prompt_says_how_large_its_picture_was():
    picture = Image.new("RGB", (90, 70))
    prompt = mv.load("demo").prompt("how many objects are there ?", picture)
    (grid,) = json.loads(prompt.described["grids"])
    assert grid["size"] == [90, 70]


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        (np.zeros((4, 8), bool), "a mask without a pixel"),
        ((0, 0, 0, 0), "bounds nothing"),
        ((100, 100, 200, 200), "bounds nothing of a picture of 8 x 4"),
        ((6, 1, 2, 3), "not a width and a height"),
    ],
)
def test_an_outline_that_would_not_be_seen_is_refused(outline, said):
    with pytest.raises(ResultError, match=said):
        viz.overlay(over(), Image.new("RGB", (8, 4)), outline=outline)


@pytest.mark.parametrize("draw", [viz.heatmap, viz.lines, viz.bars])
def test_values_that_are_no_numbers_are_refused(draw):
    for values in ([["a", "b"]], [[1j, 2]], np.array([[1, None]], object)):
        with pytest.raises(ResultError, match="draws real numbers"):
            draw(plane(values))


@pytest.mark.parametrize(
    ("draw", "shape", "said"),
    [
        (viz.heatmap, (801, 2), r"result.transpose\('head', 'layer'\)"),
        (viz.lines, (201, 2), "more than one can tell apart"),
        (viz.bars, (7, 100), "more than one can read"),
    ],
)
def test_a_figure_as_long_as_a_street_is_refused(draw, shape, said):
    with pytest.raises(ResultError, match=said):
        draw(plane(np.ones(shape)))


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OutputError, match="Does the folder exist"):
        viz.lines(plane([[1.0]])).save(tmp_path / "none" / "x.html")


def test_a_dataset_and_a_path_are_refused_in_words():
    check_refusals(
        """
import xarray as xr
from mechvlm import viz
whole = xr.Dataset({"effect": ("layer", [1.0])})
over = xr.DataArray([1.0], dims="position")
called = ["heatmap", "lines", "bars", "attention", "attention_into", "tokens"]
cases = [
    (lambda draw=draw: vars(viz)[draw](whole), f'viz.{draw}(dataset["effect"])')
    for draw in called
]
cases += [
    (lambda: viz.compare(over, whole), 'viz.compare(dataset["effect"])'),
    (lambda: viz.overlay(over, "a.png"), "PIL.Image.open(path)"),
]
"""
    )


@pytest.mark.parametrize("draw", [viz.lines, viz.bars])
def test_a_dimension_may_be_called_line(draw):
    named = xr.DataArray(
        [[0.0, 1], [1, 2]], dims=("line", "layer"), coords={"line": ["a", "b"]}
    )
    spec = draw(named).spec
    assert (spec["lines"]["labels"] if draw is viz.lines else spec["series"]) == [
        "a",
        "b",
    ]
    assert draw(named).png


# --- stills in few bytes --------------------------------------------------------------


def test_a_still_in_a_page_is_lighter_and_looks_the_same():
    figure = viz.heatmap(plane(np.random.default_rng(0).normal(size=(12, 40))))
    light = light_png(figure.png)
    assert len(light) < len(figure.png) / 2
    before, after = (
        np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), dtype=int)
        for each in (figure.png, light)
    )
    assert np.abs(before - after).max() <= 8


def test_a_photograph_keeps_its_colours():
    y, x = np.mgrid[0:200, 0:200]
    colours = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).save(out, "PNG")
    assert light_png(out.getvalue()) == out.getvalue()


# --- what Python and the page must agree on -------------------------------------------


def test_the_page_counts_colours_and_rounds_as_python_does():
    script, n = asset("core.js"), len(viz.LIGHT.series)
    assert len(viz.DARK.series) == n
    assert f'"var(--series-" + (i % {n}) + ")"' in script
    assert f"Math.floor(i / {n} / pairs)" in asset("lines.js")
    assert f"LARGE = {LARGE};" in script
