"""The lens's figure: the page holds the very words, ranks and places of the Dataset."""

import base64
import json
import math
import re

import numpy as np
import pytest
import xarray as xr
from payloads import unpacked
from PIL import Image

import mechvlm as mv
from mechvlm import viz
from mechvlm.errors import ArgumentError, ResultError

HOSTILE = (
    "</script><script>window.ran=1</script>",
    "<img src=x onerror='window.ran=2'>",
    "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}",
    "w" * 60,
    "$x_1$ &amp;",
)
SIDE, TEXT = 3, 4
BOX = (0, 0, 60, 60)


def told(layers=4, side=SIDE, text=TEXT, k=3, n_words=40, grids=1):
    """A made-up lens over `grids` grids and some words of text after them."""
    rng = np.random.default_rng(7)
    names = np.array([*HOSTILE, " red", "Red", *(f" w{i}" for i in range(n_words - 7))])
    n_image = grids * side * side
    shape = (layers, n_image + text, k)
    order = rng.random((*shape[:2], n_words)).argsort(axis=-1)[..., :k]
    chances = -np.sort(-rng.random(shape), axis=-1) / k
    words = [HOSTILE[i % len(HOSTILE)] for i in range(text)]
    views = [
        {"start": 1 + g * side * side, "rows": side, "cols": side, "box": BOX}
        for g in range(grids)
    ]
    return xr.Dataset(
        {
            "word": (("layer", "position", "k"), names[order]),
            "token_id": (("layer", "position", "k"), 100 + 3 * order),
            "probability": (("layer", "position", "k"), chances.astype("float32")),
        },
        coords={
            "layer": range(2, 2 + layers),
            "position": range(1, 1 + n_image + text),
            "token": (
                "position",
                ["<image>"] * n_image + words,
            ),
            "group": ("position", ["image"] * n_image + ["query"] * text),
        },
        attrs={"model": "demo", "prompt": HOSTILE[0], "grids": json.dumps(views)},
    )


def picture():
    return Image.effect_noise((60, 60), 60).convert("RGB")


def payload(figure):
    """What the page's script will read."""
    found = re.search(r'<script type="application/json">(.*?)</script>', figure.html)
    return json.loads(found[1])


def whole(packed, *shape):
    """Numbers of the page, decoded by hand."""
    raw = base64.b64decode(packed["data"])
    n = packed["bytes"]
    found = [int.from_bytes(raw[i : i + n], "little") for i in range(0, len(raw), n)]
    return np.array(found).reshape(shape)


def plain(word):
    """How a token of these tests is shown."""
    return str(word).strip()


def rank_in(lens, layer, position, wanted):
    """Oracle: place of the first wanted word of a cell, from 1; 0 for none."""
    for k, word in enumerate(lens["word"].values[layer, position], 1):
        if plain(word).lower() in wanted:
            return k
    return 0


# --- the page holds the Dataset -------------------------------------------------------


@pytest.mark.parametrize("n_words", [40, 70_000])
def test_the_page_holds_the_very_words(n_words):
    lens = told(layers=2, n_words=40)
    if n_words > 40:  # more words than two bytes count: every cell its own
        lens = told(layers=1, side=120, text=0, k=5, n_words=40)
        ids = np.arange(lens["word"].size).reshape(lens["word"].shape)
        lens["token_id"] = (lens["word"].dims, ids)
        lens["word"] = (lens["word"].dims, np.char.add("w", ids.astype(str)))
    spec = payload(viz.lens(lens))
    index = whole(spec["index"], *lens["word"].shape)
    words = np.array(spec["words"])[index]
    assert (words == np.vectorize(plain)(lens["word"].values)).all()
    assert (np.array(spec["ids"])[index] == lens["token_id"].values).all()
    assert len(spec["words"]) == len(np.unique(lens["token_id"].values)), "told twice"
    assert spec["index"]["bytes"] == (2 if n_words == 40 else 4)


def test_the_page_holds_the_probabilities():
    lens = told()
    values = unpacked(payload(viz.lens(lens))["probability"])
    shaped = values.reshape(lens["probability"].shape)
    np.testing.assert_allclose(shaped, lens["probability"].values, rtol=2e-5)


def test_dimensions_may_come_in_any_order():
    lens = told()
    turned = lens.transpose("k", "position", "layer")
    assert payload(viz.lens(turned)) == payload(viz.lens(lens))


def test_the_demo_speaks_on_its_page(demo):
    scene = mv.scenes.sample(seed=3, n=1)
    prompt = demo.prompt("how many objects are there ?", scene.image)
    lens = mv.logit_lens(demo, prompt, topk=2)
    spec = payload(viz.lens(lens, scene.image, outline=scene.mask(0)))
    index = whole(spec["index"], *lens["word"].shape)
    assert (np.array(spec["words"])[index] == lens["word"].values).all()
    start, rows, cols = spec["picture"]["grid"][:3]
    cells = whole(spec["picture"]["cells"], rows, cols)
    labels = np.array(spec["positions"]["labels"], dtype=int)
    expected = start + np.arange(rows * cols).reshape(rows, cols)
    assert (labels[cells] == expected).all()


