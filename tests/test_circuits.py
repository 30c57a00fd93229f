"""Circuits found and judged: exact where the circuit is known, sound where it is not.

On planted models the oracle is `planted.EDGES`, hand arithmetic; what single edges and
nodes do is held against plain runs in test_subgraph.py and test_path_oracle.py.
"""

from functools import cache

import numpy as np
import pytest
import sweeping
import tiny

import mechvlm as mv
from mechvlm import Circuit, Edge, Node, Positions, Shape
from mechvlm.analyses.circuits.judging import _random
from mechvlm.errors import (
    ArgumentError,
    CircuitError,
    EngineError,
    MetricError,
    PairError,
    PromptError,
)
from mechvlm.models import planted

FOUND = ("relay", "direct", "enrich")
SHAPE = Shape(3, 2, 2)
DEMO = Shape(8, 4, 4)


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


def check_close(found, wanted):
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
    check_close(list(found.effects.values()), [1.0] * len(found))


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
    check_close(float(judged["faithfulness"][0]), 1.0)
    check_close(float(judged["without"][0]), 0.0)
    assert int(judged["heads"][0]) == len(true_circuit(circuit).of_kind("head"))


@pytest.mark.parametrize("circuit", FOUND)
def test_a_circuit_without_any_one_edge_is_nothing(circuit):
    """Every planted edge is on the only way."""
    vlm, pair = pair_of(circuit)
    true = true_circuit(circuit)
    parts = {str(edge): true.without(edge) for edge in true.edges}
    judged = mv.faithfulness(vlm, [pair], parts)
    check_close(judged["faithfulness"].values.tolist(), [0.0] * len(true))
    lost = mv.minimality(vlm, [pair], true, of="edges")
    assert lost["part"].values.tolist() == list(parts)
    check_close(lost["loss"].values.tolist(), [1.0] * len(true))
    nodes = mv.minimality(vlm, [pair], true)
    check_close(nodes["loss"].values.tolist(), [1.0] * nodes.sizes["part"])


@pytest.mark.parametrize("circuit", FOUND)
def test_the_planted_circuit_is_complete(circuit):
    vlm, pair = pair_of(circuit)
    true = true_circuit(circuit)
    found = mv.completeness(vlm, [pair], true, n_sets=4)
    assert found["set"].values[0] == "nothing"
    wanted = [1.0, *[0.0] * (found.sizes["set"] - 1)]
    check_close(found["circuit"].values.tolist(), wanted)
    check_close(found["model"].values.tolist(), wanted)
    check_close(found.attrs["incompleteness"], 0.0)


def test_what_lacks_a_way_is_incomplete():
    """With every way cut but one that is not there, the model differs: by hand."""
    vlm, pair = pair_of("relay")
    half = true_circuit("relay").without(Edge.parse("L0.H0 -> L2.v0"))
    stray = Circuit((*half.edges, Edge.parse("L1.H1 -> logits")), SHAPE)
    found = mv.completeness(vlm, [pair], stray, n_sets=0)
    labels = found["set"].values.tolist()
    wanted = {"nothing": 1.0, "L1.H1": 1.0, "L0.H0": 0.0, "L2.H0": 0.0}
    check_close(
        found["difference"].values.tolist(), [wanted[label] for label in labels]
    )


@pytest.mark.parametrize("circuit", FOUND)
@pytest.mark.parametrize("nodes", ["random", "same"])
def test_random_circuits_are_rarely_the_true_one(circuit, nodes):
    """By hand: with the true edges a circuit keeps all of the gap, else nothing."""
    vlm, pair = pair_of(circuit)
    true = true_circuit(circuit)
    found = mv.random_baseline(vlm, [pair], true, n=30, nodes=nodes)
    check_close(found.attrs["circuit"], 1.0)
    kept = found["faithfulness"].values
    assert np.minimum(abs(kept), abs(kept - 1)).max() < planted.TOLERANCE
    reached = int((kept > 0.5).sum())
    assert found.attrs["p"] == (1 + reached) / 31
    assert found.attrs["beaten"] == pytest.approx(1 - reached / 30)
    assert reached < 15 or nodes == "same"
    assert (found["edges"] >= 2).all()


def test_random_circuits_are_of_the_same_kinds_and_size():
    vlm, pairs = demo_pairs()
    shape = Shape.of(vlm.cfg)
    labels = ("[object]", "[query]", "L0.H3", "L3.H1", "L4.H0", "MLP 4", "MLP 5")
    area = Circuit.among(map(Node.parse, labels), shape)
    true = Circuit(area.edges[::2], shape).connected()
    assert len(true.of_kind("head")) >= 2
    rng = np.random.default_rng(0)
    for nodes in ("random", "same"):
        drawn = [_random(true, pairs, nodes, rng) for _ in range(20)]
        for each in drawn:
            assert each == each.connected()
            assert len(true) <= len(each) <= 1.5 * len(true)
            assert len(each.of_kind("head")) <= len(true.of_kind("head"))
            assert {n.group for n in each.of_kind("tokens")} <= {"object", "query"}
            assert "[object] -> logits" not in each
        of_heads = {n for each in drawn for n in each.of_kind("head")}
        same = of_heads <= set(true.of_kind("head"))
        assert same == (nodes == "same")


