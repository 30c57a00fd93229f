"""How far scores agree with measured effects, and what they pass over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechvlm.statistics import share_of

__all__ = ["agreement", "missed"]

Values = Float[np.ndarray, " candidate"]

_NOTHING = 1e-5
"""Effects up to this are none: rounding in fp32 moves a metric by about as much."""

_OF_AUDITED = (
    *("share", "share_low", "share_high"),
    *("estimated", "estimated_low", "estimated_high"),
    *("largest", "candidate"),
)

_FEWEST = 3
"""Candidates from which on a rank correlation says something: two always agree."""


def agreement(
    scores: Values, effects: Values, roles: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """Agreement of scores with effects: of all, of the best, and of the audited.

    Example:
        >>> scores = np.array([0.9, -0.4, 0.1])
        >>> found = agreement(scores, scores / 2, ["top", "top", "audit"])
        >>> found["all"]["spearman"], found["all"]["same_sign"], found["audit"]["n"]
        (1.0, 1.0, 1)
    """
    kinds = np.array(roles)
    chosen = {"all": kinds != "", "top": kinds == "top", "audit": kinds == "audit"}
    return {name: _agreement(scores[at], effects[at]) for name, at in chosen.items()}


def missed(
    effects: Values, labels: Sequence[str], roles: Sequence[str], n_all: int
) -> dict[str, float | int | str | None]:
    """What a screen passed over, judged by a random sample of it.

    Args:
        effects: Measured effects.
        labels: What candidates are called.
        roles: "top" or "audit", of each.
        n_all: Number of all candidates, verified or not.

    Example:
        >>> effects, roles = np.array([0.5, 0.2, 0.0, 0.3]), ["top"] * 2 + ["audit"] * 2
        >>> found = missed(effects, ["a", "b", "c", "d"], roles, n_all=10)
        >>> found["share"], found["estimated"], found["candidate"]
        (0.5, 3.0, 'd')
    """
    sizes, kinds = np.abs(effects), np.array(roles)
    best, audited = sizes[kinds == "top"], sizes[kinds == "audit"]
    limit, left = float(best.min()), n_all - len(effects)
    share = share_of(audited > max(limit, _NOTHING))
    told: dict[str, float | int | str | None] = {"n": share.n, "smallest_of_top": limit}
    if not share.n:
        return told | dict.fromkeys(_OF_AUDITED)
    which = int(np.argmax(np.where(kinds == "audit", sizes, -1)))
    rates = share.mean, share.low, share.high
    known = (*rates, *(rate * left for rate in rates), float(effects[which]))
    return told | dict(zip(_OF_AUDITED, (*known, labels[which]), strict=True))


def _agreement(scores: Values, effects: Values) -> dict[str, float | int | None]:
    does = (np.abs(effects) > _NOTHING) & (scores != 0)
    sign = share_of(np.sign(scores[does]) == np.sign(effects[does]))
    known = sign.n > 0
    return {
        "n": len(scores),
        "spearman": _rank(stats.spearmanr, scores, effects),
        "kendall": _rank(stats.kendalltau, scores, effects),
        "spearman_of_sizes": _rank(stats.spearmanr, np.abs(scores), np.abs(effects)),
        "same_sign": sign.mean if known else None,
        "same_sign_low": sign.low if known else None,
        "same_sign_high": sign.high if known else None,
        "same_sign_n": sign.n,
    }


def _rank(
    measure: Callable[[Values, Values], tuple[float, float]], a: Values, b: Values
) -> float | None:
    """A rank correlation; none of too few, nor where all are alike."""
    if len(a) < _FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    found, _ = measure(a, b)
    return float(found)
