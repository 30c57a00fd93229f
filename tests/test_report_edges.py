"""Sentences of a report where nothing happens, signs turn, and things are few."""

import numpy as np
import pytest
import xarray as xr
from test_report_of_results import plain

from mechvlm.report import figures_of, report
from mechvlm.report.phrases import percent
from mechvlm.report.rules import circuits
from mechvlm.viz import lines


def said(result):
    return plain(" ".join(shown.sentence for shown in figures_of(result)))


def patching(values, name="recovery", **attrs):
    attrs = {"site": "resid_pre", "direction": "denoise"} | attrs
    coords = {"set": ["image", "last"], "layer": [0, 1, 2]}
    return xr.DataArray(values, coords, ("set", "layer"), name=name, attrs=attrs)


def dataset(variables, coords, **attrs):
    return xr.Dataset(variables, coords, attrs)


def test_the_largest_is_told_of_restoring_and_the_smallest_of_corrupting():
    values = [[0.1, 0.25, -0.75], [0.5, 0.125, 0.0]]
    best = said(patching(values))
    assert "Most comes back with “last”, layer 0 restored: 0.5 of the gap" in best
    assert "“last” does so in layer 0" in best
    least = said(patching(values, direction="noise"))
    assert "with “image”, layer 2 corrupted: -0.75 of the gap" in least


@pytest.mark.parametrize("top", [0.0, -0.25])
def test_nothing_that_comes_back_is_not_called_most(top):
    values = np.full((2, 3), -1.0)
    values[1, 1] = top
    text = said(patching(values))
    assert "Nothing comes back: even at best, with “last”, layer 1" in text
    assert f"{top:.3g} of the gap" in text
    assert "Most comes back" not in text
    assert "No set brings back half alone" in text


def test_layers_with_a_hole_are_counted():
    text = said(patching([[0.6, 0.1, 0.7], [np.nan, 0.4, 0.3]]))
    assert "“image” does so in 2 of the layers 0 to 2" in text
    assert "“last” does" not in text


def paths(values):
    coords = {"receiver": ["logits"], "layer": [0, 1], "head": [0, 1]}
    dims = ("receiver", "layer", "head")
    return xr.DataArray([values], coords, dims, name="recovery")


def test_a_path_that_hinders_is_the_strongest_too():
    text = said(paths([[0.25, 0.0], [-0.5, np.nan]]))
    assert "from layer 1, head 0 to logits moves most: -0.5 of the gap" in text
    assert said(paths([[0.0, 0.0], [0.0, 0.0]])) == (
        "No path moves anything: every effect is 0."
    )


def scores(values):
    group = ("position", ["image", "image", "query"])
    attrs = {"method": "gradient times input", "units": "nats"}
    return xr.DataArray(
        values, {"group": group}, "position", name="attribution", attrs=attrs
    )


def test_a_group_adds_up_with_its_signs():
    text = said(scores([0.5, 0.25, -2.0]))
    assert "farthest from 0 is -2 nats, at position 2" in text
    assert "Together the query positions add -2 nats" in text
    assert "Every score is 0" in said(scores([0.0, 0.0, 0.0]))


def described(f1):
    coords = {"measure": ["f1"], "flow": ["image->text"], "cut": ["none", "0+", "4+"]}
    dims = ("measure", "flow", "cut")
    ends = {end: (dims, np.full((1, 1, 3), np.nan)) for end in ("low", "high")}
    each = {"of_prompt": ("prompt", [1.0, 2.0])}
    return dataset({"mean": (dims, [[f1]]), **ends, **each}, coords)


def test_descriptions_that_suffer_from_no_cut():
    text = said(described([0.8, 0.25, 0.5]))
    assert "Of 2 descriptions, the objects suffer most with" in text
    assert "cut 0+: F1 0.25, against 0.8 with nothing cut" in text
    for f1 in ([0.8, 0.8, 0.9], [0.8, np.nan, 0.8]):
        assert said(described(f1)) == (
            "Of 2 descriptions, no cut costs objects: F1 is 0.8 with nothing cut and no"
            " lower with any."
        )


