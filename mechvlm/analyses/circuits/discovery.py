"""Finding a circuit: edges screened by gradient, measured exactly, taken greedily."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from mechvlm.ablating import Ablation
from mechvlm.analyses.circuits.cases import (
    Case,
    cases,
    check_circuit,
    described,
    exists,
    live,
    over_pairs,
    settled,
)
from mechvlm.errors import CircuitError
from mechvlm.graph import Circuit, Edge, Shape
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.screening import EdgeScores, edge_effects, edge_scores
from mechvlm.screening.bound import paired_up
from mechvlm.subgraph import Wiring
from mechvlm.wanted import one, whole_number

__all__ = ["discover"]

_THRESHOLD = 0.02
"""Least effect of an edge where no size limits the circuit."""


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
    are taken in the order of what they do, as long as it is more than `threshold`; of
    what is taken, the edges on a way from tokens to the logits are the circuit. With
    `size`, as many are taken as leave a circuit of that size or less.

    Edges are measured one at a time, so that of two that can stand in for each other
    neither shows: see `faithfulness` for what the circuit explains after all. Where a
    model has many ways to the same answer, choose heads first (`discover_heads`), and
    look for edges `within` what they make up.

    Args:
        vlm: The model.
        pairs: Pairs with the same token groups. What an edge does is summed over them,
            and is a fraction of the sum of their gaps.
        threshold: What an edge must do more than: a fraction of the gap between clean
            and ablated. None takes 0.02, or 0 where `size` is given.
        size: Most edges.
        within: A circuit to look in: all else is ablated, all of its edges are
            measured, and what an edge does is what this circuit loses without it. None
            looks in the whole model.
        ablation: What stands for an ablated sender: its value in the corrupted run
            ("counterfactual"), its mean over all prompts of the pairs, which must then
            be of one layout, "zero", or a run such as `mean_run` makes.
        top: How many edges of the whole model are measured, the best by their score;
            None measures all. A circuit to look `within` may have no more.
        steps: Places between corrupted and clean embeddings at which the gradient is
            taken: 1 takes it at the clean ones (EAP), more are EAP-IG.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        A circuit. Its `effects` say what each edge does: 1 is the whole gap, 0 nothing,
        below 0 an edge that holds the answer back.

    Raises:
        ArgumentError: An argument is of another kind, or a number below its least.
        CircuitError: No edge is left, or `within` is another model's or too large.
        EngineError: The model has hooks of its own.
        InterventionError: No ablation has this name.
        PairError: There is no pair, their token groups or metrics' units differ, or for
            "mean" their layouts.
        MetricError: A pair's metric is not larger in the model than with all ablated,
            or has no gradient.
        RunError: A given run does not fit a prompt.

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
    given = paired_up(pairs)
    least = _checked(threshold, size, top, steps)
    own = settled(vlm, given, ablation)
    shown = False if progress is False else "circuit"
    ready = cases(vlm, given, own, shown)
    if within is not None:
        area = live(check_circuit(vlm, within, "within"), given, "within")
        effects = _measured_within(vlm, ready, _within(area, top, steps))
    else:
        every = _candidates(vlm, given, own, top, steps, shown)
        effects = _measured(vlm, ready, every)
    about: dict[str, object] = {
        **described(vlm, given, ablation),
        "measured": len(effects),
        "threshold": least,
        "size": "any" if size is None else size,
        "looked_in": "the whole model" if within is None else "a circuit",
    }
    found = _grown(effects, Shape.of(vlm.cfg), least, size)
    return replace(found, model=vlm.cfg.model_name, about=about)


def _checked(
    threshold: int | float | None, size: int | None, top: int | None, steps: int
) -> float:
    """What an edge must do more than, once all limits are found to make sense."""
    for name, limit in {"size": size, "top": top, "steps": steps}.items():
        if limit is not None or name == "steps":
            whole_number(limit, 1, name)
    if threshold is None:
        return _THRESHOLD if size is None else 0.0
    one(threshold, (int, float), "threshold", "threshold=0.02")
    if not threshold >= 0:
        raise CircuitError(
            f"threshold={threshold}: wanted what an edge must do more than, a fraction"
            " of the gap, 0 or more."
        )
    return float(threshold)


def _within(area: Circuit, top: int | None, steps: int) -> Circuit:
    """A circuit to look in, small enough to measure all its edges."""
    if steps != 1:
        raise CircuitError(
            f"steps={steps}: edges within a circuit are all measured, and none is"
            " scored by gradient. Leave steps out."
        )
    if top is not None and len(area) > top:
        raise CircuitError(
            f"the circuit to look within has {len(area)} edges, and top={top} are to be"
            " measured. Give top=None, or look within fewer heads."
        )
    return area


def _candidates(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    ablation: Ablation,
    top: int | None,
    steps: int,
    shown: str | bool,
) -> tuple[Edge, ...]:
    """The edges that are measured: all, or those with the largest scores over pairs."""
    if top is None:
        every = Circuit.whole(Shape.of(vlm.cfg), pairs[0].groups).edges
        return tuple(edge for edge in every if exists(edge, pairs))
    total: torch.Tensor | float = 0.0
    for case in cases(vlm, pairs, ablation, shown):
        scores = edge_scores(vlm, case.bound, steps=steps)
        total = total + scores.values.double() * case.bound.gap
    summed = EdgeScores(scores.senders, scores.receivers, torch.as_tensor(total))
    return tuple(edge for edge, _ in summed.ranked(top))


def _measured(
    vlm: HookedVLM, ready: Iterable[Case], edges: Sequence[Edge]
) -> dict[Edge, float]:
    """What each edge does alone: share of the gap lost without it, over pairs."""
    lost, gaps = [], []
    for case in ready:
        share = edge_effects(vlm, case.bound, edges).double().cpu()
        lost.append(share * case.bound.gap)
        gaps.append(case.gap)
    return dict(zip(edges, over_pairs(lost, gaps).tolist(), strict=True))


def _measured_within(
    vlm: HookedVLM, ready: Iterable[Case], area: Circuit
) -> dict[Edge, float]:
    """What a circuit loses without each of its edges, over pairs."""
    whole = Wiring.of(area)
    kept, gaps = [], []
    for case in ready:
        less = (whole.less_edge(edge) for edge in area.edges)
        all_of_it = case.kept(vlm, [whole])
        kept.append(all_of_it - case.kept(vlm, less))
        gaps.append(case.gap)
    return dict(zip(area.edges, over_pairs(kept, gaps).tolist(), strict=True))


def _grown(
    effects: Mapping[Edge, float], shape: Shape, least: float, size: int | None
) -> Circuit:
    """The circuit of the edges that do most, as many as the limits allow.

    Raises:
        CircuitError: They leave none.
    """
    ranked = sorted(effects, key=lambda edge: -abs(effects[edge]))
    taken = [edge for edge in ranked if abs(effects[edge]) > least]
    named = {str(edge): effect for edge, effect in effects.items()}

    def of_first(n: int) -> Circuit:
        return Circuit(tuple(taken[:n]), shape, effects=named).connected()

    most = len(taken)
    if size is not None and len(of_first(most)) > size:
        # One edge more never leaves a smaller circuit.
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (middle, high) if len(of_first(middle)) <= size else (low, middle)
            )
        most = low
    found = of_first(most)
    if not found.edges:
        best = f"{ranked[0]} does {effects[ranked[0]]:.3g} of the gap"
        raise CircuitError(
            f"no circuit is left of the {len(effects)} edges that were measured:"
            f" {best}, {len(taken)} do more than {least:g}, and those that"
            f" size={size} allows make no way from tokens to logits. Take a lower"
            " threshold or a larger size."
        )
    return found
