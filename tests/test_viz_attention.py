"""Attention over blocks of an image, and what is refused before it is drawn."""

import base64
import io
import json
import re
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from mechvlm import viz
from mechvlm.errors import ResultError

DIMS = ("target", "source")


def attention(
    *images: tuple[int, int], heads: int = 2, layers: int = 2, words: int = 3
) -> xr.DataArray:
    """Rows that sum to 1 over <bos>, images of rows x cols, then words."""
    grids, start = [], 1
    for rows, cols in images:
        grids.append({"start": start, "rows": rows, "cols": cols, "box": [0, 0, 9, 9]})
        start += rows * cols
    n = start + words
    tokens = ["<bos>", *["<image>"] * (start - 1), *[f"w{i}" for i in range(words)]]
    groups = ["bos", *["image"] * (start - 1), *["query"] * words]
    weights = np.random.default_rng(0).random((layers, heads, n, n)) * np.tri(n)
    coords = {dim: (dim, np.arange(n)) for dim in DIMS}
    for dim in DIMS:
        coords |= {f"{dim}_token": (dim, tokens), f"{dim}_group": (dim, groups)}
    return xr.DataArray(
        weights / weights.sum(-1, keepdims=True),
        dims=("layer", "head", *DIMS),
        coords={"layer": np.arange(layers) + 5, **coords},
        attrs={"grids": json.dumps(grids), "model": "demo"},
    )


def payload(figure):
    """What the page's script will read."""
    found = re.search(r'<script type="application/json">(.*?)</script>', figure.html)
    return json.loads(found[1])


def by_hand(full: xr.DataArray, members: list[list[int]]) -> np.ndarray:
    """Sums over sources, then means over targets, one block after another."""
    values = full.values
    rows = np.stack([values[..., at].sum(-1) for at in members], axis=-1)
    return np.stack([rows[..., at, :].mean(-2) for at in members], axis=-2)


def test_blocks_of_a_grid_are_its_rectangles():
    full = attention((4, 6))
    small = viz.collapse(full, grid=(2, 3))
    members = [[0]]
    for row in (0, 2):
        for col in (0, 2, 4):
            corner = 1 + 6 * row + col
            members.append([corner, corner + 1, corner + 6, corner + 7])
    members += [[25], [26], [27]]
    np.testing.assert_allclose(small.values, by_hand(full, members))
    np.testing.assert_allclose(small.sum("source").values, 1)
    labels = small["source_token"].values.tolist()
    assert labels[:3] == ["<bos>", "image r0 c0 x4 (sum)", "image r0 c1 x4 (sum)"]
    assert labels[6:] == ["image r1 c2 x4 (sum)", "w0", "w1", "w2"]
    assert small["target_token"].values[4] == "image r1 c0 x4 (mean)"
    assert small["source"].values.tolist() == [0, 1, 3, 5, 13, 15, 17, 25, 26, 27]


def test_each_of_several_images_has_its_own_blocks():
    full = attention((2, 2), (4, 2))
    labels = viz.collapse(full, grid=(2, 1))["source_token"].values.tolist()
    assert labels[1:5] == [
        "image 0 r0 c0 x2 (sum)", "image 0 r1 c0 x2 (sum)",
        "image 1 r0 c0 x4 (sum)", "image 1 r1 c0 x4 (sum)",
    ]  # fmt: skip
    assert viz.collapse(full).sizes["source"] == 1 + 1 + 3, "without a grid one block"


def test_the_finest_grid_changes_nothing_but_names():
    full = attention((2, 3))
    small = viz.collapse(full, grid=(2, 3))
    np.testing.assert_allclose(small.values, full.values)
    assert small["source_token"].values[4] == "image r1 c0"


def with_object(full: xr.DataArray, at: list[int]) -> xr.DataArray:
    groups = full["source_group"].values.astype("<U9")
    groups[at] = "object"
    return full.assign_coords({f"{dim}_group": (dim, groups) for dim in DIMS})


