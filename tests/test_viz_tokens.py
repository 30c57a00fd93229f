"""Coloured tokens and tables of top tokens: the numbers, the words, what is refused."""

import io
import json
import re

import numpy as np
import pytest
import xarray as xr
from payloads import unpacked
from PIL import Image

from mechvlm import viz
from mechvlm.errors import ResultError
from mechvlm.viz.widgets.boxes import luminance, readable
from mechvlm.viz.widgets.tokens import laid_out


def scores(rows: int = 4, cols: int = 4) -> xr.DataArray:
    """Attribution of <bos>, an image and two words."""
    n = rows * cols
    grid = {"start": 1, "rows": rows, "cols": cols, "box": [0, 0, 9, 9]}
    return xr.DataArray(
        np.array([-2.0, *np.arange(n) / 10, 0.5, np.nan]),
        dims="position",
        name="attribution",
        coords={
            "position": range(n + 3),
            "token": ("position", ["<bos>", *["<image>"] * n, "▁red", "a\nb"]),
            "group": ("position", ["bos", *["image"] * n, "query", "query"]),
        },
        attrs={"units": "logits", "grids": json.dumps([grid]), "model": "demo"},
    )


def lens(layers: int = 3, positions: int = 2, k: int = 2) -> xr.Dataset:
    """Words w0, w1, ... in the order (layer, position, k), each its own probability."""
    shape, dims = (layers, positions, k), ("layer", "position", "k")
    ids = np.arange(layers * positions * k).reshape(shape)
    words = np.array([f"w{i}" for i in range(ids.size)]).reshape(shape)
    return xr.Dataset(
        {
            "word": (dims, words),
            "token_id": (dims, ids),
            "probability": (dims, 1 / (2.0 + ids)),
        },
        coords={
            "layer": np.arange(layers) * 4,
            "position": np.arange(positions) + 30,
            "token": ("position", [f"t{i}" for i in range(positions)]),
            "group": ("position", ["query"] * positions),
        },
        attrs={"model": "demo"},
    )


def payload(figure):
    """What the page's script will read."""
    found = re.search(r'<script type="application/json">(.*?)</script>', figure.html)
    return json.loads(found[1])


@pytest.mark.parametrize(("pool", "wanted"), [("sum", 12.0), ("mean", 0.75)])
def test_an_image_is_one_token(pool, wanted):
    figure = viz.tokens(scores(), pool=pool)
    np.testing.assert_allclose(figure.data.values, [-2, wanted, 0.5, np.nan])
    spec = payload(figure)
    assert spec["tokens"] == ["<bos>", f"image x16 ({pool})", "red", "a↵b"]
    assert spec["places"][1] == "position 1, image"
    np.testing.assert_allclose(unpacked(spec["values"]), figure.data.values, rtol=2e-5)
    assert f"a block is the {pool} of its positions" in spec["note"]
    assert (spec["scale"]["low"], spec["scale"]["high"]) == (
        (-12.0, 12.0) if pool == "sum" else (-2.0, 2.0)
    )


def test_blocks_of_the_image_add_up_to_it():
    figure = viz.tokens(scores(), grid=(4, 2))
    assert payload(figure)["tokens"][1:3] == ["image r0 c0 x2", "image r0 c1 x2"]
    np.testing.assert_allclose(figure.data.values[1:5], [0.1, 0.5, 0.9, 1.3])
    assert figure.data["token"].values[1] == "image r0 c0 x2 (sum)"
    with pytest.raises(ResultError, match="does not tile"):
        viz.tokens(scores(), grid=(3, 2))


def test_rows_are_chosen_and_the_strongest_comes_first():
    two = xr.concat([scores(), scores() * -3], dim="layer").assign_coords(layer=[2, 9])
    figure = viz.tokens(two.transpose("position", "layer"))
    spec = payload(figure)
    assert spec["rows"] == ["layer 2", "layer 9"]
    assert spec["first"] == 1
    np.testing.assert_allclose(
        unpacked(spec["values"]), figure.data.values.ravel(), rtol=2e-5
    )
    assert figure.data.dims == ("layer", "position")
    assert "Highest: 12 at “image x16 (sum)”, layer 2" in figure.alt
    assert "36 at “image x16 (sum)”, layer 9" in figure.alt


