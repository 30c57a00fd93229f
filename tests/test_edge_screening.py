"""Scores of edges are slopes of exact effects, all of them by one backward pass.

Oracles: Hugging Face's model alone, in fp64 and with torch's own hooks, where an edge
carries a ten-thousandth of its change (`edges_by_hand`); and the planted circuits,
along whose ways everything is linear.
"""

from functools import cache

import pytest
import tiny
import torch
from edges_by_hand import Plain, pair_of

import mechvlm as mv
from mechvlm.ablating import zero_run
from mechvlm.errors import (
    ArgumentError,
    CircuitError,
    InterventionError,
    MetricError,
    RunError,
)
from mechvlm.gradients import midpoints
from mechvlm.graph import LOGITS, Edge, Node, Shape
from mechvlm.models import planted
from mechvlm.models.planted import POSITIONS, TOLERANCE, scene
from mechvlm.screening import (
    bound,
    edge_effects,
    edge_scores,
    node_effects,
    node_scores,
)

LLAMA = tiny.Kind("llama", 2, "clip")
KINDS = (LLAMA, tiny.Kind("qwen2", 2, "siglip"), *tiny.GEMMA_KINDS)

WAYS = {
    "relay": ("[object] -> L0.v0", "L0.H0 -> L2.v0", "L2.H0 -> logits"),
    "direct": ("[object] -> L1.v0", "L1.H0 -> logits"),
    "enrich": ("[object] -> MLP 0", "MLP 0 -> L1.v0", "L1.H0 -> logits"),
}
"""The edges that carry the class, by construction; each carries all of it."""


@pytest.fixture(autouse=True)
def _softmax_in_fp64(monkeypatch):
    """Eager attention asks for a softmax in fp32, whatever it is given."""
    plain = lambda x, dim, dtype=None: x.softmax(dim)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "softmax", plain)


@cache
def planted_pair(circuit, corrupted=1):
    """Another class in the corrupted picture; None leaves the object out of it."""
    vlm = mv.HookedVLM(*planted.build(circuit))
    pictures = scene(0), scene(0, cells=()) if corrupted is None else scene(corrupted)
    clean, other = (
        vlm.prompt(planted.QUESTION, x, system=planted.SYSTEM) for x in pictures
    )
    metric = mv.logit_difference(vlm, planted.ANSWERS[0], planted.ANSWERS[1])
    objects = {"object": mv.Positions.of(*POSITIONS["object"])}
    return vlm, mv.Pair(clean, other, metric, mv.groups_of(clean, objects))


def every_edge(vlm, pair):
    shape = Shape.of(vlm.cfg)
    return [
        edge
        for edge in shape.edges([*shape.heads, *shape.mlps, *tokens_of(pair)])
        if str(edge.receiver) != "logits" or str(edge.sender)[0] != "["
    ]


def tokens_of(pair):
    return map(Node.tokens, pair.groups)


def one_of_each_kind(vlm, pair):
    """Every kind of sender with every kind of receiver, drawn by chance."""
    kinds = {("tokens", "logits"): [Edge(Node.tokens("last"), LOGITS)]}
    for edge in every_edge(vlm, pair):
        kinds.setdefault((edge.sender.kind, edge.receiver.kind), []).append(edge)
    draw = torch.Generator().manual_seed(0)
    assert len(kinds) == 15
    return [
        edges[int(torch.randint(len(edges), (), generator=draw))]
        for edges in kinds.values()
    ]


# --- random models --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_score_is_the_slope_of_the_exact_effect(kind):
    vlm, pair = pair_of(kind)
    scores, plain = dict(edge_scores(vlm, pair).ranked()), Plain(vlm)
    edges = one_of_each_kind(vlm, pair)
    wanted = [plain.slope(pair, edge) for edge in edges]
    found = [scores[edge] for edge in edges]
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert sum(abs(each) > 1e-4 for each in wanted) >= 10


