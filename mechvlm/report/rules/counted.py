"""What results over items show: how many are right, by condition."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechvlm.report.phrases import (
    counted,
    interval,
    largest,
    named,
    percent,
    smallest,
    value_at,
)
from mechvlm.report.shown import Picture, Shown, banded, stacked
from mechvlm.viz.labels import number
from mechvlm.viz.plots.bars import bars

__all__ = ["ablated", "compressed", "scored_by_subset", "told_both_ways"]


def told_both_ways(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Modality gap: facts told by name and by picture."""
    names = {"mean_by_name": "by name", "mean_by_picture": "by picture"}
    drawn = stacked(found, names, "Facts told by name and by picture", "way")
    shares = [percent(float(found[name])) for name in names]
    gap, low, high = (
        100 * float(found[name]) for name in ("gap", "gap_low", "gap_high")
    )
    n = int(found["n_recognised"])
    words = (
        f"Of facts about {n} recognised {'entity' if n == 1 else 'entities'}"
        f" {shares[0]} are told by name and {shares[1]} by picture: a gap of"
        f" {number(float(round(gap)))} points"
    )
    if np.isfinite(low):
        words += f" ({number(float(round(low)))} to {number(float(round(high)))})"
    p = float(found["wilcoxon_p"])
    words += f", Wilcoxon p = {p:.2g}." if np.isfinite(p) else "."
    words += f" {n} of {int(found['n'])} entities are recognised."
    return [Shown(bars(drawn), words)]


def scored_by_subset(found: xr.Dataset, image: Picture) -> list[Shown]:
    """MME: questions right, and pictures with both right, by subset."""
    names = {"acc": "ACC, questions", "acc_plus": "ACC+, pictures"}
    drawn = stacked(found, names, "Yes-or-no questions answered right", "score")
    acc = found["acc"]
    best, worst = largest(acc), smallest(acc)
    words = (
        f"{percent(float(found.attrs['mean_acc']))} of questions are right, and"
        f" {percent(float(found.attrs['mean_acc_plus']))} of pictures with both of"
        f" theirs, means over {counted(acc.size, 'subset')}"
    )
    if acc.size > 1:
        words += (
            f"; best {at_subset(acc, best)} {percent(value_at(acc, best))}, worst"
            f" {at_subset(acc, worst)} {percent(value_at(acc, worst))}"
        )
    unparsed = int(found["unparsed"].sum())
    words += f". {counted(unparsed, 'answer')} began with neither yes nor no."
    return [Shown(bars(drawn), words)]


def at_subset(acc: xr.DataArray, at: dict[str, int]) -> str:
    """Name of a subset."""
    return named(acc, str(acc.dims[0]), at[str(acc.dims[0])])


def ablated(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Token ablation: answers lost by set, random sets beside."""
    names = {"decrease": "the set", "control": "random sets of its size"}
    drawn = stacked(found, names, "Right answers lost", "replaced")
    if found.sizes["reading"] == 1:
        flat = drawn.isel(reading=0, drop=True)
    else:
        flat = drawn.stack(condition=("reading", "set"))
        words = [f"{reading}: {name}" for reading, name in flat["condition"].values]
        flat = flat.drop_vars(["condition", "reading", "set"], errors="ignore")
        flat = flat.assign_coords(condition=words)
    lost = found["decrease"]
    at = largest(lost)
    low, high = (float(found[f"decrease_{end}"].isel(at)) for end in ("low", "high"))
    words_of_it = (
        f"Replacing {named(lost, 'set', at['set'])} loses"
        f" {percent(value_at(lost, at))}{interval(low, high)} of"
        f" {counted(int(found['n'].isel(at)), 'right answer')}"
        f" ({named(lost, 'reading', at['reading'])})"
    )
    control = float(found["control"].isel(at))
    if np.isfinite(control):
        words_of_it += f", random sets of its size {percent(control)}"
    return [Shown(bars(flat), f"{words_of_it}.")]


def compressed(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Context accuracy: what is answered from what is kept."""
    accuracy = banded(found, "accuracy", "Accuracy by what is kept")
    kept = {"arm", "low", "high"}
    accuracy = accuracy.drop_vars([n for n in accuracy.coords if n not in kept])
    arms = accuracy["arm"].values.astype(str)
    words = f"Over {counted(int(found.attrs['n']), 'question')}"
    if "naive" in arms:
        words += (
            f" the whole context answers {percent(float(accuracy.sel(arm='naive')))}"
        )
        others = accuracy.sel(arm=[arm for arm in arms if arm != "naive"])
    else:
        others = accuracy
    if others.size:
        at = largest(others)
        arm = str(others["arm"].values[at["arm"]])
        tokens = float(found["image_tokens"].sel(arm=arm).mean())
        words += (
            f"; the best of the others, “{arm}”,"
            f" {percent(value_at(others, at))}, from {tokens:.0f} image positions a"
            " layer"
        )
    return [Shown(bars(accuracy), f"{words}.")]
