"""Flow graphs of planted circuits: the edges that hand arithmetic says, no others."""

from functools import cache

import networkx as nx
import numpy as np
import pytest
import xarray as xr

import mechvlm as mv
from mechvlm import Grouped, Positions
from mechvlm.errors import (
    InterventionError,
    LayerError,
    MechVLMWarning,
    MetricError,
    ResultError,
)
from mechvlm.models import planted
from mechvlm.models.planted import CHANCE, CIRCUITS, SURE, TOLERANCE, WRONG, scene

PERCENT = 100 * TOLERANCE / SURE
LOST = 100 * (CHANCE / SURE - 1)

# Objects of three cells at least: a draw of two positions never cuts one off.
CELLS = ((5, 6, 9), (0, 1, 4), (12, 13, 14, 15), (3, 7, 11), (8, 9, 10), (1, 2, 5, 6))

OBJECT_TO_QUERY = ("object", "query")
QUERY_TO_LAST = ("query", "last")
OBJECT_TO_LAST = ("object", "last")

# What each circuit reads in which layer, as said in planted/circuits.py.
READS = {
    "relay": {(*OBJECT_TO_QUERY, 0), (*QUERY_TO_LAST, 2)},
    "direct": {(*OBJECT_TO_LAST, 1)},
    "enrich": {(*OBJECT_TO_LAST, 1)},
    "too_late": set(),
}


@cache
def hooked(circuit, sink=True):
    return mv.HookedVLM(*planted.build(circuit, sink=sink))


def digit(vlm, content=0, cells=CELLS[0], answer=None, id=""):
    prompt = vlm.prompt(
        planted.QUESTION, scene(content, cells=cells), system=planted.SYSTEM
    )
    image = prompt.layout["image"]
    at = Positions.of(min(image) + cell for cell in cells)
    groups = {"object": at, "background": image - at, "query": "query", "last": "last"}
    return Grouped(prompt, groups, answer or planted.ANSWERS[content], id)


def digits(vlm, n=6):
    return [digit(vlm, i % 3, CELLS[i], id=f"digit {i}") for i in range(n)]


@cache
def flows(circuit, n=6, n_random=19):
    vlm = hooked(circuit)
    return mv.flow_graph(vlm, digits(vlm, n), n_random=n_random, progress=False)


def readings(result):
    """Kept edges as (source, target, first layer of the band)."""
    return {
        (edge.source[0], edge.target[0], int(result["first"].sel(band=edge.band)))
        for edge in mv.flow_edges(result)
    }


# --- the planted circuits -------------------------------------------------------------


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_the_kept_edges_are_the_circuit(circuit):
    result = flows(circuit)
    assert readings(result) == READS[circuit]
    for edge in mv.flow_edges(result):
        assert edge.effect == pytest.approx(LOST, abs=PERCENT)
        assert edge.excess == pytest.approx(LOST, abs=PERCENT)
        assert edge.low <= edge.effect <= edge.high < -1
        assert edge.n == 6
    clean = CHANCE if circuit == "too_late" else SURE
    assert result["clean"].values == pytest.approx([clean] * 6, abs=TOLERANCE)
    assert result.attrs["n_right"] == (2 if circuit == "too_late" else 6)


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_every_other_cut_and_every_draw_costs_nothing(circuit):
    result = flows(circuit)
    wanted = np.zeros((4, 4, 3))
    groups = list(result["target"].values)
    for source, target, layer in READS[circuit]:
        wanted[groups.index(target), groups.index(source), layer] = LOST
    effect = result["effect"].values
    known = np.isfinite(effect)
    np.testing.assert_allclose(effect[known], wanted[known], atol=PERCENT)
    assert known.sum() == result.attrs["n_cuts"] == 11 + 11 + 4
    for name in ("item_control", "control"):
        assert float(abs(result[name]).max()) < PERCENT
    # Three sources of the last position in three bands; in two bands the question's
    # from the object and from itself, and the object's from itself.
    assert int(result["item_control"].notnull().any("item").sum()) == 3 * 3 + 3 * 2
    logs = result["item_log_effect"].values
    np.testing.assert_allclose(
        100 * np.expm1(logs), result["item_effect"].values, rtol=1e-9
    )
    ln = np.log(CHANCE / SURE)
    assert np.nanmin(logs) == pytest.approx(ln if READS[circuit] else 0, abs=0.01)