@pytest.mark.parametrize("kind", [LLAMA, tiny.GEMMA_KINDS[1]], ids=str)
def test_with_steps_it_is_the_mean_slope_between_the_embeddings(kind):
    vlm, pair = pair_of(kind)
    scores, plain = dict(edge_scores(vlm, pair, steps=2).ranked()), Plain(vlm)
    at_clean = dict(edge_scores(vlm, pair).ranked())
    edges = one_of_each_kind(vlm, pair)[::2]
    places = midpoints(2)
    wanted = [
        sum(plain.slope(pair, edge, place=place) for place in places) / 2
        for edge in edges
    ]
    assert [scores[edge] for edge in edges] == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert [at_clean[edge] for edge in edges] != pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("kind", [LLAMA, tiny.GEMMA_KINDS[1]], ids=str)
def test_an_exact_effect_is_that_of_plain_passes(kind):
    vlm, pair = pair_of(kind)
    edges, plain = one_of_each_kind(vlm, pair), Plain(vlm)
    wanted = [plain.effect(pair, edge) for edge in edges]
    found = edge_effects(vlm, pair, edges, progress=False)
    assert found.tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert sum(abs(each) > 1e-3 for each in wanted) >= 8


def test_another_run_may_stand_for_what_is_ablated():
    """Towards zeros; the gap stays that between the two prompts."""
    vlm, pair = pair_of(LLAMA)
    zeros = zero_run(vlm, pair.clean)
    scores = edge_scores(vlm, pair, ablated=zeros)
    again = edge_scores(vlm, bound(vlm, pair, ablated=zeros))
    torch.testing.assert_close(scores.values, again.values, equal_nan=True)
    scores, plain = dict(scores.ranked()), Plain(vlm)
    gone = lambda clean: {name: -x for name, x in clean.items()}  # noqa: E731
    for edge in one_of_each_kind(vlm, pair)[::3]:
        wanted = plain.slope(pair, edge, change=gone)
        assert scores[edge] == pytest.approx(wanted, rel=1e-4, abs=1e-7), edge


def test_trap_14_a_key_or_value_input_is_one_key_value_heads():
    """Its score holds what all of the heads that it serves make of the change."""
    vlm, pair = pair_of(LLAMA)
    scores = edge_scores(vlm, pair)
    takers = [str(node) for node in scores.receivers if node.layer == 1]
    queries = [f"L1.q{head}" for head in range(4)]
    assert takers == [*queries, "L1.k0", "L1.k1", "L1.v0", "L1.v1", "MLP 1"]


def test_trap_07_padding_changes_no_score():
    vlm, pair = pair_of(LLAMA)
    prompts = [each.left_padded(3, 0) for each in (pair.clean, pair.corrupted)]
    padded = mv.Pair(*prompts, pair.metric, mv.groups_of(prompts[0]))
    wanted = dict(edge_scores(vlm, pair).ranked())
    found = dict(edge_scores(vlm, padded).ranked())
    assert {each: found[each] for each in wanted} == pytest.approx(wanted, abs=1e-6)
    alone = [value for edge, value in found.items() if edge.sender.group == "pad"]
    assert len(alone) > 10
    assert not any(alone)


def test_16_bit_models_are_scored_in_fp32():
    vlm = mv.HookedVLM(*tiny.build(LLAMA))
    clean, corrupted = (vlm.prompt("the cat", tiny.picture(seed)) for seed in (0, 1))
    metric = mv.logit_difference(vlm, "red", "blue")
    pair = mv.Pair(clean, corrupted, metric, mv.groups_of(clean))
    wide = edge_scores(vlm, pair).values
    vlm.to(torch.bfloat16)
    prompts = (vlm.prompt("the cat", tiny.picture(seed)) for seed in (0, 1))
    narrow = edge_scores(vlm, mv.Pair(*prompts, metric, pair.groups)).values
    known = ~wide.isnan()
    both = torch.stack([wide[known], narrow[known]])
    assert float(torch.corrcoef(both)[0, 1]) > 0.95
    rough = narrow[known].float()
    assert not torch.equal(rough.bfloat16().float(), rough)


# --- planted circuits -----------------------------------------------------------------


