"""A circuit is run as a model of its own.

Oracles: a decoder of Llama's form written here from its weights alone, in which every
head and MLP has a stream of its own; plain Hugging Face passes with hooks, for circuits
of whole nodes; the reference's path patching, for single edges.
"""

from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
import sweeping
import tiny
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import mechvlm as mv
from mechvlm import Circuit, Edge, Node, Positions, Shape, reference
from mechvlm.ablating import ablated_run
from mechvlm.errors import CircuitError, EngineError
from mechvlm.subgraph import Ground, Wiring, answers

LLAMAS = [kind for kind in tiny.KINDS if kind.backbone == "llama"]


@cache
def world(kind):
    """A model in fp64, two prompts, and all that a circuit is run on."""
    scene = sweeping.scene_of(kind, torch.float64)
    vlm, clean = scene.vlm, scene.prompt
    corrupted = scene.runs["other"].prompt
    metric = mv.Metric("logit 7 - logit 9", "nats", lambda x: x[:, 7] - x[:, 9])
    # Metrics compute in fp32; what is compared here is fp64.
    metric = Exact(metric.name, metric.units, metric.measure)
    image = clean.layout["image"]
    few = Positions.of(image.indices[1:5])
    pair = mv.Pair(clean, corrupted, metric, mv.groups_of(clean, {"object": few}))
    base = mv.base_run(vlm, clean)
    ablated = ablated_run(vlm, corrupted, "counterfactual")
    return vlm, pair, Ground.of(vlm, base, ablated, pair.groups)


class Exact(mv.Metric):
    """A metric in the logits' own precision."""

    def of_columns(self, columns):
        return self.measure(columns)


def drawn(shape, groups, seed, share):
    """A circuit of edges drawn at random."""
    rng = np.random.default_rng(seed)
    edges = Circuit.whole(shape, groups).edges
    kept = rng.random(len(edges)) < share
    return Circuit(tuple(e for e, keep in zip(edges, kept, strict=True) if keep), shape)


def run(kind, *wirings):
    vlm, pair, ground = world(kind)
    return answers(vlm, ground, wirings, pair.metric)


# --- oracle 1: a decoder in which every receiver has a stream of its own --------------


@torch.no_grad()
def by_hand(vlm, pair, circuit):
    """Llama's arithmetic from its weights, one receiver at a time."""
    model = vlm.hf_model.model.language_model
    own, other = (outputs(vlm, each) for each in (pair.clean, pair.corrupted))
    wanted = {(str(edge.sender), str(edge.receiver)) for edge in circuit.edges}
    cfg = vlm.cfg
    n, each = pair.clean.layout.n, cfg.n_heads // cfg.n_key_value_heads
    given = {}  # label -> (what it gives here, what it gives in the corrupted run)
    for group, at in pair.groups.items():
        rows = torch.zeros(n, 1, dtype=torch.float64)
        rows[list(at)] = 1
        given[f"[{group}]"] = rows * own["embed"], rows * other["embed"]

    def stream(receiver):
        total = 0
        for label, (here, there) in given.items():
            total = total + (here if (label, receiver) in wanted else there)
        return total

    cos, sin = model.rotary_emb(own["embed"][None], torch.arange(n)[None])
    causal = torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)
    for number, layer in enumerate(model.layers):
        attn = layer.self_attn
        new = {}
        for head in range(cfg.n_heads):
            wide = slice(head * cfg.d_head, (head + 1) * cfg.d_head)
            kv = head // each
            narrow = slice(kv * cfg.d_head, (kv + 1) * cfg.d_head)
            x = [
                layer.input_layernorm(stream(f"L{number}.{c}"))
                for c in (f"q{head}", f"k{kv}", f"v{kv}")
            ]
            q, k = (
                x[0] @ attn.q_proj.weight[wide].T,
                x[1] @ attn.k_proj.weight[narrow].T,
            )
            v = x[2] @ attn.v_proj.weight[narrow].T
            q, k = apply_rotary_pos_emb(q[None, None], k[None, None], cos, sin)
            scores = q[0, 0] @ k[0, 0].T / cfg.d_head**0.5 + causal
            out = attn.o_proj.weight[:, wide]
            z = scores.softmax(dim=-1) @ v
            there = other[f"z{number}"][:, wide]
            new[f"L{number}.H{head}"] = z @ out.T, there @ out.T
        given |= new
        label = f"MLP {number}"
        mlp = layer.mlp(layer.post_attention_layernorm(stream(label)))
        given[label] = mlp, other[f"mlp{number}"]
    logits = vlm.hf_model.lm_head(model.norm(stream("logits")[-1:]))
    return pair.metric(logits)[0]


