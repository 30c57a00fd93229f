"""Scores of edges are slopes of exact effects, for all edges by one backward.

Oracles: Hugging Face's model alone, in fp64 and with torch's own hooks, where an edge
carries a ten-thousandth of the way to the other run; and the planted circuits, along
whose ways everything is linear.
"""

from functools import cache

import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm.errors import ArgumentError, CircuitError, InterventionError, MetricError
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

KINDS = (tiny.Kind("llama", 2, "clip"), tiny.Kind("qwen2", 2, "siglip"))
KINDS += tiny.GEMMA_KINDS
STEP = 1e-4


# --- the oracle -----------------------------------------------------------------------


class Norm64(torch.nn.Module):
    """RMS norm that stays in fp64, where Hugging Face's would go by way of fp32."""

    def __init__(self, norm):
        super().__init__()
        self.weight, gemma = norm.weight, type(norm).__name__.startswith("Gemma")
        self.offset, self.eps = float(gemma), norm.eps if gemma else None
        self.eps = norm.eps if gemma else norm.variance_epsilon

    def forward(self, x):
        scale = (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()
        return x * scale * (self.weight + self.offset)


def in_fp64(model):
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Norm64(module))
    return model.double()


@cache
def pair_of(kind):
    model, processor = tiny.build(kind)
    vlm = mv.HookedVLM(in_fp64(model), processor)
    clean, corrupted = (
        tiny.ask(vlm, "what color is the cat ?", tiny.picture(seed)) for seed in (0, 1)
    )
    metric = mv.logit_difference(vlm, "red", "blue")
    return vlm, mv.Pair(clean, corrupted, metric, mv.groups_of(clean))


@pytest.fixture
def softmax_in_fp64(monkeypatch):
    """Eager attention asks for a softmax in fp32, whatever it is given."""
    plain = lambda x, dim, dtype=None: x.softmax(dim)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "softmax", plain)


class Plain:
    """Hugging Face's model and torch's hooks, and what passes by them."""

    def __init__(self, vlm):
        self.hf, self.names = vlm.hf_model, vlm.family.backbone(vlm.hf_model.config)
        language_model = vlm.hf_model.get_submodule(vlm.family.language_model)
        self.layers, self.last = language_model.layers, language_model.norm
        self.d_head = vlm.cfg.d_head

    def part(self, layer, name):
        return self.layers[layer].get_submodule(getattr(self.names, name))

    @torch.no_grad()
    def run(self, prompt, metric, *, seen=None, put=()):
        """The metric in fp64; `seen` is filled, and `put` (module, function) acts."""
        handles = []
        if seen is not None:
            for at, layer in enumerate(self.layers):
                for name in ("o", "ln1", "ln2"):
                    hear = _first_of(seen, (at, name))
                    handles.append(self.part(at, name).register_forward_pre_hook(hear))
                hear = _out_of(seen, (at, "mlp"))
                handles.append(self.part(at, "mlp_out").register_forward_hook(hear))
            hear = _first_of(seen, "embed")
            handles.append(self.layers[0].register_forward_pre_hook(hear))
            hear = _first_of(seen, "last")
            handles.append(self.last.register_forward_pre_hook(hear))
        for module, hook, kind in put:
            handles.append(getattr(module, f"register_{kind}")(hook))
        logits = self.hf(**prompt.inputs, use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        answer, foil = metric.tokens
        return float(logits[answer] - logits[foil])

    def given(self, seen, sender, change, groups, size):
        """What the sender adds to the stream by a part of its change."""
        if sender.kind == "mlp":
            return size * change[sender.layer, "mlp"]
        if sender.kind == "tokens":
            added = torch.zeros_like(change["embed"])
            rows = list(groups[sender.group])
            added[:, rows] = size * change["embed"][:, rows]
            return added
        at = slice(sender.head * self.d_head, (sender.head + 1) * self.d_head)
        old = seen[sender.layer, "o"]
        new = old.clone()
        new[..., at] += size * change[sender.layer, "o"][..., at]
        ends = [self.part(sender.layer, "o")(x) for x in (old, new)]
        if self.names.attn_out != "self_attn":
            ends = [self.part(sender.layer, "attn_out")(x) for x in ends]
        return ends[1] - ends[0]

    def taking(self, seen, receiver, added):
        """A hook under which this receiver alone reads what was added."""
        if receiver == LOGITS:
            return self.last, lambda _, args: (args[0] + added,), "forward_pre_hook"
        if receiver.kind == "mlp":
            norm = self.part(receiver.layer, "ln2")
            return norm, lambda _, args: (args[0] + added,), "forward_pre_hook"
        norm = self.part(receiver.layer, "ln1")
        projection = self.part(receiver.layer, receiver.kind)
        heard = projection(norm(seen[receiver.layer, "ln1"] + added))
        at = slice(receiver.head * self.d_head, (receiver.head + 1) * self.d_head)

        def put(_, __, output):
            new = output.clone()
            new[..., at] = heard[..., at]
            return new

        return projection, put, "forward_hook"

    def slope(self, pair, edge, place=None):
        """Share of the gap that is lost, per way of the edge, at its beginning."""
        clean, corrupted = {}, {}
        value = self.run(pair.clean, pair.metric, seen=clean)
        gap = value - self.run(pair.corrupted, pair.metric, seen=corrupted)
        change = {name: corrupted[name] - clean[name] for name in clean}
        start = []
        if place is not None:
            there = clean["embed"] + (1 - place) * change["embed"]
            enter = lambda _, args: (there, *args[1:])  # noqa: E731
            start = [(self.layers[0], enter, "forward_pre_hook")]
        here = {}
        self.run(pair.clean, pair.metric, seen=here, put=start)
        found = []
        for size in (STEP, -STEP):
            with torch.no_grad():
                added = self.given(here, edge.sender, change, pair.groups, size)
                put = [*start, self.taking(here, edge.receiver, added)]
            found.append(self.run(pair.clean, pair.metric, put=put))
        return -(found[0] - found[1]) / (2 * STEP) / gap


def _first_of(seen, name):
    def hear(_, args, kwargs=None):
        seen[name] = args[0].clone()

    return hear


def _out_of(seen, name):
    def hear(_, __, output):
        seen[name] = output.clone()

    return hear


def some_edges(vlm, pair, n=14):
    """Every kind of sender with every kind of receiver, drawn by chance."""
    shape = Shape(vlm.cfg.n_layers, vlm.cfg.n_heads, vlm.cfg.n_key_value_heads)
    nodes = [*shape.heads, *shape.mlps, *map(mv.Node.tokens, pair.groups)]
    kinds = {}
    for edge in shape.edges(nodes):
        kinds.setdefault((edge.sender.kind, edge.receiver.kind), []).append(edge)
    draw = torch.Generator().manual_seed(0)
    return [
        edges[int(torch.randint(len(edges), (), generator=draw))]
        for edges in kinds.values()
    ]


def score_of(scores, edge):
    at = scores.senders.index(edge.sender), scores.receivers.index(edge.receiver)
    return float(scores.values[at])


# --- random models --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.usefixtures("softmax_in_fp64")
def test_a_score_is_the_slope_of_the_exact_effect(kind):
    vlm, pair = pair_of(kind)
    scores, plain, large = edge_scores(vlm, pair), Plain(vlm), 0
    edges = some_edges(vlm, pair)
    assert len(edges) == 15
    for edge in edges:
        wanted = plain.slope(pair, edge)
        assert score_of(scores, edge) == pytest.approx(wanted, rel=1e-4, abs=1e-7), edge
        large += abs(wanted) > 1e-4
    assert large >= 10
