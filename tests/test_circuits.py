"""Circuits found and judged: exact where the circuit is known, sound where it is not.

On planted models the oracle is `planted.EDGES`, hand arithmetic; what single edges and
nodes do is held against plain runs in test_subgraph.py and test_path_oracle.py.
"""

from functools import cache

import numpy as np
import pytest

import mechvlm as mv
from mechvlm import Circuit, Edge, Node, Positions, Shape
from mechvlm.errors import (
    CircuitError,
    EngineError,
    MetricError,
    PairError,
    PromptError,
)
from mechvlm.models import planted

FOUND = ("relay", "direct", "enrich")
SHAPE = Shape(3, 2, 2)


@cache
def pair_of(circuit):
    vlm = mv.HookedVLM(*planted.build(circuit))
    clean, corrupted = (
        vlm.prompt(planted.QUESTION, planted.scene(content), system=planted.SYSTEM)
        for content in (0, 1)
    )
    at = Positions.of(planted.POSITIONS["object"])
    metric = mv.logit_difference(vlm, "zero", "one")
    return vlm, mv.Pair(clean, corrupted, metric, mv.groups_of(clean, {"object": at}))


def true_circuit(circuit):
    return Circuit.parse(planted.EDGES[circuit], SHAPE)


def close(found, wanted):
    assert found == pytest.approx(wanted, rel=0, abs=planted.TOLERANCE)


# --- planted ------------------------------------------------------------------------


@pytest.mark.parametrize("top", [None, 60, 12])
@pytest.mark.parametrize("ablation", ["counterfactual", "mean"])
@pytest.mark.parametrize("circuit", FOUND)
def test_discover_finds_the_planted_edges_and_no_other(circuit, ablation, top):
    vlm, pair = pair_of(circuit)
    found = mv.discover(vlm, [pair], threshold=0.05, ablation=ablation, top=top)
    assert [str(edge) for edge in found.edges] == sorted(
        planted.EDGES[circuit], key=lambda label: Edge.parse(label).place
    )
    assert set(found.effects) == set(planted.EDGES[circuit])
    # The mean of the two prompts lies half-way, where the logits of both are equal.
    close(list(found.effects.values()), [1.0] * len(found))


@pytest.mark.parametrize("circuit", FOUND)
def test_discover_takes_the_best_where_a_size_is_given(circuit):
    vlm, pair = pair_of(circuit)
    n = len(planted.EDGES[circuit])
    assert mv.discover(vlm, [pair], size=n) == mv.discover(vlm, [pair])


@pytest.mark.parametrize("circuit", FOUND)
def test_the_planted_circuit_is_all_there_is(circuit):
    vlm, pair = pair_of(circuit)
    judged = mv.faithfulness(vlm, [pair], true_circuit(circuit))
    assert float(judged["faithfulness"][0]) >= 0.99
    assert float(judged["without"][0]) <= 0.05
    close(float(judged["faithfulness"][0]), 1.0)
    close(float(judged["without"][0]), 0.0)
    assert int(judged["heads"][0]) == len(true_circuit(circuit).of_kind("head"))


@pytest.mark.parametrize("circuit", FOUND)
def test_a_circuit_without_any_one_edge_is_nothing(circuit):
    """Every planted edge is on the only way."""
    vlm, pair = pair_of(circuit)
    true = true_circuit(circuit)
    parts = {str(edge): true.without(edge) for edge in true.edges}
    judged = mv.faithfulness(vlm, [pair], parts)
    close(judged["faithfulness"].values.tolist(), [0.0] * len(true))
    lost = mv.minimality(vlm, [pair], true, of="edges")
    assert lost["part"].values.tolist() == list(parts)
    close(lost["loss"].values.tolist(), [1.0] * len(true))
    nodes = mv.minimality(vlm, [pair], true)
    close(nodes["loss"].values.tolist(), [1.0] * nodes.sizes["part"])


@pytest.mark.parametrize("circuit", FOUND)
def test_the_planted_circuit_is_complete(circuit):
    vlm, pair = pair_of(circuit)
    true = true_circuit(circuit)
    found = mv.completeness(vlm, [pair], true, n_sets=4)
    assert found["set"].values[0] == "nothing"
    wanted = [1.0, *[0.0] * (found.sizes["set"] - 1)]
    close(found["circuit"].values.tolist(), wanted)
    close(found["model"].values.tolist(), wanted)
    close(found.attrs["incompleteness"], 0.0)


