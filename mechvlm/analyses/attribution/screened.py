"""Score everything by gradient, verify the best exactly, and audit the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.analyses.attribution.agreement import agreement, missed
from mechvlm.analyses.attribution.patching import PAPER
from mechvlm.axes import Labelled, labelled
from mechvlm.errors import ArgumentError, PairError
from mechvlm.graph import Edge, Node
from mechvlm.models.hooked import HookedVLM
from mechvlm.pairs import Pair
from mechvlm.posing import ids_of
from mechvlm.progress import bar_of
from mechvlm.screening import edge_effects, edge_scores, node_effects, node_scores
from mechvlm.statistics import mean_of
from mechvlm.wanted import several

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
    passes over. All means are over pairs.

    Args:
        vlm: The model; no weight's `requires_grad` is touched.
        pairs: Pairs with the same token groups.
        of: "edges"; "heads"; or "nodes": heads, MLPs and token groups.
        top: How many are verified, the best by the size of their score.
        audit: How many of the others are verified, drawn at random; as many as there
            are, where there are fewer.
        steps: 1 scores by the gradient at the clean prompt. More take its mean over the
            middles of as many equal steps from the corrupted embeddings to the clean
            ones: better where attention is saturated, for as many times the cost.
        seed: Of the draw.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        Over (candidate), the best first and then the audited: "score", the estimated
        share of the clean-corrupted gap that is lost where the candidate carries the
        corrupted prompt's value, 0 nothing and 1 all of it; "effect", the measured
        share, with bootstrap interval "effect_low", "effect_high", nan for fewer than
        six pairs. The coordinate "role" is "top" or "audit". Over (pair, candidate):
        "score_each", "effect_each". `attrs`:

        - candidates, verified, pairs: their numbers.
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
        ArgumentError: `of` is none of the three, or a number is out of range.
        PairError: There is no pair, or token groups are called differently.
        MetricError: The metric has no gradient, or is the same for both prompts.

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
    given = _paired_up(pairs)
    ids = ids_of([pair.id for pair in given], "pair")
    _check(of, top, audit)
    scores = _scored(vlm, given, of, steps, progress)
    chosen, roles = _chosen(scores, top, audit, seed)
    each = np.stack([scores[candidate] for candidate in chosen], axis=1)
    effects = _effects(vlm, given, ids, chosen, progress)
    result = xr.Dataset(_arrays(each, effects, list(map(str, chosen)), ids))
    return result.assign_coords(role=("candidate", roles)).assign_attrs(
        paper=PAPER,
        model=vlm.cfg.model_name,
        metrics=sorted({pair.metric.name for pair in given}),
        of=of,
        steps=steps,
        seed=seed,
        pairs=len(given),
        candidates=len(scores),
        verified=len(chosen),
        layer_convention="L2: what layer 2 computes, from h[2] to h[3]",
        agreement=agreement(each.mean(axis=0), effects.mean(axis=0), roles),
        missed=missed(effects.mean(axis=0), list(map(str, chosen)), roles, len(scores)),
    )


def _paired_up(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs whose candidates are the same."""
    given = several(pairs, Pair, "pairs", "[mechvlm.bind(vlm, picture_pair), ...]")
    if not given:
        raise PairError("no pair is given, so there is nothing to score.")
    kinds = [_kinds_of(pair) for pair in given]
    for kind in kinds[1:]:
        if kind != kinds[0]:
            raise PairError(
                f"one pair has the token groups {sorted(kinds[0])} and another"
                f" {sorted(kind)} (true: with the last position): their scores cannot"
                " be averaged. Name groups alike in all pairs."
            )
    return given


def _kinds_of(pair: Pair) -> dict[str, bool]:
    """Token groups, and whether they have the last position: an edge to the logits."""
    last = pair.clean.layout.last
    return {group: last in at for group, at in pair.groups.items()}


def _check(of: str, top: int, audit: int) -> None:
    if of not in get_args(Of):
        raise ArgumentError(f"of={of!r}: wanted {', '.join(get_args(Of))}.")
    if top < 1 or audit < 0:
        raise ArgumentError(
            f"top={top}, audit={audit}: wanted at least 1 to verify, and 0 or more to"
            " audit."
        )


Scores: TypeAlias = dict[Candidate, Float[np.ndarray, " pair"]]


def _scored(
    vlm: HookedVLM, pairs: Sequence[Pair], of: Of, steps: int, progress: bool | None
) -> Scores:
    """Every candidate's score in each pair, the largest mean first."""
    rows = []
    with bar_of(len(pairs), progress is not False and "screening") as bar:
        for pair in pairs:
            rows.append(dict(_of_pair(vlm, pair, of, steps)))
            bar.update()
    found = {one: np.array([row[one] for row in rows]) for one in rows[0]}
    order = sorted(found, key=lambda one: (-abs(found[one].mean()), str(one)))
    return {one: found[one] for one in order}


def _of_pair(
    vlm: HookedVLM, pair: Pair, of: Of, steps: int
) -> Sequence[tuple[Candidate, float]]:
    if of == "edges":
        return edge_scores(vlm, pair, steps=steps).ranked()
    ranked = node_scores(vlm, pair, steps=steps).ranked()
    return [each for each in ranked if of == "nodes" or each[0].kind == "head"]


def _chosen(
    scores: Scores, top: int, audit: int, seed: int
) -> tuple[list[Candidate], list[str]]:
    """The best candidates, and some of the rest; and what each is there for."""
    ranked = list(scores)
    best, rest = ranked[:top], ranked[top:]
    n = min(audit, len(rest))
    drawn = np.random.default_rng(seed).choice(len(rest), n, replace=False)
    audited = [rest[i] for i in sorted(drawn)]
    return [*best, *audited], ["top"] * len(best) + ["audit"] * len(audited)


def _effects(
    vlm: HookedVLM,
    pairs: Sequence[Pair],
    ids: Sequence[str],
    chosen: Sequence[Candidate],
    progress: bool | None,
) -> Float[np.ndarray, "pair candidate"]:
    """What each candidate does in each pair, exactly."""
    edges = [each for each in chosen if isinstance(each, Edge)]
    nodes = [each for each in chosen if isinstance(each, Node)]
    rows = []
    for pair, name in zip(pairs, ids, strict=True):
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
    labels: Sequence[str],
    ids: Sequence[str],
) -> dict[str, Labelled]:
    """Values of each pair, and their means with the effects' intervals."""
    spread = np.array([mean_of(column)[:3] for column in effects.T])
    both: dict[str, Sequence[str]] = {"pair": ids, "candidate": labels}
    alone: dict[str, Sequence[str]] = {"candidate": labels}
    found = {
        "score": (scores.mean(axis=0), alone),
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