@pytest.mark.parametrize("circuit", WAYS)
def test_along_a_linear_way_the_score_is_the_whole_effect(circuit):
    vlm, pair = planted_pair(circuit)
    wanted = dict.fromkeys(every_edge(vlm, pair), 0.0)
    wanted |= dict.fromkeys(map(Edge.parse, WAYS[circuit]), 1.0)
    scores = dict(edge_scores(vlm, pair).ranked())
    del scores[Edge(Node.tokens("last"), LOGITS)]
    assert scores == pytest.approx(wanted, abs=TOLERANCE)
    found = edge_effects(vlm, pair, list(wanted), progress=False).tolist()
    assert found == pytest.approx(list(wanted.values()), abs=TOLERANCE)


def test_a_saturated_attention_hides_an_edge_from_the_gradient():
    """Without an object nothing is read, whatever the values are.

    The keys' flag decides that, by 20 in the softmax: its slope is nothing, and its
    effect is all. Half way between the two pictures it has a slope.
    """
    vlm, pair = planted_pair("direct", corrupted=None)
    key, value = map(Edge.parse, ("[object] -> L1.k0", "[object] -> L1.v0"))
    exact = edge_effects(vlm, pair, [key, value], progress=False).tolist()
    assert exact == pytest.approx([1, 1], abs=0.01)
    score = dict(edge_scores(vlm, pair).ranked())
    assert score[key] == pytest.approx(0, abs=TOLERANCE)
    assert score[value] == pytest.approx(1, abs=0.01)
    assert dict(edge_scores(vlm, pair, steps=8).ranked())[key] > 0.1


def test_where_nothing_differs_in_the_metric_nothing_is_scored():
    vlm, pair = planted_pair("too_late")
    for call in (edge_scores, node_scores, bound):
        with pytest.raises(MetricError, match="there is no gap to recover"):
            call(vlm, pair)


# --- cost, and what is left behind ----------------------------------------------------


@pytest.fixture
def passes(tiny_vlm):
    """How often the model ran, and how often a gradient came out of its head."""
    count = {"forward": 0, "layer": 0, "backward": 0}

    def add(name):
        def hook(*_):
            count[name] += 1

        return hook

    layer = tiny_vlm.hf_model.get_submodule(tiny_vlm.family.language_model).layers[1]
    hf = tiny_vlm.hf_model
    handles = [
        hf.register_forward_hook(add("forward")),
        layer.mlp.register_forward_hook(add("layer")),
        hf.lm_head.register_full_backward_hook(add("backward")),
    ]
    yield count
    for handle in handles:
        handle.remove()


@pytest.fixture
def tiny_pair(tiny_vlm):
    clean, corrupted = (
        tiny_vlm.prompt("what color", tiny.picture(seed)) for seed in (0, 1)
    )
    metric = mv.logit_difference(tiny_vlm, "red", "blue")
    return mv.Pair(clean, corrupted, metric, mv.groups_of(clean))


@pytest.mark.parametrize("score", [edge_scores, node_scores])
def test_screening_costs_two_forwards_and_one_backward(
    score, tiny_vlm, tiny_pair, passes
):
    score(tiny_vlm, tiny_pair)
    assert passes == {"forward": 2, "layer": 2, "backward": 1}


def test_a_bound_pair_costs_one_forward_less(tiny_vlm, tiny_pair, request):
    once = bound(tiny_vlm, tiny_pair)
    count = request.getfixturevalue("passes")
    edge_scores(tiny_vlm, once)
    assert count == {"forward": 1, "layer": 1, "backward": 1}


def test_each_step_costs_a_forward_and_a_backward(tiny_vlm, tiny_pair, passes):
    edge_scores(tiny_vlm, tiny_pair, steps=3)
    assert passes == {"forward": 5, "layer": 5, "backward": 3}