def test_an_object_is_a_block_of_its_own_beside_the_rest_of_its_image():
    full = with_object(attention((3, 3)), [2, 5])
    small = viz.collapse(full)
    assert small["source_token"].values.tolist()[1:3] == [
        "image x7 (sum)", "object x2 (sum)",
    ]  # fmt: skip
    members = [[0], [1, 3, 4, 6, 7, 8, 9], [2, 5], [10], [11], [12]]
    np.testing.assert_allclose(small.values, by_hand(full, members))
    cut = viz.collapse(full, grid=(3, 1))["source_token"].values.tolist()
    assert cut[1:5] == [
        "image r0 c0 x2 (sum)", "object x2 (sum)", "image r1 c0 x2 (sum)",
        "image r2 c0 x3 (sum)",
    ]  # fmt: skip


def test_the_order_of_dimensions_does_not_matter():
    full = attention((4, 4))
    turned = full.transpose("source", "layer", "target", "head")
    small = viz.collapse(turned, grid=(2, 2))
    assert small.dims == turned.dims
    xr.testing.assert_allclose(
        small.transpose(*full.dims), viz.collapse(full, grid=(2, 2))
    )


def test_missing_values_stay_in_their_block():
    full = attention((2, 2))
    full[:, :, 6, 2] = np.nan
    small = viz.collapse(full, grid=(1, 2))
    gone = np.isnan(small.values[0, 0])
    assert np.argwhere(gone).tolist() == [[4, 2]]


@pytest.mark.parametrize(
    ("change", "grid", "wanted"),
    [
        (lambda x: x, (3, 2), r"grid=\(3, 2\) does not tile .* 4 x 6 .* 1, 2 or 4"),
        (lambda x: x, (2, 4), "columns: 1, 2, 3 or 6"),
        (lambda x: x, (0, 2), "does not tile"),
        (lambda x: x, (8, 2), "does not tile"),
        (lambda x: x.drop_attrs(), (2, 2), r'has no attrs\["grids"\]'),
        (
            lambda x: x.isel(source=range(9), target=range(9)),
            (2, 2),
            "holds 8 of the 24 positions of image 0 along source",
        ),
        (
            lambda x: x.assign_coords(source=x["source"].values + 100),
            (2, 2),
            "24 image positions along source are in no grid",
        ),
        (
            lambda x: x.isel(source=[0, 25], target=[0, 25]),
            (2, 2),
            "there is no image: grid has nothing to cut up",
        ),
    ],
)
def test_a_grid_that_cannot_be_is_refused(change, grid, wanted):
    with pytest.raises(ResultError, match=wanted):
        viz.collapse(change(attention((4, 6))), grid=grid)


def test_a_grid_without_the_image_is_refused():
    with pytest.raises(ResultError, match="not among the groups to collapse"):
        viz.collapse(attention((4, 6)), ["query"], grid=(2, 2))


def test_what_stays_too_long_names_the_ways_out():
    with pytest.raises(ResultError, match=r"28 source .* at most 20.*coarser grid"):
        viz.collapse(attention((4, 6)), ["image"], grid=(4, 6), limit=20)


def test_a_collapsed_result_says_so_and_forgets_its_grid():
    small = viz.collapse(attention((4, 6)), grid=(2, 2))
    assert small.attrs["pooling"] == (
        "24 image positions as 4 blocks of 6; attention into a block is the sum, of a"
        " block the mean"
    )
    with pytest.raises(ResultError, match="grids"):
        viz.collapse(small, grid=(2, 2))
    assert "pooling" not in viz.collapse(attention((4, 6)), []).attrs


def test_collapsing_thousands_of_positions_takes_little_memory():
    side, n = 24, 2 * 576 + 4
    full = attention((1, 1), heads=4, layers=1)
    weights = np.full((4, n, n), 1 / n, dtype=np.float32)
    grids = [
        {"start": 1 + 576 * i, "rows": side, "cols": side, "box": [0, 0, 1, 1]}
        for i in range(2)
    ]
    coords = {}
    for dim in DIMS:
        coords[f"{dim}_token"] = (dim, ["t"] * n)
        coords[f"{dim}_group"] = (dim, ["bos", *["image"] * 1152, *["query"] * 3])
    attrs = full.attrs | {"grids": json.dumps(grids)}
    big = xr.DataArray(weights, dims=("head", *DIMS), coords=coords, attrs=attrs)
    tracemalloc.start()
    small = viz.collapse(big, grid=(4, 4))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert small.sizes["source"] == 2 * 16 + 4
    np.testing.assert_allclose(small.values[:, 1, 1], 36 / n, rtol=1e-5)
    assert most < 1.5 * weights.nbytes, "a copy of it all in float64 would be 2"


