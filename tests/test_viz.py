"""Figures of made-up results: the numbers, the words, the files."""

import base64
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from payloads import unpacked
from PIL import Image

from mechvlm import viz
from mechvlm.errors import ResultError
from mechvlm.viz.figure import Figure
from mechvlm.viz.files import write_atomically
from mechvlm.viz.labels import axis, describe
from mechvlm.viz.payload import script_json
from mechvlm.viz.plots.lines import spread
from mechvlm.viz.plots.overlay import cells, segments

HOSTILE = (
    "<script>window.ran=1</script>",
    "</script><script>window.ran=2</script>",
    "<image>",
    "\"><img src=x onerror='window.ran=3'>",
    "$x_1$ &amp; 'q'",
    "]]>--><!--",
    "\N{LINE SEPARATOR}\n",
)
SIDE = 4


def patching(
    layers: int = 3, side: int = SIDE, tokens: tuple[str, ...] = HOSTILE
) -> xr.DataArray:
    """A made-up patching map: one token before the image, the others after."""
    n = side * side
    words = [tokens[0], *["<image>"] * n, *tokens[1:]]
    groups = ["bos", *["image"] * n, *["query"] * (len(tokens) - 1)]
    values = np.random.default_rng(0).normal(0.2, 0.3, (layers, len(words)))
    grid = {"start": 1, "rows": side, "cols": side, "box": [0, 0, 64, 64]}
    return xr.DataArray(
        values,
        dims=("layer", "position"),
        name="recovery",
        coords={
            "layer": range(layers),
            "position": range(len(words)),
            "token": ("position", words),
            "group": ("position", groups),
        },
        attrs={
            "units": "fraction of the gap",
            "long_name": "Recovery <b>",
            "paper": "arXiv:2404.15255",
            "model": "demo",
            "prompt": HOSTILE[1],
            "grids": json.dumps([grid]),
        },
    )


def knockout() -> xr.DataArray:
    return xr.DataArray(
        [[0.0, -50.0, -10.0], [0.0, 2.0, -10.0]],
        dims=("cut", "layer"),
        coords={"cut": ["image->last", "</script>"], "layer": [0, 1, 2]},
        attrs={"units": "% of clean probability", "model": "demo"},
    )


def attention(tokens: tuple[str, ...] = HOSTILE, side: int = SIDE) -> xr.DataArray:
    """Two layers, two heads, rows that sum to 1."""
    like = patching(1, side, tokens)
    n = like.sizes["position"]
    weights = np.random.default_rng(1).random((2, 2, n, n)) * np.tri(n)
    words = {"token": like["token"].values, "group": like["group"].values}
    both = {
        f"{dim}_{k}": (dim, v) for dim in ("target", "source") for k, v in words.items()
    }
    return xr.DataArray(
        weights / weights.sum(-1, keepdims=True),
        dims=("layer", "head", "target", "source"),
        coords={"layer": [5, 6], "head": [0, 1], **both},
        attrs={"model": "demo"},
    )


def picture() -> Image.Image:
    return Image.effect_noise((64, 64), 60).convert("RGB")


def every_figure() -> dict[str, Figure]:
    """One figure of each kind, hostile tokens in all of them."""
    return {
        "map": viz.heatmap(patching()),
        "lines": viz.lines(knockout()),
        "bars": viz.bars(knockout()),
        "overlay": viz.overlay(patching(), picture(), outline=(8, 8, 40, 40)),
        "attention": viz.attention(attention()),
    }


FIGURES = every_figure()


def payload(figure: Figure) -> dict:
    """What the page's script will read."""
    found = re.search(r'<script type="application/json">(.*?)</script>', figure.html)
    return json.loads(found[1])


def test_intervals_reach_the_page_as_bands():
    lines = knockout().assign_coords(low=knockout() - 3, high=knockout() + 4)
    for figure in (viz.lines(lines), viz.bars(lines)):
        bands = [unpacked(band) for band in payload(figure)["bands"]]
        assert [band.max() for band in bands] == [-1.0, 6.0]
    assert payload(viz.lines(knockout()))["bands"] == []
    for draw in (viz.lines, viz.bars):
        alone = draw(lines.isel(cut=0, drop=True))
        bands = [unpacked(band) for band in payload(alone)["bands"]]
        assert [band.min() for band in bands] == [-53.0, -46.0]


