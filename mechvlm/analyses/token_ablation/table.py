"""From each item's answers to the table of sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.analyses.token_ablation.means import PAPER
from mechvlm.axes import labelled
from mechvlm.statistics import mean_of, paired, share_of

__all__ = ["Before", "Lost", "table"]


class Before(NamedTuple):
    """What is answered with nothing ablated."""

    right: bool
    text: str


class Lost(NamedTuple):
    """What ablating one set of one item does, and random sets of its size.

    An outcome is whether the answer is right, and by how much the log probability of
    its first right word changed, in nats; None of an empty set. A set that has no
    random sets beside itself has no controls.
    """

    n_tokens: int
    outcome: tuple[bool, float] | None
    controls: Sequence[tuple[bool, float]]


_PER_ITEM = {
    "item_n_tokens": ("tokens replaced", "tokens"),
    "item_right": ("right with the set replaced", "1 right, 0 wrong"),
    "item_control_right": ("right with random sets replaced", "share of random sets"),
    "item_log_p_change": ("change of log-probability of the first word", "nats"),
    "item_log_p_control": ("the same with random sets replaced", "nats"),
}

_SHARE = "share of items right before"

_PER_SET = {
    "decrease": ("right before and wrong after", _SHARE),
    "decrease_low": ("lower end of Wilson's 95 % interval", _SHARE),
    "decrease_high": ("upper end of Wilson's 95 % interval", _SHARE),
    "control": ("wrong after random sets of equal size", _SHARE),
    "excess": ("decrease minus control, paired by item", _SHARE),
    "excess_low": ("lower end of the bootstrap's 95 % interval", _SHARE),
    "excess_high": ("upper end of the bootstrap's 95 % interval", _SHARE),
    "p": ("Wilcoxon's signed-rank test of the excess", "two-sided p value"),
    "n_control": ("items of these with random sets beside", "items"),
    "n": ("items right before whose set is not empty", "items"),
    "n_empty": ("items right before whose set is empty", "items"),
    "n_tokens": ("mean size of the sets that are not empty", "tokens"),
    "log_p_change": ("mean change of log-probability of the first word", "nats"),
    "log_p_low": ("lower end of the bootstrap's 95 % interval", "nats"),
    "log_p_high": ("upper end of the bootstrap's 95 % interval", "nats"),
    "log_p_control": ("mean change with random sets of equal size", "nats"),
    "n_log_p": ("items with a first word to watch", "items"),
}


def table(
    readings: Sequence[str],
    items: Sequence[str],
    sets: Sequence[str],
    before: Sequence[Sequence[Before]],
    lost: Sequence[Sequence[Sequence[Lost] | None]],
    described: Mapping[str, object],
) -> xr.Dataset:
    """The result of `token_ablation` from what every item said.

    Args:
        readings: Names.
        items: Ids.
        sets: Names.
        before: [reading][item], the answer with nothing ablated.
        lost: [reading][item][set]; None for an item that was wrong before.
        described: Attributes of the result.
    """
    nothing = [Lost(0, None, [])] * len(sets)
    rows = np.array(
        [
            [[_numbers(x, asked=r is not None) for x in r or nothing] for r in by_item]
            for by_item in lost
        ]
    )
    right = np.array([[answer.right for answer in by_item] for by_item in before])
    dims = {"reading": readings, "item": items, "set": sets}
    found = {
        name: _labelled(rows[..., k], name, about, **dims)
        for k, (name, about) in enumerate(_PER_ITEM.items())
    }
    summed = [[_summary(by_item[:, s]) for s in range(len(sets))] for by_item in rows]
    for name, about in _PER_SET.items():
        values = np.array([[each[name] for each in by_set] for by_set in summed])
        found[name] = _labelled(values, name, about, reading=readings, set=sets)
    about = "right with nothing replaced", "1 right, 0 wrong"
    found["item_before"] = _labelled(
        right.astype(int), "item_before", about, reading=readings, item=items
    )
    found["n_correct"] = _labelled(
        right.sum(axis=1),
        "n_correct",
        ("items right before", "items"),
        reading=readings,
    )
    return xr.Dataset(found, attrs=dict(described))


def _labelled(
    values: np.ndarray,
    name: str,
    about: tuple[str, str],
    **dims: Sequence[str],
) -> xr.DataArray:
    words, units = about
    result = labelled(values, name=words, units=units, paper=PAPER, attrs=None, **dims)
    return result.rename(name)


def _numbers(lost: Lost, *, asked: bool) -> tuple[float, ...]:
    """One item's row of `_PER_ITEM`; nan where there is nothing to tell."""
    if lost.outcome is None:
        return (0.0 if asked else np.nan, np.nan, np.nan, np.nan, np.nan)
    right, log_p = lost.outcome
    if not lost.controls:
        return (float(lost.n_tokens), float(right), np.nan, log_p, np.nan)
    controls = np.array(lost.controls, dtype=float).mean(axis=0)
    return (float(lost.n_tokens), float(right), *controls[:1], log_p, *controls[1:])


def _summary(rows: Float[np.ndarray, "item 5"]) -> dict[str, int | float]:
    """One set's entries of `_PER_SET`, over the items that were right before."""
    asked = rows[~np.isnan(rows[:, 0])]
    kept = asked[asked[:, 0] > 0]
    wrong, control = 1 - kept[:, 1], 1 - kept[:, 2]
    told, watched = ~np.isnan(control), kept[~np.isnan(kept[:, 3])]
    decrease, excess = share_of(wrong == 1), paired(wrong[told], control[told])
    log_p = mean_of(watched[:, 3])
    return {
        "decrease": decrease.mean,
        "decrease_low": decrease.low,
        "decrease_high": decrease.high,
        "control": _mean(control[told]),
        "excess": excess.mean,
        "excess_low": excess.low,
        "excess_high": excess.high,
        "p": excess.p,
        "n_control": excess.n,
        "n": len(kept),
        "n_empty": len(asked) - len(kept),
        "n_tokens": _mean(kept[:, 0]),
        "log_p_change": log_p.mean,
        "log_p_low": log_p.low,
        "log_p_high": log_p.high,
        "log_p_control": _mean(watched[~np.isnan(watched[:, 4]), 4]),
        "n_log_p": len(watched),
    }


def _mean(values: Float[np.ndarray, " item"]) -> float:
    return float(values.mean()) if len(values) else np.nan