def test_tokens_without_groups_stay_alone():
    bare = scores().drop_vars("group")
    assert viz.tokens(bare).data.sizes["position"] == 19
    assert payload(viz.tokens(bare))["note"] == ""


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (
            lambda: viz.tokens(scores().expand_dims(layer=1, head=1)),
            r"tokens want \(position\)",
        ),
        (lambda: viz.tokens(scores().rename(position="row")), "tokens want"),
        (lambda: viz.tokens(scores().drop_vars("token")), "no coordinate 'token'"),
        (lambda: viz.tokens(scores() * np.nan), "no finite number"),
        (lambda: viz.tokens(scores().isel(position=[])), "left no position"),
        (
            lambda: viz.tokens(scores(30, 30).drop_vars("group")),
            "903 tokens in 1 rows are more than one can read",
        ),
        (
            lambda: viz.top_tokens(lens(positions=65)),
            r"65 positions are too many .*at most 64.*viz.lens",
        ),
        (
            lambda: viz.top_tokens(lens(200, 60, 6)),
            r"72000 words \(layer 200 x position 60 x k 6\)",
        ),
        (lambda: viz.top_tokens(lens().drop_vars("word")), "lens needs"),
        (lambda: viz.top_tokens(lens().isel(layer=0)), "layer, position, k"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, wanted):
    with pytest.raises(ResultError, match=wanted):
        call()


@pytest.mark.parametrize("across", ["layer", "position"])
def test_a_table_holds_every_word_at_its_place(across):
    data = lens()
    spec = payload(viz.top_tokens(data, across=across))
    down = "position" if across == "layer" else "layer"
    assert len(spec["rows"]) == data.sizes[down]
    assert spec["first"] == len(spec["rows"]) - 1
    values = iter(unpacked(spec["values"]))
    ids = iter(spec["ids"])
    for row in range(data.sizes[down]):
        for k in range(2):
            for column in range(data.sizes[across]):
                cell = data.isel({down: row, across: column, "k": k})
                assert spec["words"][next(ids)] == cell["word"].item()
                assert next(values) == pytest.approx(
                    cell["probability"].item(), abs=1e-4
                )


def test_columns_and_choices_are_called_by_their_own_names():
    by_layer = payload(viz.top_tokens(lens()))
    assert by_layer["columns"] == ["0", "4", "8"]
    assert by_layer["rows"] == [
        "position 30 · “t0” · query",
        "position 31 · “t1” · query",
    ]
    by_position = payload(viz.top_tokens(lens(), across="position"))
    assert by_position["columns"] == ["30 t0", "31 t1"]
    assert by_position["rows"] == ["layer 0", "layer 4", "layer 8"]


def test_the_alternative_text_names_the_surest_word():
    data = lens()
    data["probability"][1, 1, 0] = 0.875
    assert "“w6”, probability 0.875, at layer 4" in viz.top_tokens(data).alt


def test_stills_are_pictures_and_the_same_each_time():
    for figure in (viz.tokens(scores()), viz.top_tokens(lens())):
        image = Image.open(io.BytesIO(figure.png))
        assert 500 <= image.width <= 2400
        assert image.height > 250
        assert len(image.convert("RGB").getcolors(2**24)) > 20, "nothing was drawn"


def test_a_prompt_of_many_words_has_a_still_of_many_lines():
    words = laid_out(("a" * 20,) * 12, 5.0)
    assert max(word.line for word in words) >= 3
    for word in words:
        assert word.x + word.width <= 5.0
    wide, narrow = laid_out(("漢字", "ab"), 5.0)
    assert wide.width > narrow.width
    assert len(laid_out(("x" * 100,), 20.0)[0].text) == 60


def test_ink_stands_out_from_every_colour():
    for stop in viz.LIGHT.above + viz.LIGHT.below:
        ground = [int(stop[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        ink = [int(readable(ground)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        pair = sorted((luminance(ground), luminance(ink)))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4


def test_luminance_is_that_of_wcag():
    assert luminance((1.0, 1.0, 1.0)) == pytest.approx(1)
    assert luminance((1.0, 0.0, 0.0)) == pytest.approx(0.2126)
    assert luminance((0.5, 0.5, 0.5)) == pytest.approx(0.2140, abs=1e-4)