def test_a_large_page_is_small():
    # LLaVA-1.5: 33 streams of 576 positions, and nearly all of its vocabulary said.
    lens = told(layers=33, side=24, text=0, k=5, n_words=300)
    ids = np.random.default_rng(0).integers(0, 32_000, lens["word"].shape)
    lens["token_id"] = (lens["word"].dims, ids)
    lens["word"] = (lens["word"].dims, np.char.add("▁word", ids.astype(str)))
    assert len(viz.lens(lens, picture()).html) < 1_700_000


def test_three_thousand_positions_are_drawn():
    lens = told(layers=33, side=54, text=84, k=5, n_words=12)
    assert lens.sizes["position"] == 3000
    for image in (None, picture()):
        figure = viz.lens(lens, image, words=["red"])
        assert len(figure.html) < 3_500_000
        assert figure.png.startswith(b"\x89PNG")


@pytest.mark.parametrize("grid", [0, 1])
def test_each_view_of_the_image_has_its_own_cells(grid):
    lens = told(grids=2)
    spec = payload(viz.lens(lens, picture(), grid=grid))
    cells = whole(spec["picture"]["cells"], SIDE * SIDE)
    assert list(cells) == list(range(9 * grid, 9 * grid + 9))


def test_no_word_becomes_markup():
    for image in (None, picture()):
        figure = viz.lens(told(), image, words=[HOSTILE[0]])
        fragment = figure.fragment()
        assert fragment.count("<script") == fragment.count("</script>") == 1
        assert "<img" not in fragment
        assert not re.search(r"https?://(?!www\.w3\.org)", fragment)


# --- the word that is sought ----------------------------------------------------------


@pytest.mark.parametrize("words", [["red"], [" RED"], ["red", "w1"]])
def test_ranks_among_the_best_words_are_counted(words):
    lens = told()
    figure = viz.lens(lens, words=words)
    spec = payload(figure)
    wanted = {plain(word).lower() for word in words}
    expected = np.array(
        [[rank_in(lens, i, j, wanted) for j in range(13)] for i in range(4)]
    )
    assert 0 < (expected > 0).sum() < expected.size
    index = whole(spec["index"], 4, 13, 3)
    hits = np.isin(index, spec["sought"]["members"])
    ranks = np.where(hits.any(-1), hits.argmax(-1) + 1, 0)
    assert (ranks == expected).all()
    assert spec["sought"]["ranks"] is None
    layer, position = spec["start"]
    assert expected[layer, position] == expected[expected > 0].min()


def test_a_word_may_be_given_as_a_token_id():
    lens = told()
    one = int(lens["token_id"][1, 2, 0])
    spec = payload(viz.lens(lens, words=[one]))
    assert [spec["ids"][member] for member in spec["sought"]["members"]] == [one]
    assert spec["sought"]["name"] == plain(lens["word"].values[1, 2, 0])


def test_the_text_says_where_the_word_ranks_best():
    lens = told(n_words=30)
    lens["word"][2, 5, 0], lens["token_id"][2, 5, 0] = " dog", 999
    lens["word"][1, 0, 2], lens["token_id"][1, 0, 2] = " dog", 999
    seen = viz.lens(lens, picture(), words=["dog"]).alt
    assert "“dog” ranks best, number 1, at layer 4, image row 1, col 2" in seen
    assert "best word of 1 of 13 positions" in seen
    assert "position 6" in seen
    assert "layer 4, position 6 · “<image>”" in viz.lens(lens, words=["dog"]).alt


def test_a_word_that_is_never_said_is_an_answer_too():
    figure = viz.lens(told(), picture(), words=["unicorn"])
    assert "“unicorn” is nowhere among the 3 best words" in figure.alt
    assert figure.png.startswith(b"\x89PNG")


def test_without_a_word_the_text_names_the_most_certain_cell():
    lens = told()
    lens["probability"][3, 12, 0] = 0.997
    word = plain(lens["word"].values[3, 12, 0])
    assert f"Most certain: “{word}”, 99.7 %, at layer 5, position 13" in viz.lens(
        lens
    ).alt.replace("\N{LINE SEPARATOR}", "")


def ranks_of(lens, low=1):
    values = np.arange(low, low + 4 * 13).reshape(4, 13) * 1.0
    return xr.DataArray(
        values,
        dims=("layer", "position"),
        coords={"layer": lens["layer"], "position": lens["position"].values},
    )


def test_given_ranks_reach_the_page():
    lens = told()
    ranks = ranks_of(lens)
    ranks[0, 3] = np.nan
    spec = payload(viz.lens(lens, words=["red"], ranks=ranks.T))
    found = whole(spec["sought"]["ranks"], 4, 13)
    assert (found == np.nan_to_num(ranks.values)).all()
    assert spec["sought"]["deepest"] == 52
    assert spec["start"] == [0, 0]
    counted = ranks_of(lens, low=0).assign_attrs(units="tokens above")
    spec = payload(viz.lens(lens, words=["red"], ranks=counted))
    assert (whole(spec["sought"]["ranks"], 4, 13) == counted.values + 1).all()