@pytest.mark.parametrize(
    ("circuit", "bands", "wanted"),
    [
        ("relay", {"a": range(1), "b": range(1, 3)}, {("a", "b"), ("b", "end")}),
        ("relay", {"all": range(3)}, {("all", "end")}),
        ("relay", {"middle": range(1, 2)}, set()),
        ("relay", {"first": range(1), "last": range(2, 3)}, {("first", "last")}),
        ("direct", {"a": range(2), "b": range(2, 3)}, {("a", "b")}),
        ("enrich", {"a": range(1), "b": range(1, 3)}, {("b", "end")}),
    ],
)
def test_edges_move_with_the_bands(circuit, bands, wanted):
    vlm = hooked(circuit)
    result = mv.flow_graph(vlm, digits(vlm, 2), bands=bands, n_random=19)
    edges = mv.flow_edges(result)
    assert {(edge.source[1], edge.target[1]) for edge in edges} >= wanted
    assert len(edges) == sum(
        layer in band for *_, layer in READS[circuit] for band in bands.values()
    )
    assert result["first"].values.tolist() == [band[0] for band in bands.values()]
    assert result["last"].values.tolist() == [band[-1] for band in bands.values()]


def test_effects_are_those_of_knockout_windows():
    """The same cuts, asked for one prompt and one window at a time."""
    vlm = hooked("relay")
    asked = digit(vlm, 1, CELLS[3])
    bands = {"0-1": range(2), "2": range(2, 3)}
    result = mv.flow_graph(vlm, [asked], bands=bands)
    ran = 0
    for target in asked.groups:
        for source in asked.groups:
            found = result["item_effect"].sel(target=target, source=source)[0]
            if np.isnan(found).all():
                continue
            drop = mv.knockout_windows(
                vlm,
                asked.prompt,
                {"cut": (asked.groups[target], asked.groups[source])},
                answer="one",
                windows=bands,
            )
            found, drop = found.values, drop.values
            known = np.isfinite(found)
            np.testing.assert_allclose(found[known], drop[0][known], atol=1e-3)
            assert (drop[0][~known] == 0).all(), "what is not run changes nothing"
            ran += int(known.sum())
    assert ran == 11 + 4


def test_bands_are_four_at_most_and_cover_the_model(demo):
    from mechvlm.analyses.flow_graph.groups import bands_of

    assert bands_of(3, None) == {str(i): range(i, i + 1) for i in range(3)}
    eight = {
        "0-1": range(2),
        "2-3": range(2, 4),
        "4-5": range(4, 6),
        "6-7": range(6, 8),
    }
    assert bands_of(8, None) == eight
    for n_layers in range(1, 90):
        bands = list(bands_of(n_layers, None).values())
        assert [layer for band in bands for layer in band] == list(range(n_layers))
        assert len(bands) == min(4, n_layers)


# --- what is kept ---------------------------------------------------------------------


def test_one_prompt_is_judged_by_rank_and_has_no_interval():
    result = flows("relay", 1, 20)
    assert readings(result) == READS["relay"]
    assert np.isnan(result["effect_low"]).all()
    rank = result["item_rank_p"][0]
    assert float(rank.sel(target="query", source="object", band="0")) == 1 / 21
    # The draws are as good as the cut where neither costs anything.
    assert float(rank.sel(target="query", source="object", band="1")) == 1


def test_a_cut_with_few_draws_has_no_control():
    """One of 19 positions: BOS, the question's two and itself left out, 15 others."""
    vlm = hooked("relay")
    asked = digit(vlm)
    small = Grouped(
        asked.prompt, {"few": Positions.of(1), "query": "query"}, "zero", "x"
    )
    result = mv.flow_graph(vlm, [small], n_random=40)
    at = {"item": "x", "target": "query", "source": "few", "band": "0"}
    assert result["status"].sel(at) == "no control"
    assert (result["pool"].sel(at), result["n_draws"].sel(at)) == ("-", 0)
    assert not result["kept"].any()
    assert not result["uncontrolled"].any(), "it costs nothing"


@pytest.mark.parametrize("n_items", [1, 6])
def test_fewer_draws_can_keep_no_edge(n_items):
    vlm = hooked("direct")
    asked = [digit(vlm, id=str(i)) for i in range(n_items)]
    with pytest.raises(MetricError, match="n_random=18: wanted 19 draws or more"):
        mv.flow_graph(vlm, asked, n_random=18)