@pytest.mark.parametrize("circuit", FOUND)
def test_the_heads_that_write_are_chosen_first(circuit):
    vlm, pair = pair_of(circuit)
    wanted = {str(node) for node in true_circuit(circuit).of_kind("head")}
    found = mv.discover_heads(vlm, [pair], len(wanted))
    assert {str(node) for node in found.of_kind("head")} == wanted
    order, kept = zip(*found.about["gains"], strict=True)
    assert set(order) == wanted
    check_close(kept[-1], 1.0)
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
    check_close(float(judged["faithfulness"][0]), 1.0)
    check_close(float(judged["without"][0]), 0.0)
    check_close(float(judged["empty"][0]), 0.0)


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


def louder(pair, times):
    """The same pair, with a metric that says everything so many times over."""
    metric = pair.metric
    scaled = mv.Metric(
        metric.name, metric.units, lambda x: times * metric.measure(x), metric.tokens
    )
    return mv.Pair(pair.clean, pair.corrupted, scaled, pair.groups, str(times))


def test_pairs_weigh_as_much_as_their_gaps():
    """Oracle: each pair alone, summed by hand."""
    vlm, pairs = demo_pairs()
    both = [pairs[0], louder(pairs[1], 5.0)]
    bounds = [mv.screening.bound(vlm, pair) for pair in both]
    gaps = np.array([once.gap for once in bounds])
    scores = [mv.screening.edge_scores(vlm, once) for once in bounds]
    summed = sum(s.values.double() * gap for s, gap in zip(scores, gaps, strict=True))
    order = summed.abs().nan_to_num(-1).flatten().argsort(descending=True)[:30]
    width = len(scores[0].receivers)
    wanted = {
        Edge(scores[0].senders[at // width], scores[0].receivers[at % width])
        for at in order.tolist()
    }
    found = mv.discover(vlm, both, threshold=0, top=30)
    assert found.about["measured"] == 30
    edges = sorted(wanted, key=lambda edge: edge.place)
    lost = np.array([mv.screening.edge_effects(vlm, x, edges).numpy() for x in bounds])
    effects = (lost * gaps[:, None]).sum(axis=0) / gaps.sum()
    strong = Circuit(tuple(edges), found.shape)
    assert found.edges == strong.connected().edges
    for edge, effect in zip(edges, effects, strict=True):
        if edge in found:
            assert found.effects[str(edge)] == pytest.approx(effect, abs=1e-5)


def test_a_pair_that_the_model_gets_wrong_is_refused():
    vlm, pairs = demo_pairs()
    wrong = mv.Pair(
        pairs[0].corrupted, pairs[0].clean, pairs[0].metric, pairs[0].groups, "odd"
    )
    with pytest.raises(MetricError, match="'odd'"):
        mv.faithfulness(
            vlm, [*pairs, wrong], Circuit.parse(["[object] -> L0.v0"], DEMO)
        )


def test_what_holds_the_answer_back_is_taken_and_what_leads_nowhere_is_not():
    """Oracle: what the area loses without each edge, from `minimality`."""
    vlm, pairs = demo_pairs()
    labels = ("[object]", "[query]", "L0.H3", "L0.H1", "L3.H1", "MLP 0", "MLP 4")
    area = Circuit.among(map(Node.parse, labels), DEMO)
    lost = mv.minimality(vlm, pairs, area, of="edges")["loss"]
    least = 0.002
    strong = [str(x) for x in lost["part"].values[abs(lost.values) > least]]
    wanted = Circuit.parse(strong, DEMO)
    found = mv.discover(vlm, pairs, within=area, threshold=least)
    assert found.edges == wanted.connected().edges
    assert min(found.effects.values()) < -least
    order = lost["part"].values[np.argsort(-abs(lost.values), kind="stable")]
    grown = [
        Circuit.parse(map(str, order[:n]), DEMO).connected().edges
        for n in range(len(order) + 1)
    ]
    for size in (6, 25):
        few = mv.discover(vlm, pairs, within=area, size=size)
        assert few.edges == [edges for edges in grown if len(edges) <= size][-1]
        assert few.edges


def test_mean_is_over_all_prompts_of_the_pairs():
    vlm, pairs = demo_pairs()
    circuit = Circuit.among(map(Node.parse, ("[object]", "L3.H1", "MLP 4")), DEMO)
    mean = mv.mean_run(vlm, [x for pair in pairs for x in (pair.clean, pair.corrupted)])
    by_name, given = (
        mv.faithfulness(vlm, pairs, circuit, ablation=ablation)
        for ablation in ("mean", mean)
    )
    for name in ("faithfulness_each", "empty"):
        np.testing.assert_allclose(by_name[name], given[name], atol=1e-5)


def test_a_share_over_pairs_is_all_that_is_kept_by_all_that_there_is():
    vlm, pairs = demo_pairs()
    both = [pairs[0], louder(pairs[1], 3.0), pairs[2]]
    circuit = Circuit.among(map(Node.parse, ("[object]", "L3.H1", "MLP 4")), DEMO)
    found = mv.faithfulness(vlm, both, circuit)
    gaps = (found["clean"] - found["empty"]).values
    each = found["faithfulness_each"].values[0]
    wanted = (each * gaps).sum() / gaps.sum()
    assert float(found["faithfulness"][0]) == pytest.approx(wanted, abs=1e-6)
    assert abs(each.mean() - wanted) > 1e-4


@cache
def grouped_pair():
    """A tiny random model in which two heads share a key-value head."""
    scene = sweeping.scene_of(tiny.KINDS[1])
    clean, corrupted = scene.prompt, scene.runs["other"].prompt
    metric = mv.logit_difference(scene.vlm, 7, 9)
    found = mv.Pair(clean, corrupted, metric, mv.groups_of(clean))
    logits = [scene.vlm(x)[:, -1].detach() for x in (clean, corrupted)]
    if float(metric(logits[0])) < float(metric(logits[1])):
        metric = mv.logit_difference(scene.vlm, 9, 7)
        found = mv.Pair(clean, corrupted, metric, mv.groups_of(clean))
    return scene.vlm, found


def test_trap_14_key_value_edges_are_shared_and_heads_are_not():
    vlm, pair = grouped_pair()
    shape = Shape.of(vlm.cfg)
    found = mv.discover(vlm, [pair], size=60, top=200)
    takers = {node for edge in found.edges for node in (edge.receiver,)}
    assert {node.head for node in takers if node.kind in "kv"} <= {0, 1}
    assert max(node.head for node in found.of_kind("head")) > 1
    whole = Circuit.whole(shape, pair.groups)
    judged = mv.faithfulness(vlm, [pair], {"whole": whole, "found": found})
    assert float(judged["faithfulness"].sel(circuit="whole")) == pytest.approx(
        1, abs=1e-4
    )
    # A value's edge lost is lost for both heads that it serves, and no others.
    edge = Edge.parse("MLP 0 -> L2.v1")
    lost = mv.minimality(vlm, [pair], whole, of="edges")["loss"].sel(part=str(edge))
    (alone,) = mv.screening.edge_effects(vlm, pair, [edge])
    assert float(lost) == pytest.approx(float(alone), abs=1e-4)


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
        ({"size": 0}, "size"),
        ({"top": 0}, "top"),
        ({"steps": 0}, "steps"),
        ({"threshold": -1}, "threshold=-1: wanted what an edge must do more than"),
        ({"threshold": 5}, "no circuit is left of the .* edges that were measured"),
        ({"size": 1}, "size=1 allows make no way from tokens to logits"),
    ],
)
def test_limits_that_leave_nothing_are_refused(given, message):
    vlm, pair = pair_of("direct")
    with pytest.raises((CircuitError, ArgumentError), match=message):
        mv.discover(vlm, [pair], **given)