@pytest.mark.parametrize("kind", FIGURES)
def test_no_text_of_a_result_becomes_markup(kind):
    fragment = FIGURES[kind].fragment()
    assert fragment.count("<script") == fragment.count("</script>") == 1
    assert "<img" not in fragment
    assert "<b>" not in fragment
    assert "Recovery" not in fragment or "Recovery &lt;b&gt;" in fragment


@pytest.mark.parametrize("kind", FIGURES)
def test_a_page_names_no_address(kind):
    page = FIGURES[kind].html
    assert not re.search(r"<(link|iframe|base|object)\b|@import|url\(", page)
    assert not re.search(r"\bsrc=(?!\"data:)(?!x )", page.split("<script>")[0])
    assert "default-src 'none'" in page


@pytest.mark.parametrize("kind", FIGURES)
def test_stills_are_pictures_and_the_same_each_time(kind, tmp_path):
    figure = FIGURES[kind]
    image = Image.open(figure.save(tmp_path / "still.png"))
    assert 500 <= image.width <= 2400
    assert 250 <= image.height <= 2400
    assert len(image.convert("RGB").getcolors(2**24)) > 20, "nothing was drawn"
    svg = figure.save(tmp_path / "still.svg").read_bytes()
    assert svg.lstrip().startswith(b"<?xml")
    again = Figure(figure.data, figure.kind, figure.spec, figure.draw)
    assert again.png == figure.png
    assert again.svg == svg


def test_a_notebook_gets_one_html_with_still_and_sandboxed_page():
    bundle = FIGURES["map"]._repr_mimebundle_()
    assert list(bundle) == ["text/html"]
    html = bundle["text/html"]
    assert html.index("<img") < html.index("<iframe")
    assert 'sandbox="allow-scripts"' in html
    assert "<script" not in html, "the page must stay inside srcdoc"
    still = re.search(r'src="data:image/png;base64,([^"]+)"', html)[1]
    Image.open(io.BytesIO(base64.b64decode(still))).verify()


def test_a_large_map_stays_small():
    big = viz.heatmap(patching(32, 24, tuple(f"word{i}" for i in range(44))))
    assert big.data.shape == (32, 620)
    assert len(big.html.encode()) < 180_000


def test_script_json_reads_back_what_it_escapes():
    spec = {"tokens": list(HOSTILE)}
    text = script_json(spec)
    assert not set("<>&\N{LINE SEPARATOR}") & set(text)
    assert json.loads(text) == spec


def test_a_map_reads_out_the_words_of_its_result():
    spec = payload(FIGURES["map"])
    assert spec["cols"]["groups"] == [
        ["bos", 0, 1, "bos"],
        ["image", 1, 17, "image \N{MULTIPLICATION SIGN}16"],
        ["query", 17, 23, "query"],
    ]
    assert spec["quiet"] == [False] + [True] * 16 + [False] * 6
    assert spec["cols"]["tokens"][0] == HOSTILE[0]
    assert spec["units"] == "fraction of the gap"


def test_description_names_the_strongest_cell():
    plane = xr.DataArray(
        [[0.1, -0.2], [0.3, -4.0]],
        dims=("layer", "position"),
        coords={"layer": [7, 8], "token": ("position", ["a", "b"])},
        name="effect",
    )
    text = describe(plane).replace("\N{MINUS SIGN}", "-")
    assert text.startswith("Effect, 2 layers by 2 positions, from -4 to 0.3.")
    assert "-4 at layer 8, position 1" in text


def hand_made() -> xr.DataArray:
    """Four positions, the middle two an image; rows sum to 1."""
    rows = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]]
    both = {
        f"{dim}_{k}": (dim, v)
        for dim in ("target", "source")
        for k, v in (
            ("token", ["<bos>", "<image>", "<image>", "red"]),
            ("group", ["bos", "image", "image", "query"]),
        )
    }
    return xr.DataArray([rows], dims=("head", "target", "source"), coords=both)


