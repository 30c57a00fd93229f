"""Multiplications: of whole passes, and the least that an act needs.

Counted here from the geometry alone, by following which rows change. A row whose
attention changes attends again to every key that it reads; a row that enters a layer
unchanged needs no new query, key or value; of the last layer only the last row is read.
Norms, rotations and softmaxes are left out of every count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from arena.geometry import Geometry, Scene
from arena.sweeps import Act, Blank, Cut, Direct, IntoQuery, SwapHead, SwapStream

LINEAR_ROWS = 4096
ATTENTION_ROWS = 512


@dataclass(frozen=True)
class Work:
    """Rows of one layer's matrix products, over one or more acts.

    Attributes:
        keys: Rows that get new keys and values.
        queries: Rows that get new queries.
        attending: Rows that attend, and go through the output projection.
        pairs: Pairs of a row that attends and a key that it reads.
        slices: Rows in which one head's output is projected alone.
        leaving: Rows that go through the MLP.
    """

    keys: int = 0
    queries: int = 0
    attending: int = 0
    pairs: int = 0
    slices: int = 0
    leaving: int = 0

    def __add__(self, other: Work) -> Work:
        """Both together."""
        return Work(**{name: x + vars(other)[name] for name, x in vars(self).items()})

    def flops(self, geometry: Geometry) -> int:
        """Floating-point operations; a multiplication with its addition counts two."""
        d, d_mlp, d_head = geometry.d_model, geometry.d_mlp, geometry.d_head
        linear = 2 * d * d * (self.queries + 2 * self.keys + self.attending)
        mlp = 6 * d * d_mlp * self.leaving
        return linear + mlp + 4 * d * self.pairs + 2 * d * d_head * self.slices


def whole(geometry: Geometry) -> list[Work]:
    """A whole pass, by layer."""
    n = geometry.n
    layer = Work(n, n, n, n * (n + 1) // 2, 0, n)
    return [layer] * geometry.n_layers


def least(geometry: Geometry, acts: Iterable[Act]) -> list[Work]:
    """The rows that the acts change and the last position sees, by layer."""
    total = [Work()] * geometry.n_layers
    for act in acts:
        both = zip(total, cone(geometry, act), strict=True)
        total = [a + b for a, b in both]
    return total


def flops(geometry: Geometry, layers: Iterable[Work], n_acts: int) -> int:
    """Operations of these layers and of unembedding one row per act."""
    inside = sum(layer.flops(geometry) for layer in layers)
    return inside + 2 * geometry.d_model * geometry.d_vocab * n_acts


def cone(geometry: Geometry, act: Act) -> list[Work]:
    """The rows of each layer that one act changes."""
    n, end = geometry.n, geometry.n_layers - 1
    if isinstance(act, Direct):  # its vector, and nothing in any layer
        return [Work()] * end + [Work(slices=1)]
    if isinstance(act, IntoQuery):
        return into_query(geometry, act)
    row, changed = torch.arange(n), torch.zeros(n, dtype=torch.bool)
    found = []
    for layer in range(geometry.n_layers):
        entering, sliced, cut = written(act, layer, changed)
        kept = row + 1
        kept[list(cut)] -= removed(act, cut)
        first = int(entering.int().argmax()) if bool(entering.any()) else n
        attending = row >= first
        attending[list(cut)] = True
        if layer == end:
            attending &= row == n - 1
            sliced = sliced & (row == n - 1)
        leaving = attending | sliced
        found.append(
            Work(
                keys=int(entering.sum()),
                queries=int((entering & attending).sum()),
                attending=int(attending.sum()),
                pairs=int(kept[attending].sum()),
                slices=int(sliced.sum()),
                leaving=int(leaving.sum()),
            )
        )
        changed = leaving
    return found


def into_query(geometry: Geometry, act: IntoQuery) -> list[Work]:
    """One row: a head's vector, another head's query and output; then every layer."""
    n, behind = geometry.n, geometry.n_layers - 1 - act.into_layer
    there = Work(pairs=n // geometry.n_heads, slices=3, leaving=1)
    row = Work(keys=1, queries=1, attending=1, pairs=n, leaving=1)
    return [Work()] * act.into_layer + [there] + [row] * behind


def written(
    act: Act, layer: int, changed: Tensor
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """What the act does in a layer: rows that enter, rows of a head, rows cut."""
    entering, sliced = changed.clone(), torch.zeros_like(changed)
    match act:
        case SwapStream(at_layer, at) if at_layer == layer:
            entering[at] = True
        case Blank(at) if layer == 0:
            entering[list(at)] = True
        case SwapHead(at_layer, _, at) if at_layer == layer:
            sliced[at:] = True
        case Cut(layers, target, _) if layer in layers:
            return entering, sliced, target
    return entering, sliced, ()


def removed(act: Act, rows: tuple[int, ...]) -> Tensor:
    """How many keys each cut row does not read any more."""
    if not isinstance(act, Cut) or not rows:
        return torch.zeros(0, dtype=torch.long)
    source = torch.tensor(act.source)
    return (source[None] <= torch.tensor(rows)[:, None]).sum(dim=1)


# -- the same products, bare ---------------------------------------------------------


@torch.no_grad()
def bare(scene: Scene, layers: list[Work]) -> None:
    """These matrix products and nothing else, with the model's own weights."""
    model = scene.vlm.hf_model
    for work, layer in zip(layers, model.model.language_model.layers, strict=True):
        bare_layer(scene.geometry, work, layer)


def bare_layer(geometry: Geometry, work: Work, layer: Any) -> None:
    """One layer's products, with its own weights."""
    attn, mlp = layer.self_attn, layer.mlp
    bare_linear(work.queries, attn.q_proj.weight)
    bare_linear(work.keys, attn.k_proj.weight)
    bare_linear(work.keys, attn.v_proj.weight)
    bare_attention(geometry, work, attn.q_proj.weight)
    bare_linear(work.attending, attn.o_proj.weight)
    bare_linear(work.slices, attn.o_proj.weight[:, : geometry.d_head])
    bare_linear(work.leaving, mlp.gate_proj.weight)
    bare_linear(work.leaving, mlp.up_proj.weight)
    bare_linear(work.leaving, mlp.down_proj.weight)


def bare_linear(rows: int, weight: Tensor) -> None:
    """Rows through a weight, so many at a time."""
    x = weight.new_ones(min(rows, LINEAR_ROWS), weight.shape[1])
    for at in range(0, rows, LINEAR_ROWS):
        F.linear(x[: rows - at], weight)


def bare_attention(geometry: Geometry, work: Work, like: Tensor) -> None:
    """Scores and sums over values, with as many keys as a row reads on average.

    The results of equal batches go into the same memory: fresh memory costs more.
    """
    if not work.attending:
        return
    heads, d_head = geometry.n_heads, geometry.d_head
    n_keys = max(1, round(work.pairs / work.attending))
    keys = like.new_ones(heads, n_keys, d_head)
    many, rest = divmod(work.attending, ATTENTION_ROWS)
    for rows, times in ((ATTENTION_ROWS, many), (rest, min(rest, 1))):
        queries = like.new_ones(heads, rows, d_head)
        scores = like.new_empty(heads, rows, n_keys)
        sums = torch.empty_like(queries)
        for _ in range(times):
            torch.bmm(queries, keys.mT, out=scores)
            torch.bmm(scores, keys, out=sums)
