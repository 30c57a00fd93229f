"""Finding a circuit: edges screened by gradient, verified exactly, taken greedily."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mechvlm.ablating import Ablation
from mechvlm.analyses.circuits.cases import (
    Case,
    cases,
    check_circuit,
    described,
    paired_up,
)
from mechvlm.errors import CircuitError
from mechvlm.graph import LOGITS, Circuit, Edge, Shape
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.screening import EdgeScores, edge_effects, edge_scores
from mechvlm.subgraph import Wiring

__all__ = ["discover"]

_THRESHOLD = 0.02
"""Least effect of an edge where nothing else limits the circuit."""


def discover(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    *,
    threshold: int | float | None = None,
    size: int | None = None,
    within: Circuit | None = None,
    ablation: Ablation = "counterfactual",
    top: int | None = 1000,
    steps: int = 1,
    progress: bool | None = None,
) -> Circuit:
    """Find the circuit that tells clean from corrupted prompts.

    Every edge is scored by gradient, and what the best of them do is then measured: the
    clean prompt is run with the sender's ablated value on that edge alone. The edges
    are taken in the order of what they do, until one does less than `threshold` or
    there are `size` of them. What then lies on no way from tokens to the logits is left
    out.

    Edges are measured one at a time, so that of two that can stand in for each other
    neither shows: see `faithfulness` for what the circuit explains after all. Where a
    model has many ways to the same answer, choose heads first (`discover_heads`), and
    look for edges `within` what they make up.

    Args:
        vlm: The model.
        pairs: Pairs with the same token groups; what an edge does is averaged over
            them.
        threshold: Least size of an edge's effect, a fraction of the gap between clean
            and ablated; None takes 0.02, or 0 where `size` is given.
        size: Most edges.
        within: A circuit to look in: all else is ablated, and what an edge does is what
            the circuit loses without it. None looks in the whole model.
        ablation: What stands for an ablated sender: its value in the corrupted run
            ("counterfactual"), its mean over all prompts of the pairs, which must then
            be of one layout, "zero", or a run such as `mean_run` makes.
        top: How many edges are measured, the best by their score; None measures all.
        steps: Places between corrupted and clean embeddings at which the gradient is
            taken: 1 takes it at the clean ones (EAP), more are EAP-IG.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        A circuit. Its `effects` say what each edge does alone, averaged over pairs: 1
        is the whole gap, 0 nothing, below 0 an edge that holds the answer back.

    Raises:
        CircuitError: No edge is left, `size`, `top` or `threshold` leave none to be
            found, or `within` is another model's.
        EngineError: The model has hooks of its own.
        PairError: The pairs' token groups, or for "mean" their layouts, differ.
        MetricError: A pair's metric is the same clean and ablated, or has no gradient.

    Paper: Wang et al. 2022, arXiv:2211.00593; screening as in Syed et al. 2023,
    arXiv:2310.10348, and Hanna et al. 2024, arXiv:2403.17806.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> twin = mv.scenes.counterfactual(scene, change="color")
        >>> pair = mv.bind(vlm, twin.pair)
        >>> circuit = mv.discover(vlm, [pair], size=40, top=80, progress=False)
        >>> len(circuit) <= 40, str(circuit.nodes[-1])
        (True, 'logits')
    """
    least = _least(threshold, size, top)
    given = paired_up(pairs)
    shape = Shape.of(vlm.cfg)
    shown = False if progress is False else "circuit"
    if within is not None:
        every = check_circuit(vlm, within, "within").edges
    elif top is not None:
        ready = cases(vlm, given, ablation, shown)
        every = _screened(vlm, ready, steps, top)
    else:
        every = Circuit.whole(shape, given[0].groups).edges
    every = tuple(edge for edge in every if _exists(edge, given))
    ready = cases(vlm, given, ablation, shown)
    effects = (
        _measured(vlm, ready, every)
        if within is None
        else _measured_within(vlm, ready, within, every)
    )
    ranked = sorted(effects, key=lambda edge: -abs(effects[edge]))[:size]
    taken = [edge for edge in ranked if abs(effects[edge]) > least]
    about: dict[str, object] = {
        **described(vlm, given, ablation),
        "measured": len(every),
        "threshold": least,
        "size": size or "any",
    }
    kept = {str(edge): effects[edge] for edge in taken}
    found = Circuit(tuple(taken), shape, vlm.cfg.model_name, kept, about).connected()
    if not found.edges:
        best = f"{ranked[0]} does {effects[ranked[0]]:.3g} of the gap"
        raise CircuitError(
            f"no circuit is left of the {len(every)} edges that were measured: {best},"
            f" and of the {len(taken)} that were taken none lies on a way from tokens"
            " to logits. Take a lower threshold, or more edges."
        )
    return found


def _exists(edge: Edge, pairs: Sequence[Pair]) -> bool:
    """Whether an edge joins positions: the logits are of the last one alone."""
    if edge.sender.kind != "tokens" or edge.receiver != LOGITS:
        return True
    return all(p.clean.layout.last in p.groups[edge.sender.group] for p in pairs)


def _least(threshold: int | float | None, size: int | None, top: int | None) -> float:
    """Least effect of an edge, once all limits are found to make sense."""
    for name, limit in {"size": size, "top": top}.items():
        if limit is not None and limit < 1:
            raise CircuitError(
                f"{name}={limit}: wanted 1 or more, or None for no limit."
            )
    if threshold is None:
        return _THRESHOLD if size is None else 0.0
    if not threshold >= 0:
        raise CircuitError(
            f"threshold={threshold}: wanted the least size of an edge's effect, a"
            " fraction of the gap, 0 or more."
        )
    return float(threshold)


def _screened(
    vlm: HookedVLM, ready: Iterable[Case], steps: int, top: int
) -> tuple[Edge, ...]:
    """The edges with the largest scores, averaged over pairs."""
    each = [
        (edge_scores(vlm, case.bound, steps=steps), case.bound.gap / case.gap)
        for case in ready
    ]
    first = each[0][0]
    total = torch.stack([scores.values * scale for scores, scale in each]).mean(dim=0)
    ranked = EdgeScores(first.senders, first.receivers, total).ranked(top)
    return tuple(edge for edge, _ in ranked)


def _measured(
    vlm: HookedVLM, ready: Iterable[Case], edges: Sequence[Edge]
) -> dict[Edge, float]:
    """What each edge does alone: share of the gap lost without it, over pairs."""
    each = [
        edge_effects(vlm, case.bound, edges).double().cpu() * case.bound.gap / case.gap
        for case in ready
    ]
    return dict(zip(edges, torch.stack(each).mean(dim=0).tolist(), strict=True))


def _measured_within(
    vlm: HookedVLM, ready: Iterable[Case], area: Circuit, edges: Sequence[Edge]
) -> dict[Edge, float]:
    """What a circuit loses without each edge, over pairs."""
    less = (Wiring.along(set(area.edges) - {edge}) for edge in edges)
    wirings = [Wiring.of(area), *less]
    each = [case.shares(vlm, wirings) for case in ready]
    whole, *without = torch.stack(each).double().mean(dim=0).tolist()
    return {edge: whole - x for edge, x in zip(edges, without, strict=True)}