@torch.no_grad()
def outputs(vlm, prompt):
    """What everything gives in a plain pass, by plain hooks."""
    kept = {}
    layers = vlm.hf_model.model.language_model.layers
    with ExitStack() as stack:
        for i, layer in enumerate(layers):
            z = layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, i=i: kept.__setitem__(f"z{i}", args[0][0])
            )
            mlp = layer.mlp.register_forward_hook(
                lambda _, args, out, i=i: kept.__setitem__(f"mlp{i}", out[0])
            )
            stack.callback(z.remove)
            stack.callback(mlp.remove)
        first = layers[0].register_forward_pre_hook(
            lambda _, args: kept.__setitem__("embed", args[0][0])
        )
        stack.callback(first.remove)
        vlm.hf_model(**prompt.inputs, use_cache=False)
    return kept


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", LLAMAS, ids=sweeping.name_of)
def test_a_circuit_is_what_its_edges_say(kind, share):
    vlm, pair, _ = world(kind)
    circuit = drawn(Shape.of(vlm.cfg), pair.groups, int(100 * share), share)
    alone, around = run(
        kind, Wiring.of(circuit), Wiring.around(circuit, tuple(pair.groups))
    )
    rest = Circuit(
        tuple(
            set(Circuit.whole(circuit.shape, pair.groups).edges) - set(circuit.edges)
        ),
        circuit.shape,
    )
    assert float(alone) == pytest.approx(float(by_hand(vlm, pair, circuit)), abs=1e-9)
    assert float(around) == pytest.approx(float(by_hand(vlm, pair, rest)), abs=1e-9)
    assert abs(float(alone - around)) > 1e-3


# --- oracle 2: plain passes in which the heads outside are replaced -------------------


@torch.no_grad()
def with_heads_replaced(vlm, pair, kept):
    """A plain pass whose heads give what they give in the corrupted one, but some."""
    other = outputs(vlm, pair.corrupted)
    width = vlm.cfg.d_head
    with ExitStack() as stack:
        for i, layer in enumerate(vlm.hf_model.model.language_model.layers):

            def put(_, args, i=i):
                z = other[f"z{i}"][None].clone()
                for head in range(vlm.cfg.n_heads):
                    if (i, head) in kept:
                        own = slice(head * width, (head + 1) * width)
                        z[..., own] = args[0][..., own]
                return (z,)

            handle = layer.self_attn.o_proj.register_forward_pre_hook(put)
            stack.callback(handle.remove)
        logits = vlm.hf_model(**pair.clean.inputs, use_cache=False).logits
    return pair.metric(logits[:, -1])[0]