def test_what_lacks_a_way_is_incomplete():
    """With every way cut but one that is not there, the model differs: by hand."""
    vlm, pair = pair_of("relay")
    half = true_circuit("relay").without(Edge.parse("L0.H0 -> L2.v0"))
    stray = Circuit((*half.edges, Edge.parse("L1.H1 -> logits")), SHAPE)
    found = mv.completeness(vlm, [pair], stray, n_sets=0)
    labels = found["set"].values.tolist()
    wanted = {"nothing": 1.0, "L1.H1": 1.0, "L0.H0": 0.0, "L2.H0": 0.0}
    close(found["difference"].values.tolist(), [wanted[label] for label in labels])


@pytest.mark.parametrize("circuit", FOUND)
def test_random_circuits_explain_nothing(circuit):
    vlm, pair = pair_of(circuit)
    true = true_circuit(circuit)
    found = mv.random_baseline(vlm, [pair], true, n=30)
    close(found.attrs["circuit"], 1.0)
    assert found["faithfulness"].max() < 0.99 or found.attrs["beaten"] < 1
    reached = int((found["faithfulness"] >= found.attrs["circuit"]).sum())
    assert found.attrs["p"] == (1 + reached) / 31
    assert found["edges"].max() <= len(true)


@pytest.mark.parametrize("circuit", FOUND)
def test_the_heads_that_write_are_chosen_first(circuit):
    vlm, pair = pair_of(circuit)
    wanted = {str(node) for node in true_circuit(circuit).of_kind("head")}
    found = mv.discover_heads(vlm, [pair], len(wanted))
    assert {str(node) for node in found.of_kind("head")} == wanted
    order, kept = zip(*found.about["gains"], strict=True)
    assert set(order) == wanted
    close(kept[-1], 1.0)
    within = mv.discover(vlm, [pair], within=found, threshold=0.05)
    assert within == Circuit.parse(planted.EDGES[circuit], SHAPE, model=within.model)


def test_nothing_to_find_is_said():
    vlm, pair = pair_of("too_late")
    with pytest.raises(MetricError, match="there is no gap to recover"):
        mv.discover(vlm, [pair])


def test_zeros_ablate_too():
    """Of a stream of zeros but the object's tokens, direct still reads the class."""
    vlm, pair = pair_of("direct")
    every = Circuit.whole(SHAPE, pair.groups)
    judged = mv.faithfulness(vlm, [pair], every, ablation="zero")
    close(float(judged["faithfulness"][0]), 1.0)
    close(float(judged["without"][0]), 0.0)
    close(float(judged["empty"][0]), 0.0)


# --- over pairs ---------------------------------------------------------------------


@cache
def demo_pairs(n=3):
    vlm = mv.load("demo")
    found = []
    for seed in range(100):
        scene = mv.scenes.sample(seed=seed, n=2)
        if scene.things[0].shape != scene.things[1].shape:
            twin = mv.scenes.counterfactual(scene, change="color", about=0)
            found.append(mv.bind(vlm, twin.pair))
        if len(found) == n:
            return vlm, found
    raise AssertionError("too few scenes")


def test_effects_are_means_over_pairs():
    vlm, pairs = demo_pairs()
    together = mv.discover(vlm, pairs, size=20, top=60)
    label = next(iter(together.effects))
    each = [
        float(mv.screening.edge_effects(vlm, pair, [Edge.parse(label)])[0])
        for pair in pairs
    ]
    assert together.effects[label] == pytest.approx(np.mean(each), abs=1e-4)


def test_within_a_circuit_an_edge_does_what_the_circuit_loses():
    vlm, pairs = demo_pairs()
    nodes = map(
        Node.parse, ("[object]", "[query]", "[last]", "L0.H3", "L3.H1", "MLP 4")
    )
    area = Circuit.among(nodes, Shape.of(vlm.cfg))
    found = mv.discover(vlm, pairs, within=area, size=5)
    assert set(found.edges) <= set(area.edges)
    lost = mv.minimality(vlm, pairs, area, of="edges")["loss"]
    for label, effect in found.effects.items():
        assert effect == pytest.approx(float(lost.sel(part=label)), abs=1e-5)