def test_collapse_sums_keys_and_averages_queries():
    small = viz.collapse(hand_made())
    wanted = [[1, 0, 0], [0.35, 0.65, 0], [0.1, 0.5, 0.4]]
    np.testing.assert_allclose(small.values, [wanted])
    assert small["source_token"].values.tolist() == ["<bos>", "image x2 (sum)", "red"]
    assert small["target_token"].values.tolist() == ["<bos>", "image x2 (mean)", "red"]
    assert small["source_size"].values.tolist() == [1, 2, 1]
    assert small["target"].values.tolist() == [0, 1, 3]


def test_collapse_keeps_two_images_apart_and_single_positions_as_they_are():
    n = 5
    groups = ["image", "image", "query", "image", "bos"]
    both = {
        f"{dim}_{k}": (dim, v)
        for dim in ("target", "source")
        for k, v in (("token", list("abcde")), ("group", groups))
    }
    eye = xr.DataArray(np.eye(n), dims=("target", "source"), coords=both)
    names = viz.collapse(eye)["source_token"].values.tolist()
    assert names == ["image x2 (sum)", "c", "d", "e"]


def test_collapse_takes_more_groups_only_to_fit():
    words = tuple(f"w{i}" for i in range(150))
    full = attention(words)
    full = full.assign_coords(
        {
            f"{dim}_group": (
                dim,
                ["bos", *["image"] * 16, *["system"] * 100, *["query"] * 49],
            )
            for dim in ("source", "target")
        }
    )
    small = viz.collapse(full)
    assert small.sizes["source"] == 1 + 1 + 1 + 49
    np.testing.assert_allclose(small.sum("source").values, 1)


def test_collapse_refuses_what_stays_too_long():
    with pytest.raises(ResultError, match=r"8 source positions .* at most 5"):
        viz.collapse(attention(), ["image"], limit=5)
    with pytest.raises(ResultError, match="without the coordinates source_token"):
        viz.collapse(hand_made().drop_vars("source_token"))


def test_attention_tokens_reach_circuitsvis_escaped():
    tokens = payload(FIGURES["attention"])["tokens"]
    assert tokens[0] == "&lt;script&gt;window.ran=1&lt;/script&gt;"
    assert tokens[1] == "image x16 (keys: sum, queries: mean)"
    assert not any("<" in token or '"' in token for token in tokens)


def test_attention_from_last_is_the_last_row():
    full = attention()
    figure = viz.attention_from_last(full, layer=6)
    np.testing.assert_allclose(figure.data.sum("source").values, 1)
    last = full.sel(layer=6).isel(target=-1)
    np.testing.assert_allclose(figure.data.values[:, 1], last[:, 1:17].sum("source"))
    alone = viz.attention_from_last(full.isel(target=slice(-1, None)), layer=6)
    xr.testing.assert_allclose(alone.data, figure.data)


def test_attention_into_is_the_image_share():
    full = attention()
    figure = viz.attention_into(full)
    assert figure.data.dims == ("layer", "head")
    wanted = full.values[:, :, -1, 1:17].sum(-1)
    np.testing.assert_allclose(figure.data.values, wanted)
    with pytest.raises(ResultError, match="no source position is of group 'audio'"):
        viz.attention_into(full, "audio")


def test_overlay_cells_are_the_image_positions_row_by_row():
    result = patching(2)
    planes = cells(result)
    assert planes.dims == ("layer", "row", "col")
    assert planes.values[1, 2, 3] == result.values[1, 1 + 2 * SIDE + 3]
    shuffled = result.isel(position=np.random.default_rng(3).permutation(23))
    np.testing.assert_array_equal(cells(shuffled).values, planes.values)


def test_an_outline_of_a_mask_is_its_border():
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:20, 30:50] = True
    strokes = segments(mask, picture())
    box = segments((30, 10, 50, 20), picture())
    ends = {frozenset([(a, b), (c, d)]) for a, b, c, d in strokes}
    assert ends == {frozenset([(a, b), (c, d)]) for a, b, c, d in box}
    rng = np.random.default_rng(0)
    spots = rng.random((64, 64)) < 0.5
    length = sum(abs(a - c) + abs(b - d) for a, b, c, d in segments(spots, picture()))
    padded = np.pad(spots, 1).astype(int)
    assert length == abs(np.diff(padded, axis=0)).sum() + abs(np.diff(padded)).sum()


