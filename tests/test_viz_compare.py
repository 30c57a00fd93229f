"""Two results side by side: one scale, the difference, and what cannot be compared."""

import json
import re

import numpy as np
import pytest
import xarray as xr
from payloads import unpacked
from PIL import Image

from mechvlm import viz
from mechvlm.errors import ResultError

HOSTILE = "</script><script>window.ran=1</script>"


def heads(seed, layers=4, n=5, **attrs):
    values = np.random.default_rng(seed).normal(0, 1, (layers, n))
    return xr.DataArray(
        values,
        dims=("layer", "head"),
        coords={"layer": range(layers), "head": range(n)},
        attrs={"units": "logit difference", "long_name": "Head patching"} | attrs,
    )


def patching(tokens=("a", HOSTILE, "b"), n_image=20, seed=0):
    words = [*tokens[:1], *["<image>"] * n_image, *tokens[1:]]
    groups = ["bos", *["image"] * n_image, *["query"] * (len(tokens) - 1)]
    return xr.DataArray(
        np.random.default_rng(seed).normal(0, 1, (3, len(words))),
        dims=("layer", "position"),
        coords={
            "layer": range(3),
            "position": range(len(words)),
            "token": ("position", words),
            "group": ("position", groups),
        },
        attrs={"units": "recovery"},
    )


def cuts(seed=0, names=("image->last", "query->last")):
    values = np.random.default_rng(seed).normal(-20, 9, (len(names), 4))
    return xr.DataArray(
        values,
        dims=("cut", "layer"),
        coords={"cut": list(names), "layer": range(4)},
        attrs={"units": "%"},
    )


def payload(figure):
    found = re.search(r'<script type="application/json">(.*?)</script>', figure.html)
    return json.loads(found[1])


def values(panel, shape):
    return unpacked(panel["values"]).reshape(shape)


@pytest.mark.parametrize("stronger", [0.3, 3])
def test_both_sides_have_one_scale_and_the_difference_its_own(stronger):
    left, right = heads(0), stronger * heads(1)
    spec = payload(viz.compare(left, right, names=("clean", "control")))
    first, second, third = spec["panels"]
    assert first["scale"] == second["scale"]
    most = max(abs(left.values).max(), abs(right.values).max())
    assert (first["scale"]["low"], first["scale"]["high"]) == (-most, most)
    apart = left.values - right.values
    assert third["scale"]["high"] == abs(apart).max()
    assert third["scale"]["high"] != first["scale"]["high"]
    for panel, expected in ((first, left), (second, right), (third, apart)):
        found = values(panel, (4, 5))
        np.testing.assert_allclose(found, np.asarray(expected), atol=2e-4)


def test_one_sided_results_share_a_one_sided_scale():
    left, right = abs(heads(0)), abs(heads(1)) / 9
    first, second, third = payload(viz.compare(left, right))["panels"]
    assert first["scale"]["low"] == second["scale"]["low"] == 0
    assert second["scale"]["high"] == left.values.max()
    assert third["scale"]["low"] == -third["scale"]["high"]


def test_the_data_are_both_and_their_difference():
    left, right = heads(0, model="demo", prompt="x"), heads(1, model="demo", prompt="y")
    data = viz.compare(left, right, names=("clean", "control")).data
    np.testing.assert_array_equal(data["difference"], left.values - right.values)
    np.testing.assert_array_equal(data["right"], right.values)
    assert data.attrs["model"] == "demo"
    assert "prompt" not in data.attrs, "of one of them only"
    assert data.attrs["long_name"] == "Head patching: clean and control"


def test_the_second_may_have_its_dimensions_turned():
    left, right = heads(0), heads(1)
    turned = viz.compare(left, right.transpose())
    assert payload(turned) == payload(viz.compare(left, right))


def test_the_text_says_where_they_differ_most():
    left, right = heads(0), heads(0)
    right[2, 3] = left[2, 3] + 1.5
    about = viz.compare(left, right, names=("clean", "control")).alt
    assert "They differ most at layer 2, head 3: " in about
    assert about.endswith("a difference of \N{MINUS SIGN}1.5.")
    assert "equal in every cell" in viz.compare(left, left).alt


