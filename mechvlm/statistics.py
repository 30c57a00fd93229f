"""Intervals and tests for tables: every mean has its n and its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from mechvlm.errors import MetricError
from mechvlm.layout import Positions

__all__ = [
    "LEAST",
    "LEVEL",
    "Estimate",
    "Paired",
    "mean_of",
    "paired",
    "random_sets",
    "share_of",
]

Numbers: TypeAlias = (
    Sequence[int | float]
    | Float[np.ndarray, " item"]
    | Int[np.ndarray, " item"]
    | Bool[np.ndarray, " item"]
)
"""One number for each item."""

LEVEL = 0.95
"""Confidence of every interval."""

LEAST = 6
"""Items from which on a mean has an interval.

Where all items lie on one side of 0, so do all that are resampled from them, and the
interval excludes 0. By chance alone n items do so in 2 of 2**n draws: more often than
an interval of 95 % may err, up to five items.
"""

N_RESAMPLES = 5_000


class Estimate(NamedTuple):
    """A mean over items with its interval; nan where items are too few for one."""

    mean: float
    low: float
    high: float
    n: int


class Paired(NamedTuple):
    """Mean difference of pairs, its interval, and Wilcoxon's signed-rank p value."""

    mean: float
    low: float
    high: float
    n: int
    p: float


def mean_of(values: Numbers, *, seed: int = 0) -> Estimate:
    """Mean over items with a percentile-bootstrap interval of 95 %.

    Args:
        values: One number per item; an item that has none must be left out.
        seed: Of the resampling.

    Returns:
        Mean, interval and n. Fewer than `LEAST` items have no interval (nan), no items
        no mean. Items that are all alike have an interval without width; where they are
        true or false, `share_of` knows better.

    Raises:
        MetricError: A number is nan.

    Example:
        >>> mean_of([1.0, 1.0, 1.0])
        Estimate(mean=1.0, low=nan, high=nan, n=3)
        >>> mean_of([1.0] * 6)
        Estimate(mean=1.0, low=1.0, high=1.0, n=6)
    """
    sample = _known(values, "values")
    n = len(sample)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(sample.mean())
    if n < LEAST:
        return Estimate(mean, np.nan, np.nan, n)
    if np.ptp(sample) == 0:  # the bootstrap warns of what has no spread
        return Estimate(mean, mean, mean, n)
    found = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=N_RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), n)


def share_of(hits: Numbers) -> Estimate:
    """Share of items that are true, with Wilson's interval of 95 %.

    Unlike the bootstrap's, it has its width with few items and where all of them agree.

    Args:
        hits: Whether it is so, for each item; one that cannot tell must be left out.

    Raises:
        MetricError: What was given is neither true (1) nor false (0), such as nan.

    Example:
        >>> share = share_of([True] * 10)
        >>> share.mean, round(share.low, 2), share.high, share.n
        (1.0, 0.72, 1.0, 10)
    """
    sample = _known(hits, "hits")
    odd = sample[(sample != 0) & (sample != 1)]
    if len(odd):
        raise MetricError(
            f"hits hold {odd[0]:g}; a share is of what is true or false. Compare first:"
            " share_of(values > 0)."
        )
    n = len(sample)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    test = stats.binomtest(int(sample.sum()), n)
    found = test.proportion_ci(LEVEL, method="wilson")
    return Estimate(float(sample.mean()), float(found.low), float(found.high), n)


def paired(ours: Numbers, theirs: Numbers, *, seed: int = 0) -> Paired:
    """Mean of `ours - theirs` over the same items, with interval and test.

    Args:
        ours: One number per item; pairs of which one is not known must be left out.
        theirs: The other condition, in the same order.
        seed: Of the resampling.

    Returns:
        Mean difference, bootstrap interval of 95 %, n, and the two-sided p value of
        Wilcoxon's signed-rank test: 1 where no pair differs. Fewer than `LEAST` pairs
        have no interval (nan).

    Raises:
        MetricError: The conditions have different numbers of items, or one is nan.

    Example:
        >>> paired([1.0, 1.0], [0.0, 0.0])[:4]
        (1.0, nan, nan, 2)
    """
    if len(ours) != len(theirs):
        raise MetricError(
            f"{len(ours)} items against {len(theirs)}: a paired comparison needs the"
            " same items in both conditions, in one order."
        )
    difference = _known(ours, "ours") - _known(theirs, "theirs")
    estimate = mean_of(difference, seed=seed)
    if estimate.n == 0:
        return Paired(*estimate, np.nan)
    moved = difference[difference != 0]
    p = float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0
    return Paired(*estimate, p)


def random_sets(
    candidates: Positions, size: int, *, n: int = 1, seed: int | Sequence[int] = 0
) -> list[Positions]:
    """Random positions in sets of one size: the control of every chosen set.

    Args:
        candidates: Positions to draw from, without putting back within a set.
        size: Positions in each set.
        n: Number of sets.
        seed: Of the draw. Several numbers keep the draws of many items apart, one each:
            (seed, item, set) never meets another item's, as seed + item would.

    Raises:
        MetricError: There are fewer candidates than `size`.

    Example:
        >>> random_sets(Positions.of(range(5, 9)), 4)
        [Positions(5..8)]
    """
    if not 0 < size <= len(candidates):
        raise MetricError(
            f"{size} positions cannot be drawn from {len(candidates)}: a control of"
            " equal size does not exist. Compare a smaller set, or draw from more."
        )
    rng = np.random.default_rng(seed)
    pool = list(candidates)
    return [
        Positions.of(int(i) for i in rng.choice(pool, size, replace=False))
        for _ in range(n)
    ]


def _known(values: Numbers, what: str) -> Float[np.ndarray, " item"]:
    """Numbers that are all there.

    Raises:
        MetricError: One is nan.
    """
    sample = np.asarray(values, dtype=float)
    missing = np.flatnonzero(np.isnan(sample))
    if len(missing):
        raise MetricError(
            f"{len(missing)} of {len(sample)} {what} are nan ({missing[:5].tolist()}):"
            " whether such an item counts is not for a mean to decide. Leave it out of"
            " all conditions, and say how many are left."
        )
    return sample
