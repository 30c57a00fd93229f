"""Score everything by gradient, verify the best exactly, and audit the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.analyses.attribution.agreement import agreement, missed
from mechvlm.analyses.attribution.patching import PAPER
from mechvlm.axes import Labelled, labelled
from mechvlm.errors import ArgumentError
from mechvlm.graph import Edge, Node
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.screening import (
    Bound,
    bound,
    edge_effects,
    edge_scores,
    node_effects,
    node_scores,
)
from mechvlm.screening.bound import check_order, metrics_of, paired_up, weighed
from mechvlm.statistics import mean_of
from mechvlm.wanted import whole_number

__all__ = ["Of", "screen_then_verify"]

Of: TypeAlias = Literal["edges", "nodes", "heads"]
Candidate: TypeAlias = Edge | Node

_UNITS = "fraction of the clean-corrupted gap that is lost"


def screen_then_verify(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    *,
    of: Of = "edges",
    top: int = 50,
    audit: int = 50,
    steps: int = 1,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Score everything by gradient and verify the best, and a random sample, exactly.

    Gradients score all candidates at once, to first order. What the best of them do is
    then measured, and so is a random sample of the others: it tells what the screen
    passes over.

    Over pairs, scores and effects are the sum of what is lost over the sum of all gaps:
    a pair with a small gap, a share of which is easily large, counts as little as it
    has to lose.

    Args:
        vlm: The model; no weight's `requires_grad` is touched.
        pairs: Pairs with the same token groups and metrics of one unit. In each the
            metric must be higher for the clean prompt.
        of: "edges"; "heads"; or "nodes": heads, MLPs and token groups.
        top: How many are verified, the best by the size of their score.
        audit: How many of the others are verified, drawn at random; as many as there
            are, where there are fewer.
        steps: 1 scores by the gradient at the clean prompt. More take its mean over the
            middles of as many equal steps from the corrupted embeddings to the clean
            ones: better where attention is saturated, for as many times the cost.
        seed: Of the draw; 0 or more.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Over (candidate), the best first and then the audited: "score", the estimated
        share of the clean-corrupted gap that is lost where the candidate carries the
        corrupted prompt's value, 0 nothing and 1 all of it; "effect", the measured
        share, with its interval "effect_low", "effect_high", nan for fewer than six
        pairs: a bootstrap over pairs of each one's share times its gap over the mean
        gap. The coordinate "role" is "top" or "audit". Over (pair, candidate):
        "score_each", "effect_each", shares of the pair's own gap. Over (pair): "gap",
        the metric's clean less its corrupted value, in its own unit. `attrs`:

        - metric, or metrics where pairs have several; candidates, verified, pairs:
          their numbers.
        - agreement: of "all", "top" and "audit", the rank correlations (spearman,
          kendall) of score and effect, the same of their sizes (spearman_of_sizes), the
          share with the same sign among those that do anything (same_sign, with low,
          high, n), and n; None where there are too few, or no two differ.
        - missed: of the n audited, the share whose effect is larger in size than the
          smallest of the top, smallest_of_top, and than rounding (share, share_low,
          share_high); how many misses this makes of those that were not verified
          (estimated, estimated_low, estimated_high); and the largest effect among the
          audited (largest, and whose: candidate). None where nothing was audited.

    Raises:
        ArgumentError: `of` is none of the three, or a number is none or out of range.
        PairError: There is no pair, token groups are called differently, or metrics
            have different units.
        MetricError: A metric has no gradient, or is no higher for the clean prompt than
            for the corrupted one.

    Paper: Syed et al. 2023, arXiv:2310.10348; with steps, Hanna et al. 2024,
    arXiv:2403.17806.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> asked = f"what color is the {scene.things[0].shape} ?"
        >>> words = asked, scene.things[0].color, "cyan"
        >>> pair = mv.bind(vlm, mv.PicturePair(scene.image, twin.image, *words))
        >>> found = mv.screen_then_verify(vlm, [pair], of="heads", top=8, audit=8)
        >>> found.sizes["candidate"], found.attrs["agreement"]["all"]["spearman"] > 0.5
        (16, True)
    """
    given = paired_up(pairs)
    ids = ids_of([pair.id for pair in given], "pair")
    if of not in get_args(Of):
        raise ArgumentError(f"of={of!r}: wanted {', '.join(get_args(Of))}.")
    top, audit = whole_number(top, 1, "top"), whole_number(audit, 0, "audit")
    steps, seed = whole_number(steps, 1, "steps"), whole_number(seed, 0, "seed")
    named = dict(zip(ids, given, strict=True))
    screen = _screened(vlm, named, of, steps=steps, progress=progress)
    at, roles = _chosen(len(screen.candidates), top, audit, seed=seed)
    chosen = [screen.candidates[place] for place in at]
    labels = list(map(str, chosen))
    effects = _effects(vlm, named, chosen, progress=progress)
    arrays = _arrays(
        screen.scores[:, at], effects, screen.gaps, pair=ids, candidate=labels
    )
    units = given[0].metric.units
    arrays["gap"] = labelled(
        screen.gaps, name="gap", units=units, paper=PAPER, attrs=None, pair=ids
    )
    score, effect = arrays["score"].values, arrays["effect"].values
    result = xr.Dataset(arrays).assign_coords(role=("candidate", roles))
    return result.assign_attrs(
        paper=PAPER,
        model=vlm.cfg.model_name,
        **metrics_of(given),
        of=of,
        steps=steps,
        seed=seed,
        pairs=len(given),
        candidates=len(screen.candidates),
        verified=len(chosen),
        layer_convention="L2: what layer 2 computes, from h[2] to h[3]",
        agreement=agreement(score, effect, roles),
        missed=missed(effect, labels, roles, len(screen.candidates)),
    )