def named(hit):
    rates = ("hit_rate", "control_rate", "background_rate")
    dims = ("object", "layer")
    values = {name: (dims, [[0.0, 0.0], [0.0, 0.5]]) for name in rates[1:]}
    share = ("estimate", [float(np.mean(np.max(hit, axis=1) > 0)), 0.0, 1.0])
    return dataset(
        values | {"hit_rate": (dims, hit), "share_named": share},
        {"estimate": ["mean", "low", "high"], "layer": [0, 1]},
        n_objects=2,
    )


def test_objects_that_no_token_names():
    text = said(named([[0.0, 0.5], [0.0, 0.25]]))
    assert "100 % of 2 objects are named" in text
    assert "is largest at layer 1: 38 %, of as many background tokens 25 %" in text
    assert said(named([[0.0, 0.0], [0.0, 0.0]])) == (
        "0 % of 2 objects are named by a token of their own at some layer."
    )


def minimal(losses):
    coords = {"part": [f"L0.H{i}" for i in range(len(losses))]}
    return dataset({"loss": ("part", losses)}, coords)


def test_a_part_by_itself_is_not_most_and_least():
    text = said(minimal([0.5, -0.25]))
    assert "Without L0.H0 most is lost, 0.5 of the gap" in text
    assert "without L0.H1 least, -0.25" in text
    for alike in ([0.5], [0.5, 0.5]):
        text = said(minimal(alike))
        assert text.startswith("Without L0.H0 0.5 of the gap is lost")
        assert "least" not in text


def flows(effect):
    dims = ("target", "source", "band")
    coords = {"target": ["last"], "source": ["image"], "band": ["all"]}
    whole = {"effect": effect, "excess": effect, "beyond": 1.0}
    made = {name: (dims, [[[value]]]) for name, value in whole.items()}
    made |= {"kept": (dims, [[[True]]]), "uncontrolled": (dims, [[[False]]])}
    return made, coords


def test_a_cut_that_costs_is_not_denied_twice(monkeypatch):
    """The effect is a change: -40 % costs 40 %, and does not cost -40 %."""
    drawn = lines(patching(np.eye(2, 3)))
    monkeypatch.setattr(circuits, "flow", lambda _: drawn)
    (shown,) = circuits.flowing(dataset(*flows(-40.0)), None)
    assert plain(shown.sentence) == (
        "1 cut of 1 cost more than random ones of their size. Of these image → last in"
        " the band “all” costs most: it changes the answer's probability by -40 % of"
        " what it was."
    )


def tracked(ranks):
    values = {"rank": [ranks], "probability": [np.linspace(0, 1, len(ranks))]}
    return dataset(
        {name: (("answer", "layer"), rows) for name, rows in values.items()},
        {"answer": ["red"], "layer": [1, 3, 5, 7][-len(ranks) :]},
    )


def test_an_answer_is_first_from_where_it_stays():
    assert "“red” is first from layer 7 on (100 %" in said(tracked([2, 0, 2, 0]))
    assert "“red” is first from layer 3 on" in said(tracked([0, 0, 0]))
    assert "“red” ends with 4 tokens above it (100 %)" in said(tracked([0, 0, 4]))
    assert "ends with 1 token above" in said(tracked([0, 0, 1]))


def test_numbers_that_are_all_alike_have_no_farthest():
    text = said(xr.DataArray([0.5, 0.5], dims="layer", attrs={"units": "nats"}))
    assert text == "Every value is 0.5 nats."


def test_a_share_of_nothing_has_no_sign():
    assert [plain(percent(x)) for x in (-0.004, -0.006, -0.0)] == ["0 %", "-1 %", "0 %"]


def test_the_answer_belongs_to_the_first_of_several_questions(tmp_path):
    one, two = (patching(np.eye(2, 3), prompt=f"what is {x} ?") for x in "ab")
    text = report([one, two], tmp_path / "x.html", answer="red").read_text("utf-8")
    assert "<dt>Questions</dt><dd>what is a ?</dd><dd>what is b ?</dd>" in text
    assert "<dt>Answer to the first</dt><dd>red</dd>" in text