def whole_image(vlm, id=""):
    asked = digit(vlm)
    groups = {"image": "image", "query": "query", "last": "last"}
    return Grouped(asked.prompt, groups, "zero", id)


@pytest.mark.parametrize("n", [1, 6])
def test_a_whole_image_is_uncontrolled_and_named(n):
    """The cut erases the answer, and no other 16 positions are left to compare with."""
    vlm = hooked("direct")
    asked = [whole_image(vlm, str(i)) for i in range(n)]
    said = r"^these cuts cost .*: image -> last in 1\. .*Part a .*knockout_windows"
    with pytest.warns(MechVLMWarning, match=said) as warned:
        result = mv.flow_graph(vlm, asked)
    assert len(warned) == 1
    cell = result.sel(source="image", target="last", band="1")
    assert (bool(cell["kept"]), bool(cell["uncontrolled"])) == (False, True)
    assert (cell["status"] == "no control").all()
    assert (int(cell["n"]), int(cell["n_control"])) == (n, 0)
    assert np.isnan([cell[name] for name in ("control", "excess", "beyond")]).all()
    assert result.attrs["n_uncontrolled"] == result["uncontrolled"].sum() == 1
    assert mv.flow_edges(result) == ()
    (edge,) = mv.flow_edges(result, which="all")
    assert (edge.source, edge.target) == (("image", "1"), ("last", "2"))
    assert (edge.controlled, edge.n, edge.n_control) == (False, n, 0)
    assert edge.effect == pytest.approx(LOST, abs=PERCENT)
    drawn = {
        which: mv.flow_networkx(result, which=which).edges for which in ("kept", "all")
    }
    assert (edge.source, edge.target) not in drawn["kept"]
    assert drawn["all"][edge.source, edge.target]["controlled"] is False


def test_draws_are_of_the_sources_own_kind_where_it_has_enough():
    """Object: 13 other cells; question: two of four words; background: none at all."""
    pool = flows("relay")["pool"]
    assert (pool.sel(source="object", target="last") == "own kind").all()
    assert (pool.sel(source="query", target="last") == "any").all()
    assert (pool.sel(source="background") == "-").all()
    assert set(np.unique(pool)) == {"-", "own kind", "any"}


def test_what_no_later_layer_reads_is_not_run():
    """In the last layer only the last position's row matters."""
    result = flows("relay")
    late = result["status"].sel(band="2")
    assert set(np.unique(late.sel(target="last"))) == {"measured", "no control"}
    others = late.drop_sel(target="last")
    assert set(np.unique(others)) == {"never reads", "cannot reach the answer"}
    assert (result["status"].sel(band=["0", "1"]) != "cannot reach the answer").all()
    effect = result["item_effect"].sel(band="2")
    assert np.isnan(effect.drop_sel(target="last")).all()


def test_a_cut_that_helps_is_no_edge():
    """The wrong answer gains by the same cut: from .017 to .250."""
    vlm = hooked("direct")
    asked = [digit(vlm, 0, CELLS[i], "one", str(i)) for i in range(6)]
    result = mv.flow_graph(vlm, asked, n_random=19)
    gained = float(result["effect"].sel(source="object", target="last", band="1"))
    assert gained == pytest.approx(100 * (CHANCE / WRONG - 1), rel=0.01)
    assert not result["kept"].any()
    assert not result["right"].any()


def test_trap_03_without_a_sink_a_cut_row_reads_the_rest():
    """The cut renormalises, class 3 gains; the edge of the object is kept all the same.

    Without a sink every row reads evenly what is left: the draws tell the two apart.
    """
    vlm = hooked("direct", sink=False)
    asked = [digit(vlm, 0, id=str(i)) for i in range(2)]
    result = mv.flow_graph(vlm, asked, n_random=19)
    assert readings(result) == READS["direct"]
    effect = result["effect"].sel(source="object", target="last", band="1")
    wanted = 100 * (planted.RENORMALISED[0] / SURE - 1)
    assert float(effect) == pytest.approx(wanted, abs=PERCENT)