def test_what_is_of_no_use_within_a_circuit_is_refused():
    vlm, pair = pair_of("direct")
    area = true_circuit("direct")
    with pytest.raises(CircuitError, match="steps=3: edges within a circuit are all"):
        mv.discover(vlm, [pair], within=area, steps=3)
    with pytest.raises(CircuitError, match="has 2 edges, and top=1 are to be measured"):
        mv.discover(vlm, [pair], within=area, top=1)


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
    with pytest.raises(ArgumentError, match="n is 0"):
        mv.random_baseline(vlm, [pair], true, n=0)
    with pytest.raises(CircuitError, match="n=9: there are 6 heads to choose from"):
        mv.discover_heads(vlm, [pair], 9)
    dead = Circuit.parse(["L0.H0 -> logits"], SHAPE)
    with pytest.raises(CircuitError, match="no way from tokens to the logits"):
        mv.random_baseline(vlm, [pair], dead)
    nowhere = Circuit.parse(["[object] -> logits", "[query] -> logits"], SHAPE)
    with pytest.raises(CircuitError, match="none of these groups holds it"):
        mv.faithfulness(vlm, [pair], nowhere)
    foreign = Circuit.parse(["[ball] -> L0.v0"], SHAPE)
    with pytest.raises(CircuitError, match="has tokens of 'ball', and the pairs have"):
        mv.discover(vlm, [pair], within=foreign)
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
