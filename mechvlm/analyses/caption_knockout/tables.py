"""Means of scores over prompts, and what a cut changes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.axes import labelled
from mechvlm.statistics import mean_of, paired, share_of

__all__ = ["PAPER", "changes", "means"]

PAPER = "arXiv:2411.17491"


def means(
    scores: Mapping[str, xr.DataArray], identical: xr.DataArray
) -> dict[str, xr.DataArray]:
    """Mean, interval and n of every score, over the prompts that have one."""
    rows = [_per_arm(each, _mean) for each in scores.values()]
    rows.append(_per_arm(identical, share_of))
    table = np.stack(rows)
    dims = {"measure": [*scores, "identical"], **_arms(identical)}
    return {
        name: labelled(
            table[..., i],
            name=f"{name} over prompts",
            units="prompts" if name == "n" else "1",
            paper=PAPER,
            attrs={},
            **dims,
        )
        for i, name in enumerate(("mean", "low", "high", "n"))
    }


def changes(f1: xr.DataArray) -> dict[str, xr.DataArray]:
    """F1 of each arm less F1 where nothing is cut, paired over prompts."""
    table = _per_arm(f1 - f1.isel(cut=0, drop=True), _change)
    units = {"change_p": "two-sided p of Wilcoxon's test", "change_n": "prompts"}
    return {
        name: labelled(
            table[..., i],
            name="F1 less F1 with nothing cut",
            units=units.get(name, "1"),
            paper=PAPER,
            attrs={},
            **_arms(f1),
        )
        for i, name in enumerate(
            ("change", "change_low", "change_high", "change_n", "change_p")
        )
    }


def _mean(values: Float[np.ndarray, " item"]) -> tuple[int | float, ...]:
    return mean_of(values[~np.isnan(values)])


def _change(differences: Float[np.ndarray, " item"]) -> tuple[int | float, ...]:
    known = differences[~np.isnan(differences)]
    return paired(known, np.zeros_like(known))


def _per_arm(
    values: xr.DataArray, summary: Callable[[np.ndarray], tuple[int | float, ...]]
) -> Float[np.ndarray, "flow cut number"]:
    """A summary over the prompts of every arm."""
    _, n_flows, n_cuts = values.shape
    return np.array(
        [
            [summary(values.values[:, flow, cut]) for cut in range(n_cuts)]
            for flow in range(n_flows)
        ],
        dtype=float,
    )


def _arms(of: xr.DataArray) -> dict[str, list[str]]:
    return {"flow": of["flow"].values.tolist(), "cut": of["cut"].values.tolist()}
