"""Edge attribution patching: every edge's effect to first order, all at once.

An edge's score is the change of what its sender gives, times the metric's gradient
along its receiver's own way: a head's query, key or value input through their weights
and the norm before them, an MLP's through the norm before it, the logits' through the
last norm.

Only one layer's receivers and one layer's senders are held at a time, each as vectors
of the stream `[node position d_model]`, and multiplied at once. With 32 heads, 620
positions and 4096 directions these are about 1 GB and 0.4 GB in fp32, however many
layers there are; senders are made again for each layer of receivers, since to keep them
would take the memory of all layers and to make them is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvlm.ablating import giving
from mechvlm.errors import EngineError, MetricError
from mechvlm.graph.nodes import LOGITS, Node, Shape
from mechvlm.models.attention import wide
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.models.points import Block
from mechvlm.models.rowwise.sending import norm_behind
from mechvlm.pairs import Pair
from mechvlm.screening.bound import Bound, ends_of, gap_of
from mechvlm.screening.nodes import Point, changed, points
from mechvlm.screening.scored import EdgeScores
from mechvlm.sites import Site

__all__ = ["edge_scores"]


def edge_scores(
    vlm: HookedVLM,
    pair: Pair | Bound,
    *,
    ablated: RunLike | None = None,
    steps: int = 1,
) -> EdgeScores:
    """First-order estimate of `edge_effects`, for all edges at once.

    It costs a forward of each prompt and one backward; of a bound pair, one forward and
    one backward.

    Args:
        vlm: The model; no weight's `requires_grad` is touched.
        pair: The pair, or what `bound` made of it.
        ablated: Values at the sites embed, z and mlp_out that senders take, such as
            means over many prompts; None takes the corrupted prompt's. The gap stays
            that between clean and corrupted prompt.
        steps: 1 takes gradients at the clean prompt (EAP). More take their mean over
            the middles of as many equal steps from the ablated embeddings to the clean
            ones, a forward and a backward each (EAP-IG). Changes are those between the
            two runs themselves in either case.

    Returns:
        A score for every edge: the estimated share of the clean-corrupted gap that is
        lost where the edge carries the other run's value; 0 nothing, 1 all of it.
        Where a norm stands behind the attention, a head gives what that norm makes of
        its change to first order. To the logits, which are read at the last position,
        of all token groups only the one with that position has an edge.

    Raises:
        EngineError: Weights are offloaded.
        InterventionError: There is no step.
        MetricError: The metric has no gradient, or is the same for both prompts.
        RunError: Ablated values lack a site, or are not as long as the prompts.

    Paper: Syed et al. 2023, arXiv:2310.10348 (EAP); with steps, Hanna et al. 2024,
    arXiv:2403.17806 (EAP-IG).

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> words = "what color is it ?", scene.things[0].color, "cyan"
        >>> pair = mv.bind(vlm, mv.PicturePair(scene.image, twin.image, *words))
        >>> scores = edge_scores(vlm, pair)
        >>> scores.senders[:2], scores.receivers[-1]
        ((Node('[bos]'), Node('[image]')), Node('logits'))
    """
    _check_weights(vlm)
    ends = ends_of(vlm, pair, ablated)
    given = pair.pair if isinstance(pair, Bound) else pair
    layers = range(vlm.cfg.n_layers)
    sites = [Site(each, layer) for each in _INPUTS for layer in layers]
    sites += [Site("resid_pre", layer) for layer in layers]
    sites += [*giving(vlm.cfg), Site("resid_post", layers[-1])]
    todo = points(
        vlm,
        given.clean,
        given.metric,
        other=ends.ablated,
        sites=sites,
        into_mlps=layers,
        steps=steps,
    )
    table, value = _Table(Shape.of(vlm.cfg), given), 0.0
    for point in todo:
        value = point.value
        for taken in _takers(vlm, point):
            taker = taken.nodes[0]
            for changes in _givers(vlm, given, point, other=ends.ablated, taker=taker):
                table.add(changes, taken, point.weight)
    gap = gap_of(given.metric, value, ends.corrupted)
    return table.scores(given, gap)


_INPUTS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class _Part:
    """Nodes of one kind in one layer: what they give, or what they take.

    Attributes:
        nodes: The nodes.
        vectors: Change of what each gives; or gradient along each one's own way.
    """

    nodes: tuple[Node, ...]
    vectors: Float[Tensor, "node position d_model"]


def _takers(vlm: HookedVLM, point: Point) -> Iterator[_Part]:
    """Gradients at everything that reads the stream, layer by layer."""
    here = point.here
    for layer, block in enumerate(vlm.tapped.blocks):
        yield _heads_inputs(block, layer, point)
        into = wide(here.into_mlps[layer])[None]
        yield _Part((Node("mlp", layer),), into)
    last = here.at(Site("resid_post", vlm.cfg.n_layers - 1))
    yield _Part((LOGITS,), wide(last)[None])


def _heads_inputs(block: Block, layer: int, point: Point) -> _Part:
    """Gradients along the query, key and value inputs of a layer's heads."""
    attn, here = block.attn, point.here
    stream = wide(here[Site("resid_pre", layer)])
    nodes: list[Node] = []
    found = []
    with torch.no_grad():
        weights = attn.W_Q, attn.W_K, attn.W_V
    for kind, weight in zip(_INPUTS, weights, strict=True):
        heard = wide(here.at(Site(kind, layer)))
        normed = torch.einsum("phe,hde->hpd", heard, wide(weight.detach()))
        found.append(_before(block.ln1.norm, stream, normed))
        nodes += [Node(kind, layer, head) for head in range(len(normed))]
    return _Part(tuple(nodes), torch.cat(found))