# --- as a graph -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("circuit", "wanted"),
    [
        (
            "relay",
            [("object", "0"), ("query", "1"), ("query", "2"), ("last", "end")],
        ),
        ("direct", [("object", "0"), ("object", "1"), ("last", "2"), ("last", "end")]),
        ("too_late", None),
    ],
)
def test_paths_through_the_graph_run_as_the_answer_does(circuit, wanted):
    graph = mv.flow_networkx(flows(circuit))
    assert nx.is_directed_acyclic_graph(graph)
    assert graph.number_of_nodes() == 4 * (3 + 1)
    ends = ("object", "0"), ("last", "end")
    paths = list(nx.all_simple_paths(graph, *ends))
    assert paths == ([wanted] if wanted else [])
    streams = [kind for *_, kind in graph.edges(data="kind") if kind == "stream"]
    assert len(streams) == 4 * 3
    assert graph.nodes["last", "1"] == {
        "group": "last",
        "band": "1",
        "first": 1,
        "last": 1,
    }
    assert graph.nodes["last", "end"]["first"] == 3


def test_edges_stand_in_the_order_of_time_and_carry_their_numbers():
    result = flows("relay")
    edges = mv.flow_edges(result)
    assert [(edge.source, edge.target) for edge in edges] == [
        (("object", "0"), ("query", "1")),
        (("query", "2"), ("last", "end")),
    ]
    graph = mv.flow_networkx(result)
    for edge in edges:
        held = graph.edges[edge.source, edge.target]
        values = edge._asdict()
        wanted = {k: values[k] for k in values if k not in ("source", "target")}
        assert held == {"kind": "attention", **wanted}
        cell = result.sel(
            source=edge.source[0], target=edge.target[0], band=edge.source[1]
        )
        for name in ("effect", "control", "excess", "beyond", "n", "n_control"):
            assert held[name] == cell[name].item()
        assert held["controlled"] is True
        assert held["low"] == cell["effect_low"].item()
        assert held["high"] == cell["effect_high"].item()


def test_a_group_that_reads_itself_stands_on_its_stream():
    result = flows("direct").copy(deep=True)
    result["kept"].loc[{"target": "object", "source": "object", "band": "0"}] = True
    graph = mv.flow_networkx(result)
    own = graph.edges[("object", "0"), ("object", "1")]
    assert own["kind"] == "both"
    assert own["effect"] == pytest.approx(0, abs=PERCENT)
    assert graph.edges[("object", "1"), ("object", "2")] == {"kind": "stream"}


def test_the_graph_of_another_result_is_refused():
    result = flows("relay")
    made = xr.Dataset({"kept": result["kept"]})
    for other in (result[["effect"]], result[["clean"]], made, result.drop_vars("n")):
        for draw in (mv.flow_edges, mv.flow_networkx):
            with pytest.raises(ResultError, match=r"has no \[.*flow_graph returns"):
                draw(other)


def test_a_flow_graph_survives_a_file(tmp_path):
    result = flows("relay")
    kept = mv.save_result(result, tmp_path / "flows.nc")
    opened = mv.open_result(kept)
    assert opened.identical(result)
    assert mv.flow_edges(opened) == mv.flow_edges(result)
    assert "Zhang" in mv.cite(opened)
    assert opened.attrs["papers"][0] == "arXiv:2304.14767"


def test_trap_20_the_result_says_what_a_layer_and_a_node_are():
    result = flows("direct")
    assert "inside layer l" in result.attrs["layer_convention"]
    assert "as it enters the band" in result.attrs["node_convention"]
    assert result["effect"].attrs["units"] == "% of clean probability"
    assert result["log_effect"].attrs["units"] == "nats"


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "error", "said"),
    [
        ({}, InterventionError, "bands given hold no layer"),
        ({"a": range(0)}, InterventionError, r"bands \['a'\] hold no layer"),
        ({"a": range(0, 3, 2)}, InterventionError, "not consecutive ones"),
        ({"a": range(2, 4)}, LayerError, r"band 'a' has layers 2-3; this .* 0\.\.2"),
        ({"a": range(2), "b": range(1, 3)}, InterventionError, r"'a' \(0-1\) and 'b'"),
        ({"b": range(2, 3), "a": range(2)}, InterventionError, "order of the layers"),
        ({"end": range(3)}, InterventionError, "a band is called 'end'"),
    ],
)
def test_bands_that_are_none_are_refused(bands, error, said):
    vlm = hooked("direct")
    with pytest.raises(error, match=said):
        mv.flow_graph(vlm, [digit(vlm)], bands=bands)


@pytest.mark.parametrize("least", [-1, 100, float("nan")])
def test_a_least_loss_that_is_none_is_refused(least):
    vlm = hooked("direct")
    with pytest.raises(MetricError, match=r"least=.*from 0 to below 100"):
        mv.flow_graph(vlm, [digit(vlm)], least=least)