def test_an_answers_track_serves_as_ranks(demo):
    scene = mv.scenes.sample(seed=3, n=1)
    prompt = demo.prompt("how many objects are there ?", scene.image)
    lens = mv.logit_lens(demo, prompt, at="last", topk=4)
    track = mv.answer_track(demo, prompt, {"it": "one", "not": "two"})
    spec = payload(viz.lens(lens, ranks=track["rank"].sel(answer="it")))
    ranks = whole(spec["sought"]["ranks"], lens.sizes["layer"])
    above = track["rank"].sel(answer="it").values
    assert (ranks == above + 1).all()
    assert spec["sought"]["name"] == "one"
    for layer, row in enumerate(lens["word"].values[:, 0]):
        place = list(row).index("one") if "one" in row else None
        assert place is None or place == above[layer]
    with pytest.raises(ResultError, match=r"Select one answer: ranks\.sel"):
        viz.lens(lens, ranks=track["rank"])


def test_ranks_of_other_places_are_refused():
    lens = told()
    ranks = ranks_of(lens)
    moved = ranks.assign_coords(position=ranks["position"] + 1)
    with pytest.raises(ResultError, match=r"number 0: 2 and 1\. Ask both"):
        viz.lens(lens, ranks=moved)
    with pytest.raises(
        ResultError, match=r"of 3 layers and the lens of 4.* 2: 5 and 4"
    ):
        viz.lens(lens, ranks=ranks.isel(layer=[0, 1, 3]))
    with pytest.raises(
        ResultError, match=r"12 positions and the lens of 13.*none and 13"
    ):
        viz.lens(lens, ranks=ranks.isel(position=slice(12)))
    for bad in (-ranks, ranks + 0.5, ranks * 0):
        with pytest.raises(ResultError, match="ranks are whole numbers, 1 the best"):
            viz.lens(lens, ranks=bad)


# --- what is no lens ------------------------------------------------------------------


def test_what_is_no_lens_is_refused():
    lens = told()
    with pytest.raises(ResultError, match=r"lacks \['token_id'\].*mv\.logit_lens"):
        viz.lens(lens.drop_vars("token_id"))
    with pytest.raises(ResultError, match=r"over \('position', 'k'\).*sel\(layer=\[8"):
        viz.lens(lens.isel(layer=0))
    with pytest.raises(ResultError, match="the lens is empty"):
        viz.lens(lens.isel(position=[]))
    with pytest.raises(ResultError, match="no finite probability"):
        viz.lens(lens.assign(probability=lens["probability"] * np.nan))
    with pytest.raises(ArgumentError, match="words is"):
        viz.lens(lens, words="red")


def test_a_picture_that_cannot_be_drawn_on_is_refused():
    lens = told()
    with pytest.raises(ResultError, match="no picture is given"):
        viz.lens(lens, outline=BOX)
    with pytest.raises(ResultError, match="no picture is given"):
        viz.lens(lens, grid=1)
    with pytest.raises(ResultError, match="none is number 1"):
        viz.lens(lens, picture(), grid=1)
    with pytest.raises(ResultError, match="lacks 1 of the image's 9 positions"):
        viz.lens(lens.isel(position=slice(1, None)), picture())


# --- stills ---------------------------------------------------------------------------


def shares(spec, ranks):
    """Oracle: tints in equal steps of the rank's logarithm."""
    deepest = spec["sought"]["deepest"]
    return [1 - math.log(r) / math.log(deepest) if r else 0 for r in ranks]


def test_tints_fall_with_the_ranks_logarithm():
    from mechvlm.viz.lenses.words import said_by

    lens = told()
    said = said_by(lens, ["red"], ranks_of(lens))
    spec = payload(viz.lens(lens, words=["red"], ranks=ranks_of(lens)))
    expected = shares(spec, range(1, 53))
    np.testing.assert_allclose(said.share.ravel(), expected, atol=1e-12)
    assert (expected[0], expected[-1]) == (1, 0)


@pytest.mark.parametrize("side", [0, SIDE, 24])
def test_stills_show_the_word_that_is_sought(tmp_path, side):
    lens = told(side=side, grids=int(side > 0))
    image = picture() if side else None
    red, other, again = (
        viz.lens(lens, image, words=[w]).png for w in ("red", "w3", "red")
    )
    assert red != other
    assert red == again
    figure = viz.lens(lens, image)
    light, dark = (
        figure.save(tmp_path / f"{theme.name}.png", theme=theme)
        for theme in (viz.LIGHT, viz.DARK)
    )
    for file, ground in ((light, (255, 255, 255)), (dark, (21, 23, 27))):
        with Image.open(file) as drawn:
            assert drawn.convert("RGB").getpixel((2, 2)) == ground