def test_a_figure_says_what_its_tokens_stand_for():
    figure = viz.attention(attention((4, 6)), grid=(2, 3), view="heads")
    spec = payload(figure)
    assert spec["note"].startswith("24 image positions as 6 blocks of 4; attention")
    assert spec["tokens"][1] == "image r0 c0 x4"
    assert spec["view"] == "heads"
    assert spec["shape"] == [2, 2, 10, 10]
    levels = np.frombuffer(base64.b64decode(spec["data"]), "<u2")
    weights = figure.data.values.ravel()
    np.testing.assert_allclose(levels / 65535, weights, atol=1e-5)
    assert "24 image positions as 6 blocks" in figure.alt


def test_patterns_escape_what_the_canvas_of_heads_does_not():
    full = attention((2, 2), words=1)
    words = ["<bos>", *["<image>"] * 4, "<img src=x onerror='window.ran=1'>"]
    full = full.assign_coords({f"{dim}_token": (dim, words) for dim in DIMS})
    assert payload(viz.attention(full))["tokens"][-1].startswith("&lt;img src=x")
    assert payload(viz.attention(full, view="heads"))["tokens"][-1] == words[-1]


def test_the_alternative_text_names_what_the_last_token_reads():
    full = attention((2, 2), words=3)
    full[...] = 0.0
    full[1, 0, -1, 5] = 0.75
    full[0, 0, -1, 0] = 0.9
    full[0, 1, -1, 7] = 0.95
    alt = viz.attention(full).alt
    assert "“w0” most" in alt
    assert "0.75 in layer 6, head 0" in alt


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (
            lambda: viz.attention(attention((2, 2), heads=40, layers=20, words=90)),
            r"6771200 .*20 layers x 40 heads x 92 x 92.* Choose at most 17 layers",
        ),
        (
            lambda: viz.attention(
                attention((2, 2), heads=8, layers=1, words=90), view="heads"
            ),
            r"8 heads of 92 x 92 .*view='heads'.*at most 7 heads.*view=.patterns",
        ),
        (
            lambda: viz.attention(attention((2, 2), heads=60, layers=1, words=80)),
            "60 heads of 82 x 82 tokens are too many for view='patterns'",
        ),
        (lambda: viz.attention(attention((2, 2)).isel(head=[])), "left no head"),
        (
            lambda: viz.attention_from_last(attention((2, 2)).isel(head=0), layer=5),
            r"attention_from_last wants .*has \('layer', 'target', 'source'\)",
        ),
        (
            lambda: viz.attention_into(attention((2, 2)).drop_vars("source_group")),
            "wants the coordinate source_group",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(call, wanted):
    with pytest.raises(ResultError, match=wanted):
        call()


def test_the_last_token_sees_blocks_of_the_image():
    full = attention((4, 6))
    figure = viz.attention_from_last(full, layer=6, grid=(4, 3))
    last = full.sel(layer=6).isel(target=-1).values
    np.testing.assert_allclose(figure.data.values[:, 1], last[:, 1:3].sum(-1))
    np.testing.assert_allclose(figure.data.sum("source").values, 1)
    spec = payload(figure)
    assert spec["cols"]["tokens"][1] == "image r0 c0 x2"
    assert not any(spec["quiet"]), "blocks of one image have names that differ"
    assert "(each block is a sum)" in figure.html
    alone = full.isel(target=[-1])
    same = viz.attention_from_last(alone, layer=6, grid=(4, 3))
    np.testing.assert_array_equal(same.data.values, figure.data.values)


def test_one_layer_without_a_coordinate_draws():
    bare = attention((2, 2)).isel(layer=0, drop=True)
    for view in ("patterns", "heads"):
        figure = viz.attention(bare, view=view)
        assert payload(figure)["layers"] == ["0"]
    assert Image.open(io.BytesIO(figure.png)).width > 300


def test_the_still_has_its_note_and_a_wider_grid_more_words():
    full = attention((4, 6))
    coarse, fine = (viz.attention(full, grid=g) for g in ((1, 1), (4, 6)))
    assert coarse.png != fine.png
    assert viz.attention(full, grid=(2, 2), view="heads").height_px > 500
