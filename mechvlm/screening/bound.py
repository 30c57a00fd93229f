"""What several calls on one pair share, and what several pairs must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from mechvlm.ablating import check_values, giving
from mechvlm.errors import ArgumentError, MetricError, PairError
from mechvlm.metrics import Metric, recovery
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.lowering import RunLike
from mechvlm.pairs import Pair
from mechvlm.record import Run, base_run, record
from mechvlm.wanted import one, several

__all__ = [
    "Bound",
    "Ends",
    "bound",
    "check_order",
    "ends_of",
    "gap_of",
    "metrics_of",
    "paired_up",
    "weighed",
]


@dataclass(frozen=True, eq=False)
class Bound:
    """A pair whose runs were made, to be used by several calls.

    Attributes:
        pair: The pair.
        base: Clean prompt's base run.
        ablated: What stands in for a value that is taken away, at the sites embed, z
            and mlp_out; the corrupted prompt's run unless another was given.
        clean: Metric of the clean prompt.
        corrupted: Metric of the corrupted prompt.
        gap: The metric's difference between clean and corrupted prompt, never 0.
    """

    pair: Pair
    base: Run
    ablated: RunLike
    clean: float
    corrupted: float
    gap: float


@dataclass(frozen=True, eq=False)
class Ends:
    """Where changes lead: another run's values, and the metric at its end."""

    ablated: RunLike
    corrupted: float


def bound(vlm: HookedVLM, pair: Pair, *, ablated: RunLike | None = None) -> Bound:
    """Run both prompts of a pair once, for all that will be asked about it.

    Args:
        vlm: The model.
        pair: The two prompts.
        ablated: Values at the sites embed, z and mlp_out that take the place of the
            clean ones, such as means over many prompts; None takes the corrupted
            prompt's. The gap stays that between clean and corrupted prompt.

    Raises:
        EngineError: The model has hooks.
        MetricError: The metric is the same for both prompts.
        ArgumentError: The ablated values are no run.
        RunError: They lack a site, or are not as long as the prompts.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> words = "what color is it ?", scene.things[0].color, "cyan"
        >>> pair = mv.bind(vlm, mv.PicturePair(scene.image, twin.image, *words))
        >>> once = bound(vlm, pair)
        >>> once.gap == once.clean - once.corrupted
        True
    """
    one(pair, Pair, "pair", "mechvlm.bind(vlm, ...)")
    ends = ends_of(vlm, pair, ablated)
    base = base_run(vlm, pair.clean)
    clean = float(pair.metric(base.logits[None])[0])
    gap = gap_of(pair.metric, clean, ends.corrupted)
    return Bound(pair, base, ends.ablated, clean, ends.corrupted, gap)


@torch.no_grad()
def ends_of(vlm: HookedVLM, pair: Pair | Bound, ablated: RunLike | None) -> Ends:
    """What replaces the clean values: one forward, or none where a pair is bound.

    Raises:
        ArgumentError: A bound pair came with other values beside its own, or these are
            no run.
        RunError: They lack a site, or are not as long as the prompts.
    """
    if isinstance(pair, Bound):
        if ablated is not None:
            raise ArgumentError(
                "ablated was given beside a bound pair, which has values of its own."
                " Give it to bound(vlm, pair, ablated=...)."
            )
        return Ends(pair.ablated, pair.corrupted)
    one(pair, Pair, "pair", "mechvlm.bind(vlm, ...), or bound(vlm, pair)")
    if ablated is not None:
        check_values(vlm.cfg, ablated, pair.clean.layout.n)
    run = record(vlm, pair.corrupted, () if ablated is not None else giving(vlm.cfg))
    corrupted = float(pair.metric(run.logits[None])[0])
    return Ends(run if ablated is None else ablated, corrupted)


def gap_of(metric: Metric, clean: float, corrupted: float) -> float:
    """The metric's difference between the two prompts.

    Raises:
        MetricError: There is none.
    """
    recovery(metric, clean=clean, corrupted=corrupted)
    return clean - corrupted


# --- several pairs --------------------------------------------------------------------


def paired_up(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs whose nodes and edges are the same, and whose metrics can be added up.

    Raises:
        ArgumentError: They are no list of pairs.
        PairError: There is none; their token groups are called differently, or the last
            position is in another one; or their metrics have different units.
    """
    given = several(pairs, Pair, "pairs", "[mechvlm.bind(vlm, picture_pair), ...]")
    if not given:
        raise PairError("no pair is given, so there is nothing to average over.")
    kinds = [_kinds_of(pair) for pair in given]
    for kind in kinds[1:]:
        if kind != kinds[0]:
            raise PairError(
                f"one pair has the token groups {sorted(kinds[0])} and another"
                f" {sorted(kind)} (true: with the last position): what nodes and edges"
                " do there cannot be averaged. Name them alike in all pairs."
            )
    units = sorted({pair.metric.units for pair in given})
    if len(units) > 1:
        raise PairError(
            f"the pairs' metrics are in {' and in '.join(units)}: their gaps cannot be"
            " added up. Give all pairs one kind of metric, such as logit_difference."
        )
    return given


def _kinds_of(pair: Pair) -> dict[str, bool]:
    """Token groups, and whether they have the last position: an edge to the logits."""
    last = pair.clean.layout.last
    return {group: last in at for group, at in pair.groups.items()}


def metrics_of(pairs: Sequence[Pair]) -> dict[str, str | list[str]]:
    """What was measured in some pairs, for a result's attributes.

    Returns:
        "metric", or "metrics" where there are several; and "metric_units".
    """
    names = sorted({pair.metric.name for pair in pairs})
    units = pairs[0].metric.units
    if len(names) == 1:
        return {"metric": names[0], "metric_units": units}
    return {"metrics": names, "metric_units": units}


def check_order(name: str, metric: Metric, *, clean: float, corrupted: float) -> float:
    """The gap of one of several pairs, above 0: others would cancel where they add up.

    Args:
        name: What the pair is called.
        metric: What is measured.
        clean: Its value in the clean run.
        corrupted: Its value in the corrupted run.

    Raises:
        MetricError: The corrupted value is the higher one, or is the same.
    """
    gap = gap_of(metric, clean, corrupted)
    if gap < 0:
        raise MetricError(
            f"pair {name}: {metric.name} is {clean:.4g} in the clean and"
            f" {corrupted:.4g} in the corrupted run, which is the higher one. A gap"
            " below 0 would turn the sign of all that is averaged with it. Does the"
            " model answer this pair right? Leave the pair out, or swap its prompts."
        )
    return gap


def weighed(
    shares: Float[np.ndarray, "pair ..."], gaps: Float[np.ndarray, " pair"]
) -> Float[np.ndarray, "pair ..."]:
    """Shares of each pair's gap, so that their plain mean is one of all gaps together.

    A share of a small gap is a large number of a small thing. With each share times its
    gap over the mean gap, the mean over pairs is the sum of differences over the sum of
    gaps, which no single pair takes over.

    Args:
        shares: Shares of the gaps, by pair.
        gaps: The gaps, all above 0 and in one unit.

    Example:
        >>> shares, gaps = np.array([0.5, 9.0]), np.array([8.0, 0.1])
        >>> found = weighed(shares, gaps)
        >>> bool(np.isclose(found.mean(), (0.5 * 8 + 9 * 0.1) / (8 + 0.1)))
        True
    """
    weights = (gaps / gaps.mean()).reshape(-1, *[1] * (shares.ndim - 1))
    found: Float[np.ndarray, "pair ..."] = shares * weights
    return found