def test_several_circuits_are_judged_side_by_side(tmp_path):
    vlm, pairs = demo_pairs()
    shape = Shape.of(vlm.cfg)
    every = Circuit.whole(shape, pairs[0].groups)
    few = Circuit.among(map(Node.parse, ("[object]", "L3.H1", "MLP 4")), shape)
    found = mv.faithfulness(vlm, pairs, {"all": every, "few": few})
    assert found["faithfulness_each"].dims == ("circuit", "pair")
    assert found["faithfulness_each"].sel(circuit="all").values == pytest.approx(1.0)
    assert found["without_each"].sel(circuit="all").values == pytest.approx(0, abs=1e-5)
    assert abs(float(found["faithfulness"].sel(circuit="few")) - 1) > 0.2
    path = mv.save_result(found, tmp_path / "judged.nc")
    assert mv.open_result(path).identical(found)


def test_a_mean_over_prompts_is_in_the_middle():
    vlm, pairs = demo_pairs()
    prompts = [pair.clean for pair in pairs]
    mean = mv.mean_run(vlm, prompts)
    site = mv.Site("z", 3, head=1)
    each = [mv.record(vlm, prompt, [site])[site] for prompt in prompts]
    wanted = sum(each) / len(each)
    assert (mean[site] - wanted).abs().max() < 1e-6


# --- refusals -----------------------------------------------------------------------


def test_pairs_of_other_groups_are_refused():
    vlm, pairs = demo_pairs()
    other = mv.Pair(
        pairs[0].clean,
        pairs[0].corrupted,
        pairs[0].metric,
        mv.groups_of(pairs[0].clean),
    )
    with pytest.raises(PairError, match="Name them alike in all pairs"):
        mv.discover(vlm, [*pairs, other])


def test_no_pairs_are_refused():
    vlm, _ = demo_pairs()
    with pytest.raises(PairError, match="no pair is given"):
        mv.discover(vlm, [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "size=0: wanted 1 or more"),
        ({"top": 0}, "top=0: wanted 1 or more"),
        ({"threshold": -1}, "threshold=-1: wanted the least size"),
        ({"threshold": 5}, "no circuit is left of the .* edges that were measured"),
    ],
)
def test_limits_that_leave_nothing_are_refused(given, message):
    vlm, pair = pair_of("direct")
    with pytest.raises(CircuitError, match=message):
        mv.discover(vlm, [pair], **given)


def test_other_models_circuits_are_refused():
    vlm, pair = pair_of("direct")
    other = Circuit.parse(["[object] -> logits"], Shape(8, 4, 4))
    with pytest.raises(CircuitError, match="Was it found in another model"):
        mv.faithfulness(vlm, [pair], other)
    with pytest.raises(CircuitError, match="the circuit has no edge"):
        mv.faithfulness(vlm, [pair], Circuit((), SHAPE))
    with pytest.raises(CircuitError, match="no circuit is given"):
        mv.faithfulness(vlm, [pair], {})


def test_unknown_choices_are_refused():
    vlm, pair = pair_of("direct")
    true = true_circuit("direct")
    with pytest.raises(CircuitError, match="n=0: wanted at least one random"):
        mv.random_baseline(vlm, [pair], true, n=0)
    with pytest.raises(CircuitError, match="n=9: wanted 1 to 6 heads"):
        mv.discover_heads(vlm, [pair], 9)
    with pytest.raises(CircuitError, match="no head and no MLP"):
        tokens = Circuit.parse(["[last] -> logits"], SHAPE)
        mv.completeness(vlm, [pair], tokens)
    with pytest.raises(PromptError, match="a mean that ablates needs at least two"):
        mv.mean_run(vlm, [pair.clean])


def test_hooks_of_the_users_are_refused():
    vlm, pair = pair_of("direct")
    vlm.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x)
    try:
        with pytest.raises(EngineError, match=r"vlm\.reset_hooks"):
            mv.faithfulness(vlm, [pair], true_circuit("direct"))
    finally:
        vlm.reset_hooks()