def test_nothing_of_the_model_is_left_changed(tiny_vlm, tiny_pair, untouched):
    """The fixture checks weights, whether they ask for gradients, and all hooks."""
    first = edge_scores(tiny_vlm, tiny_pair).values
    assert untouched() == []
    with torch.no_grad():
        again = edge_scores(tiny_vlm, tiny_pair).values
        assert not torch.is_grad_enabled()
    weights = list(tiny_vlm.hf_model.parameters())
    asked = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(False)
    frozen = edge_scores(tiny_vlm, tiny_pair).values
    for weight, before in zip(weights, asked, strict=True):
        weight.requires_grad_(before)
    for other in (again, frozen):
        torch.testing.assert_close(other, first, equal_nan=True)
    with pytest.raises(MetricError, match="'rank of red' has no gradient"):
        edge_scores(tiny_vlm, counting(tiny_vlm, tiny_pair))


def counting(vlm, pair):
    return mv.Pair(pair.clean, pair.corrupted, mv.rank(vlm, "red"), pair.groups)


# --- values and refusals --------------------------------------------------------------


def test_edges_are_ranked_by_size_and_none_is_made_up(tiny_vlm, tiny_pair):
    scores = edge_scores(tiny_vlm, tiny_pair)
    ranked = scores.ranked()
    sizes = [abs(value) for _, value in ranked]
    assert sizes == sorted(sizes, reverse=True)
    wanted = {*every_edge(tiny_vlm, tiny_pair), Edge(Node.tokens("last"), LOGITS)}
    assert {edge for edge, _ in ranked} == wanted
    assert len(ranked) == int((~scores.values.isnan()).sum())
    nodes = node_scores(tiny_vlm, tiny_pair)
    sizes = [abs(value) for _, value in nodes.ranked()]
    assert sizes == sorted(nodes.values.abs().tolist(), reverse=True)
    assert nodes.values.min() < 0 < nodes.values.max()


def test_edges_that_there_are_not_are_refused(tiny_vlm, tiny_pair):
    for label, kind, told in [
        ("[cat] -> L0.v0", CircuitError, r"no token group 'cat'; it has .*image"),
        ("L7.H0 -> logits", CircuitError, "L7.H0: the model has 4 layers"),
        ("L0.H0 -> L1.v2", CircuitError, "L1.v2: .* and 2 key-value heads"),
        ("[image] -> logits", InterventionError, "nothing goes from one position"),
    ]:
        with pytest.raises(kind, match=told):
            edge_effects(tiny_vlm, tiny_pair, [Edge.parse(label)])
    with pytest.raises(InterventionError, match="list of interventions is empty"):
        edge_effects(tiny_vlm, tiny_pair, [])


def test_what_cannot_be_scored_is_refused(tiny_vlm, tiny_pair):
    once = bound(tiny_vlm, tiny_pair)
    for call in (edge_scores, node_scores):
        with pytest.raises(InterventionError, match="steps=0: wanted at least 1"):
            call(tiny_vlm, once, steps=0)
        with pytest.raises(ArgumentError, match="beside a bound pair"):
            call(tiny_vlm, once, ablated=once.ablated)
    with pytest.raises(ArgumentError, match="beside a bound pair"):
        edge_effects(tiny_vlm, once, [], ablated=once.ablated)


@pytest.mark.parametrize("length", [1, -1])
def test_values_of_other_prompts_lengths_are_refused(tiny_vlm, tiny_pair, length):
    """Rows of a longer run would be taken as if they were the pair's own."""
    words = "what color is" if length > 0 else "what"
    other = tiny_vlm.prompt(words, tiny.picture())
    n = tiny_pair.clean.layout.n
    assert other.layout.n == n + length
    values = zero_run(tiny_vlm, other)
    edges, nodes = [Edge.parse("L0.H0 -> logits")], [Node("head", 0, 0)]
    for call, *what in [
        *((edge_scores,), (node_scores,), (bound,)),
        *((edge_effects, edges), (node_effects, nodes)),
    ]:
        with pytest.raises(RunError, match=f"shape .{n + length}, .* needs .{n}, "):
            call(tiny_vlm, tiny_pair, *what, ablated=values)


def test_values_without_a_site_are_refused(tiny_vlm, tiny_pair):
    part = mv.record(tiny_vlm, tiny_pair.corrupted, ["embed", "z"])
    with pytest.raises(RunError, match="hook_mlp_out"):
        edge_effects(tiny_vlm, tiny_pair, [Edge.parse("L0.H0 -> logits")], ablated=part)