@dataclass(frozen=True, eq=False)
class _Screen:
    """What gradients say of every candidate, the best first.

    Attributes:
        candidates: What was scored.
        scores: Shares of each pair's own gap.
        gaps: The gaps, all above 0.
    """

    candidates: list[Candidate]
    scores: Float[np.ndarray, "pair candidate"]
    gaps: Float[np.ndarray, " pair"]


def _screened(
    vlm: HookedVLM,
    pairs: Mapping[str, Pair],
    of: Of,
    *,
    steps: int,
    progress: bool | None,
) -> _Screen:
    """Every candidate's score in each pair."""
    rows: list[dict[Candidate, float]] = []
    each = []
    with bar_of(len(pairs), progress is not False and "screening") as bar:
        for name, pair in pairs.items():
            once = bound(vlm, pair)
            ends = {"clean": once.clean, "corrupted": once.corrupted}
            each.append(check_order(name, pair.metric, **ends))
            rows.append(dict(_of_pair(vlm, once, of, steps=steps)))
            bar.update()
    found, gaps = list(rows[0]), np.array(each)
    scores = np.array([[row[one] for one in found] for row in rows])
    means = weighed(scores, gaps).mean(axis=0)
    order = sorted(range(len(found)), key=lambda i: (-abs(means[i]), str(found[i])))
    return _Screen([found[i] for i in order], scores[:, order], gaps)


def _of_pair(
    vlm: HookedVLM, once: Bound, of: Of, *, steps: int
) -> Sequence[tuple[Candidate, float]]:
    if of == "edges":
        return edge_scores(vlm, once, steps=steps).ranked()
    ranked = node_scores(vlm, once, steps=steps).ranked()
    return [each for each in ranked if of == "nodes" or each[0].kind == "head"]


def _chosen(n: int, top: int, audit: int, *, seed: int) -> tuple[list[int], list[str]]:
    """Places of the best of n, and of some of the rest; and what each is there for."""
    best, rest = range(min(top, n)), range(min(top, n), n)
    size = min(audit, len(rest))
    drawn = np.random.default_rng(seed).choice(len(rest), size, replace=False)
    audited = [rest[i] for i in sorted(drawn)]
    return [*best, *audited], ["top"] * len(best) + ["audit"] * len(audited)


def _effects(
    vlm: HookedVLM,
    pairs: Mapping[str, Pair],
    chosen: Sequence[Candidate],
    *,
    progress: bool | None,
) -> Float[np.ndarray, "pair candidate"]:
    """What each candidate does in each pair, exactly."""
    edges = [each for each in chosen if isinstance(each, Edge)]
    nodes = [each for each in chosen if isinstance(each, Node)]
    rows = []
    for name, pair in pairs.items():
        shown = progress is not False and f"verifying {name}"
        found = (
            edge_effects(vlm, pair, edges, progress=shown)
            if edges
            else node_effects(vlm, pair, nodes, progress=shown)
        )
        rows.append(found.double().numpy())
    return np.stack(rows)


def _arrays(
    scores: Float[np.ndarray, "pair candidate"],
    effects: Float[np.ndarray, "pair candidate"],
    gaps: Float[np.ndarray, " pair"],
    **both: Sequence[str],
) -> dict[str, Labelled]:
    """Shares of each pair, and those of all gaps together with effects' intervals."""
    spread = np.array([mean_of(column)[:3] for column in weighed(effects, gaps).T])
    alone = {"candidate": both["candidate"]}
    found = {
        "score": (weighed(scores, gaps).mean(axis=0), alone),
        "effect": (spread[:, 0], alone),
        "effect_low": (spread[:, 1], alone),
        "effect_high": (spread[:, 2], alone),
        "score_each": (scores, both),
        "effect_each": (effects, both),
    }
    return {
        name: labelled(values, name=name, units=_UNITS, paper=PAPER, attrs=None, **dims)
        for name, (values, dims) in found.items()
    }
