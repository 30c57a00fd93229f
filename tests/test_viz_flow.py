"""The picture of a flow graph: its geometry by hand, its words, and what it refuses."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import xarray as xr
from test_viz import HOSTILE

from mechvlm import viz
from mechvlm.errors import ResultError
from mechvlm.viz.graphs.ribbons import Ribbon, labelled, ribbons

GROUPS = ("object", "query", "last")
DIMS = ("target", "source", "band")


def flows(cuts, *, groups=GROUPS, bands=("early", "late"), n_items=8, **attrs):
    """A made-up flow graph; `cuts`: (source, target, band) -> (effect, standing)."""
    shape = (len(groups), len(groups), len(bands))
    arrays = {
        name: np.full(shape, np.nan)
        for lead in ("effect", "control", "beyond")
        for name in (lead, f"{lead}_low", f"{lead}_high")
    }
    arrays |= {name: np.zeros(shape, bool) for name in ("kept", "uncontrolled")}
    arrays |= {name: np.zeros(shape, int) for name in ("n", "n_control")}
    for (source, target, band), (effect, standing) in cuts.items():
        at = groups.index(target), groups.index(source), bands.index(band)
        arrays["effect"][at], arrays["n"][at] = effect, n_items
        arrays["effect_low"][at], arrays["effect_high"][at] = effect - 2, effect + 3
        if standing in ("kept", "uncontrolled"):
            arrays[standing][at] = True
        if standing != "uncontrolled":
            arrays["n_control"][at] = n_items
            arrays["control"][at], arrays["control_low"][at] = -0.5, -0.75
            arrays["control_high"][at] = -0.25
            arrays["beyond"][at] = effect + 1
    coords = {"target": list(groups), "source": list(groups), "band": list(bands)}
    coords["first"] = ("band", [3 * i for i in range(len(bands))])
    coords["last"] = ("band", [3 * i + 2 for i in range(len(bands))])
    result = xr.Dataset(
        {name: (DIMS, values) for name, values in arrays.items()}, coords
    ).assign_attrs({"model": "made", "least": 1.0, **attrs})
    size = np.array([[9, 6, 1], [7, 6, 1]])[:, : len(groups)]
    if len(groups) == 3:
        result["size"] = (("item", "source"), size)
    return result


PLAIN = {
    ("object", "query", "early"): (-80.0, "kept"),
    ("query", "last", "late"): (-40.0, "kept"),
    ("object", "last", "late"): (-20.0, "uncontrolled"),
    ("object", "object", "early"): (-10.0, "other"),
    ("query", "query", "early"): (5.0, "other"),
    ("last", "last", "early"): (-0.5, "other"),
}


def spec_of(figure):
    return json.loads(json.dumps(figure.spec))


def ribbon_of(figure, source, target):
    groups = [group["name"] for group in spec_of(figure)["groups"]]
    (found,) = (
        each
        for each in spec_of(figure)["ribbons"]
        if (each["source"], each["target"])
        == (groups.index(source), groups.index(target))
    )
    return found


# -- geometry ------------------------------------------------------------------------


def test_ribbons_are_as_wide_as_effects():
    drawn = spec_of(viz.flow(flows(PLAIN)))["ribbons"]
    assert len(drawn) == 5
    for each in drawn:
        assert each["width"] == pytest.approx(0.16 * abs(each["effect"]) / 80, abs=2e-6)


def test_ribbons_stand_side_by_side_at_their_nodes():
    """At [object, early]: 10 % to itself, 80 % to the right; widths 0.02 and 0.16."""
    figure = viz.flow(flows(PLAIN))
    own, right = (
        ribbon_of(figure, "object", "object"),
        ribbon_of(figure, "object", "query"),
    )
    assert own["start"] == pytest.approx(0.5 - 0.09 + 0.01)
    assert right["start"] == pytest.approx(0.5 + 0.09 - 0.08)
    assert own["stop"] == pytest.approx(0.5)
    assert right["stop"] == pytest.approx(1.5 - 0.085 + 0.08)
    assert (own["band"], right["band"]) == (0, 0)


def test_many_ribbons_at_a_node_are_pressed_alike():
    n = 8
    edges = [Ribbon(0, i, 0, "kept", -100.0) for i in range(n)]
    found = ribbons(edges, full=100.0)
    assert sum(each.width for each in found) == pytest.approx(0.62)
    assert len({round(each.width, 9) for each in found}) == 1
    starts = [each.start for each in found]
    assert starts == sorted(starts)
    assert all(abs(start - 0.5) <= 0.31 for start in starts)


def test_written_effects_do_not_lie_on_each_other():
    edges = [Ribbon(0, i, 0, "kept", -10.0 - i) for i in range(5)]
    edges += [Ribbon(0, 1, 1, "kept", -1.0), Ribbon(0, 4, 0, "other", -99.0)]
    found = labelled(ribbons(edges, full=99.0))
    assert {each.standing for each in found} == {"kept"}
    assert found[0].target == 4, "the strongest comes first"
    assert sum(each.band == 1 for each in found) == 1
    for i, one in enumerate(found):
        for other in found[:i]:
            assert one.band != other.band or abs(one.middle - other.middle) > 0.75


# -- words ---------------------------------------------------------------------------


def test_what_is_drawn_is_what_the_result_keeps():
    drawn = spec_of(viz.flow(flows(PLAIN)))["ribbons"]
    assert {(d["name"], d["standing"]) for d in drawn} == {
        ("object → query, early (layers 0-2)", "kept"),
        ("query → last, late (layers 3-5)", "kept"),
        ("object → last, late (layers 3-5)", "uncontrolled"),
        ("object → object, early (layers 0-2)", "other"),
        ("query → query, early (layers 0-2)", "other"),
    }


def test_uncontrolled_cuts_can_be_left_out_and_are_counted():
    figure = viz.flow(flows(PLAIN), which="kept")
    assert "uncontrolled" not in {d["standing"] for d in spec_of(figure)["ribbons"]}
    assert "not drawn: 1 without random cuts of their size" in figure.spec["notes"]
    assert "not drawn: 1 of less than 1 %" in figure.spec["notes"]


def test_the_notes_count_everything_that_was_tried():
    assert viz.flow(flows(PLAIN)).spec["notes"] == [
        "full: 2 that cost more than random cuts of their size",
        "striped: 1 without random cuts of their size, maybe chance",
        "faint: 2 not told from random cuts",
        "not drawn: 1 of less than 1 %",
    ]


def test_the_numbers_of_a_ribbon_are_those_of_the_result():
    made = ribbon_of(viz.flow(flows(PLAIN)), "query", "last")
    wanted = {
        "effect": -40.0, "effect_low": -42.0, "effect_high": -37.0, "control": -0.5,
        "control_low": -0.75, "control_high": -0.25, "beyond": -39.0, "n": 8,
        "n_control": 8, "beyond_low": None,
    }  # fmt: skip
    assert {name: made[name] for name in wanted} == wanted


def test_the_text_names_the_strongest_edges():
    figure = viz.flow(flows(PLAIN))
    assert "2 edges of 6 cuts" in figure.alt
    strongest = figure.alt.partition("Strongest:")[2]
    assert strongest.startswith(
        " object → query, early (layers 0-2): \N{MINUS SIGN}80 %; query → last"
    )
    assert "object → last" not in strongest, "it may be chance"


def test_groups_have_their_sizes_and_losses_their_legend():
    spec = viz.flow(flows(PLAIN)).spec
    assert spec["groups"] == [
        {"name": "object", "size": "7-9"},
        {"name": "query", "size": "6"},
        {"name": "last", "size": "1"},
    ]
    assert spec["marks"] == (-50.0, -20.0, -10.0, 5.0)


def test_a_graph_without_an_edge_says_so():
    figure = viz.flow(flows({("object", "last", "late"): (-0.2, "other")}))
    assert "No cut is an edge." in figure.alt
    assert spec_of(figure)["ribbons"] == []
    assert "full: 0 that cost more" in figure.spec["notes"][0]
    assert len(figure.png) > 5_000


def test_the_result_itself_is_not_changed():
    made = flows(PLAIN)
    before = dict(made.attrs)
    figure = viz.flow(made)
    assert made.attrs == before
    assert figure.data["effect"].identical(made["effect"])


def test_hostile_names_are_words():
    cuts = {(HOSTILE[1], HOSTILE[3], HOSTILE[0]): (-50.0, "kept")}
    names = {"groups": HOSTILE, "bands": HOSTILE[:2]}
    figure = viz.flow(flows(cuts, **names, model=HOSTILE[1]))
    assert "<script>window" not in figure.html
    assert figure.html.count("</script>") == figure.html.count("<script")
    ET.fromstring(figure.svg)


# -- refusals ------------------------------------------------------------------------


def test_other_results_are_refused():
    with pytest.raises(ResultError, match=r"has no \['effect', .* flow_graph returns"):
        viz.flow(xr.Dataset({"drop": ("layer", [1.0])}))


def test_a_graph_that_measured_nothing_is_refused():
    with pytest.raises(ResultError, match="no cut of this flow graph was measured"):
        viz.flow(flows({}))


def test_dimensions_may_come_in_any_order():
    made = flows(PLAIN)
    turned = made.transpose("band", "target", "source", ...)
    assert viz.flow(turned).spec == viz.flow(made).spec