def _before(
    norm: nn.Module,
    stream: Float[Tensor, "position d_model"],
    heard: Float[Tensor, "node position d_model"],
) -> Float[Tensor, "node position d_model"]:
    """Gradients before a norm, from those behind it; each node has its own."""
    with torch.enable_grad():
        leaf = stream.expand_as(heard).detach().requires_grad_()
        (found,) = torch.autograd.grad(norm(leaf), leaf, heard)
    return found


def _givers(
    vlm: HookedVLM, pair: Pair, point: Point, *, other: RunLike, taker: Node
) -> Iterator[_Part]:
    """Changes of everything that gives to a taker, layer by layer."""
    change = changed(point.own, other, Site("embed"))
    groups = sorted(pair.groups)
    parted = change.new_zeros(len(groups), *change.shape)
    for i, group in enumerate(groups):
        rows = list(pair.groups[group])
        parted[i, rows] = change[rows]
    yield _Part(tuple(map(Node.tokens, groups)), parted)
    for layer, block in enumerate(vlm.tapped.blocks):
        if Node("head", layer, 0).feeds(taker):
            change = changed(point.own, other, Site("z", layer))
            heads = [Node("head", layer, head) for head in range(vlm.cfg.n_heads)]
            z = wide(point.here[Site("z", layer)])
            yield _Part(tuple(heads), _written_by_each(block, z, change))
        if Node("mlp", layer).feeds(taker):
            change = changed(point.own, other, Site("mlp_out", layer))
            yield _Part((Node("mlp", layer),), change[None])


@torch.no_grad()
def _written_by_each(
    block: Block,
    z: Float[Tensor, "position head d_head"],
    change: Float[Tensor, "position head d_head"],
) -> Float[Tensor, "head position d_model"]:
    """What each head adds to the stream by a change of its own, to first order."""
    weight, norm = wide(block.attn.W_O), norm_behind(block.layer)
    each = torch.einsum("phe,hed->hpd", change, weight)
    if norm is None:
        return each
    whole = torch.einsum("phe,hed->pd", z, weight) + wide(block.attn.b_O)
    # Of each head, what the norm behind the attention makes of it in this whole.
    return _behind(norm, whole, each)


def _behind(
    norm: nn.Module,
    whole: Float[Tensor, "position d_model"],
    change: Float[Tensor, "node position d_model"],
) -> Float[Tensor, "node position d_model"]:
    """Changes behind a norm, from small ones before it; each node has its own.

    What is linear in its cotangent gives, derived by it, the derivative forward.
    """
    with torch.enable_grad():
        leaf = whole.expand_as(change).detach().requires_grad_()
        cotangent = torch.zeros_like(change, requires_grad=True)
        (back,) = torch.autograd.grad(norm(leaf), leaf, cotangent, create_graph=True)
        (moved,) = torch.autograd.grad(back, cotangent, change)
    return moved


class _Table:
    """Numbers of edges, added up block by block."""

    def __init__(self, shape: Shape, pair: Pair) -> None:
        """No edge has a number so far."""
        groups = map(Node.tokens, pair.groups)
        self.senders = tuple(sorted([*groups, *shape.heads, *shape.mlps]))
        heads = (each for head in shape.heads for each in shape.inputs(head))
        self.receivers = tuple(sorted({*heads, *shape.mlps, LOGITS}))
        self._rows = {node: i for i, node in enumerate(self.senders)}
        self._columns = {node: i for i, node in enumerate(self.receivers)}
        size = len(self.senders), len(self.receivers)
        self.values = torch.full(size, torch.nan, dtype=torch.float64)

    def add(self, changes: _Part, taken: _Part, weight: float) -> None:
        """Every giver's change times every taker's gradient, over all positions."""
        takers = taken.vectors.flatten(1)
        block = changes.vectors.flatten(1).to(takers) @ takers.T
        rows = torch.tensor([self._rows[node] for node in changes.nodes])[:, None]
        columns = torch.tensor([self._columns[node] for node in taken.nodes])
        before = self.values[rows, columns]
        before = torch.where(before.isnan(), 0, before)
        self.values[rows, columns] = before + weight * block.to(before)

    def scores(self, pair: Pair, gap: float) -> EdgeScores:
        """The numbers as shares of the gap that are lost.

        Raises:
            MetricError: One is none, and would be taken for an edge that is not there.
        """
        for sender, row in zip(self.senders, self.values.isfinite(), strict=True):
            for receiver, known in zip(self.receivers, row.tolist(), strict=True):
                if sender.feeds(receiver) and not known:
                    raise MetricError(
                        f"the score of {sender} -> {receiver} is not finite. Gradients"
                        " leave float16's range easily: load the model in bfloat16 or"
                        " float32."
                    )
        values = self.values / -gap
        for group, at in pair.groups.items():
            if pair.clean.layout.last not in at:
                values[self._rows[Node.tokens(group)], -1] = torch.nan
        return EdgeScores(self.senders, self.receivers, values)


def _check_weights(vlm: HookedVLM) -> None:
    """Refuse weights that are here only while their module runs."""
    for block in vlm.tapped.blocks:
        layer = block.layer
        if any(each.weight.is_meta for each in (layer.q, layer.k, layer.v, layer.o)):
            raise EngineError(
                "the weights of attention's projections are offloaded, and edges are"
                " scored with them. Load the model with a device_map that keeps them on"
                " a device."
            )