def test_several_outlines_are_the_strokes_of_each():
    mask = np.zeros((64, 64), dtype=bool)
    mask[50:, 50:] = True
    box = (8, 8, 40, 40)
    both = segments([box, mask], picture())
    assert both == segments(box, picture()) + segments(mask, picture())
    assert segments([box, box], picture()) == 2 * segments(box, picture())
    drawn = payload(viz.overlay(patching(), picture(), outline=[box, mask]))["outline"]
    assert len(drawn) == len(both)


def test_labels_of_lines_keep_apart_and_in_order():
    ends = [0.0, 0.1, 0.1, 9.0, -3.0]
    places = spread(ends, 1.0)
    assert np.diff(sorted(places)).min() >= 1 - 1e-9
    assert np.argsort(places, kind="stable").tolist() == [4, 0, 1, 2, 3]
    assert places[3:] == [9.0, -3.0]


def test_axis_finds_the_words_of_its_own_dimension():
    found = axis(attention(), "source")
    assert found.tokens[1] == "<image>"
    assert found.groups[0] == ("bos", 0, 1)
    assert axis(attention(), "layer").labels == ("5", "6")


@pytest.mark.parametrize("name", ["heat.pdf", "heat", "heat.gif"])
def test_an_unknown_suffix_says_what_is_possible(name, tmp_path):
    with pytest.raises(ResultError, match=r"\.html \(live\), \.png or \.svg"):
        FIGURES["map"].save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_drawing_that_fails_leaves_the_old_file(tmp_path):
    def broken():
        raise RuntimeError("no ink")

    old = tmp_path / "heat.png"
    old.write_bytes(b"old")
    figure = FIGURES["map"]
    with pytest.raises(RuntimeError, match="no ink"):
        Figure(figure.data, figure.kind, figure.spec, broken).save(old)
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_write_that_fails_leaves_no_part(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="there"):
        write_atomically(tmp_path / "there", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("draw", "wanted"),
    [
        (lambda: viz.heatmap(attention()), "wants two dimensions"),
        (lambda: viz.heatmap(patching() * np.nan), "no finite number"),
        (lambda: viz.lines(attention()), "lines want"),
        (lambda: viz.bars(attention()), "bars want"),
        (lambda: viz.overlay(knockout(), picture()), r"wants \(layer, position\)"),
        (
            lambda: viz.overlay(patching(), picture(), grid=1),
            r"1 image grids .* none is number 1. There are grid=0"
            r" \(4 x 4 cells over x 0 to 64, y 0 to 64\)",
        ),
        (
            lambda: viz.overlay(patching().assign_attrs(grids="[]"), picture()),
            "0 image grids .* Usual cause: a prompt without an image",
        ),
        (
            lambda: viz.overlay(patching(), picture(), outline=[(1, 2, 3, 4), (1, 2)]),
            r"shape \(2,\) is neither a box",
        ),
        (
            lambda: viz.overlay(patching().isel(position=[0, 1]), picture()),
            "lacks 15 of",
        ),
        (
            lambda: viz.overlay(patching(), picture(), outline=np.ones((3, 3), bool)),
            "neither a box",
        ),
        (
            lambda: viz.overlay(patching().assign_attrs(grids="[1]"), picture()),
            "wanted a JSON list",
        ),
        (lambda: viz.attention(patching()), "attention wants"),
        (lambda: viz.attention(attention().isel(target=[0])), "1 targets read 23"),
        (
            lambda: viz.attention(attention(), layer=0),
            "no layer 0 here; there are 5, 6",
        ),
        (lambda: viz.attention_from_last(attention(), layer=1), "no layer 1 among"),
        (lambda: viz.attention_into(attention().isel(layer=0)), "wants all layers"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, wanted):
    with pytest.raises(ResultError, match=wanted):
        draw()


def test_missing_cells_and_no_coordinates_still_draw():
    bare = xr.DataArray(np.eye(3), dims=("layer", "head")).where(lambda x: x > 0)
    assert Image.open(io.BytesIO(viz.heatmap(bare).png)).width > 300
    one = xr.DataArray([1.0, np.nan, 2.0], dims=("layer",))
    assert Image.open(io.BytesIO(viz.lines(one).png)).width > 300


def test_importing_viz_loads_nothing_heavy():
    code = (
        "import sys, mechvlm.viz, mechvlm.report;"
        "heavy = {'torch', 'matplotlib', 'circuitsvis', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