def test_few_lines_over_layers_share_one_plot():
    left, right = cuts(0), cuts(1)
    spec = payload(viz.compare(left, right, names=("clean", "control")))
    both, apart = spec["panels"]
    assert both["lines"]["labels"] == [
        f"{cut}→last · {name}"
        for cut in ("image", "query")
        for name in ("clean", "control")
    ]
    expected = [left.values[0], right.values[0], left.values[1], right.values[1]]
    np.testing.assert_allclose(values(both, (4, 4)), expected, atol=2e-3)
    difference = left.values - right.values
    np.testing.assert_allclose(values(apart, (2, 4)), difference, atol=2e-3)


def test_a_lone_line_and_intervals():
    lone = cuts(0)[0].drop_vars("cut")
    ends = {"low": lone - 1, "high": lone + 1}
    one, other = lone.assign_coords(ends), (lone * 2).assign_coords(ends)
    spec = payload(viz.compare(one, other, names=("a", "b")))
    assert spec["panels"][0]["lines"]["labels"] == ["a", "b"]
    assert len(spec["panels"][0]["bands"]) == 2
    assert spec["panels"][1]["lines"]["labels"] == ["a \N{MINUS SIGN} b"]
    assert spec["panels"][1]["bands"] == []


def test_many_lines_become_maps():
    many = cuts(0, [f"cut {i}" for i in range(5)])
    assert payload(viz.compare(many, many * 2))["kind"] == "map"


def test_other_positions_are_refused_with_what_to_do_instead():
    left = patching()
    with pytest.raises(
        ResultError,
        match=r"position number 22 differs: its token is 'b' in 'a' and 'c'",
    ):
        viz.compare(left, patching(("a", HOSTILE, "c")), names=("a", "text"))
    with pytest.raises(ResultError, match=r"number 17 differs: its token.*groupby"):
        viz.compare(left, patching(n_image=16))
    with pytest.raises(ResultError, match=r"layer and head, or average groups first"):
        viz.compare(left, left.isel(position=slice(9)))
    with pytest.raises(ResultError, match=r"layer number 1 differs.*'1'.*'2'"):
        viz.compare(left, left.isel(layer=[0, 2, 2]))


def test_what_has_no_common_scale_is_refused():
    left = heads(0)
    with pytest.raises(ResultError, match=r"'logit difference' and .* 'probability'"):
        viz.compare(left, left.assign_attrs(units="probability"))
    with pytest.raises(ResultError, match=r"\('layer', 'head'\).*\('layer', 'cut'\)"):
        viz.compare(left, left.rename(head="cut"))
    with pytest.raises(ResultError, match="one or two dimensions can be compared"):
        viz.compare(left.expand_dims("run"), left.expand_dims("run"))
    with pytest.raises(ResultError, match="both results are called 'x'"):
        viz.compare(left, left, names=("x", "x"))
    empty = left.where(left["head"] < 2)
    with pytest.raises(ResultError, match="no cell is finite both in"):
        viz.compare(empty, left.where(left["head"] >= 2))


def test_cells_of_one_side_only_have_no_difference():
    left, right = heads(0), heads(1)
    left[0, 0] = np.nan
    figure = viz.compare(left, right)
    assert np.isnan(figure.data["difference"].values[0, 0])
    assert figure.png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("left", "right"),
    [(heads(0), heads(1)), (patching(), patching(seed=1)), (cuts(0), cuts(1))],
    ids=["beside", "stacked", "lines"],
)
def test_stills_show_both_in_both_themes(tmp_path, left, right):
    figure = viz.compare(left, right, names=("clean", HOSTILE))
    fragment = figure.fragment()
    assert fragment.count("<script") == fragment.count("</script>") == 1
    assert figure.png != viz.compare(left, left, names=("clean", HOSTILE)).png
    for theme, ground in ((viz.LIGHT, (255, 255, 255)), (viz.DARK, (21, 23, 27))):
        file = figure.save(tmp_path / f"{theme.name}.png", theme=theme)
        with Image.open(file) as drawn:
            assert drawn.convert("RGB").getpixel((2, 2)) == ground