@pytest.mark.parametrize("kind", tiny.EVERY_KIND, ids=sweeping.name_of)
def test_every_edge_among_some_heads_is_a_pass_with_the_others_replaced(kind):
    vlm, pair, _ = world(kind)
    shape = Shape.of(vlm.cfg)
    kept = {(0, 1), (1, 0), (1, 2), (2, 3), (3, 1)}
    tokens = map(Node.tokens, pair.groups)
    nodes = [*tokens, *shape.mlps, *(Node("head", *each) for each in kept)]
    whole, some, none = run(
        kind,
        Wiring.of(Circuit.whole(shape, pair.groups)),
        Wiring.of(Circuit.among(nodes, shape)),
        Wiring({}),
    )
    with torch.no_grad():
        clean, corrupted = (
            pair.metric(vlm.hf_model(**each.inputs, use_cache=False).logits[:, -1])[0]
            for each in (pair.clean, pair.corrupted)
        )
    wanted = with_heads_replaced(vlm, pair, kept)
    assert float(whole) == pytest.approx(float(clean), abs=1e-9)
    assert float(some) == pytest.approx(float(wanted), abs=1e-9)
    assert float(none) == pytest.approx(float(corrupted), abs=1e-9)
    assert min(abs(float(some - whole)), abs(float(some - none))) > 1e-4


# --- oracle 3: one edge, by the reference's path patching -----------------------------

ENDS = {
    "L0.H1 -> L2.q3": None,
    "L1.H0 -> L3.k0": None,
    "MLP 0 -> L2.v0": None,
    "[object] -> L1.v0": "object",
    "[query] -> MLP 2": "query",
    "L2.H2 -> MLP 2": None,
    "MLP 1 -> MLP 3": None,
}


@pytest.mark.parametrize("kind", tiny.EVERY_KIND, ids=sweeping.name_of)
def test_the_model_without_one_edge_is_that_path_patched(kind):
    vlm, pair, _ = world(kind)
    runs = {"other": ablated_run(vlm, pair.corrupted, "counterfactual")}
    for label, group in ENDS.items():
        edge = Edge.parse(label)
        path = mv.PathPatch(
            (edge.sender.site,),
            (edge.receiver.site,),
            "other",
            at=None if group is None else pair.groups[group],
            mlps="frozen",
        )
        logits = reference.intervene(vlm, pair.clean, path, runs=runs)
        circuit = Circuit((edge,), Shape.of(vlm.cfg))
        found = run(kind, Wiring.around(circuit, tuple(pair.groups)))
        assert float(found) == pytest.approx(float(pair.metric(logits)), abs=1e-9), (
            label
        )


# --- and besides ----------------------------------------------------------------------


def test_parts_do_not_see_one_another():
    """Run together or alone, in one pass or in many."""
    kind = tiny.KINDS[1]
    vlm, pair, ground = world(kind)
    shape = Shape.of(vlm.cfg)
    wirings = [Wiring.of(drawn(shape, pair.groups, seed, 0.4)) for seed in range(4)]
    together = run(kind, *wirings)
    alone = torch.cat([run(kind, wiring) for wiring in wirings])
    narrow = answers(vlm, ground, wirings, pair.metric, batch_tokens=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(narrow, alone, rtol=0, atol=1e-10)
    assert len({round(float(each), 6) for each in alone}) == 4


def test_nothing_is_left_on_the_model():
    vlm, *_ = world(tiny.KINDS[0])
    run(tiny.KINDS[0], Wiring({}))
    before = {name: x._version for name, x in vlm.hf_model.named_parameters()}
    circuit = Circuit.whole(Shape.of(vlm.cfg), world(tiny.KINDS[0])[1].groups)
    run(tiny.KINDS[0], Wiring.of(circuit))
    assert not vlm.has_hooks
    assert before == {name: x._version for name, x in vlm.hf_model.named_parameters()}


def test_tokens_of_other_groups_are_refused():
    wiring = Wiring.of(Circuit.parse(["[ball] -> logits"], Shape(4, 4, 4)))
    with pytest.raises(
        CircuitError, match=r"tokens of \['ball'\], and this prompt has"
    ):
        run(LLAMAS[0], wiring)


def test_circuits_are_run_on_base_runs():
    vlm, pair, ground = world(LLAMAS[0])
    run = mv.record(vlm, pair.clean)
    with pytest.raises(EngineError, match="make it with base_run"):
        Ground.of(vlm, run, ground.ablated, pair.groups)
