"""What results of cutting, holding and exchanging show."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechvlm.report.phrases import (
    at_place,
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
from mechvlm.viz.plots.heatmap import heatmap
from mechvlm.viz.plots.lines import lines

__all__ = [
    "cut_by_window",
    "cut_in_accuracy",
    "cut_more_and_more",
    "cut_while_describing",
    "exchanged",
    "held",
    "put_back",
]  # fmt: skip

MOST_SERIES = 6
WHERE = {
    "window": "the window that begins at {}",
    "centred": "the window around {}",
    "from": "{} and all later ones",
    "upto": "all layers up to {}",
}
"""Where a knockout cuts, by its mode."""


def cut_by_window(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Knockout by window: change of the answer's probability."""
    at = smallest(result)
    value = value_at(result, at)
    if "layer" in at:
        mode = WHERE.get(str(result.attrs.get("mode")), "{}")
        where = mode.format(named(result, "layer", at["layer"]))
    else:
        where = f"the window {named(result, 'window', at['window'])}"
    cut = f"{named(result, 'cut', at['cut'])} " if "cut" in at else ""
    answer = result.attrs.get("answer")
    whose = f" of “{answer}”" if answer else ""
    words = (
        f"Cutting {cut}in {where} takes most: the probability{whose} changes by"
        f" {number(value)} % of what it was."
        if value < 0
        else f"No cut lowers the probability{whose}."
    )
    clean = result.attrs.get("clean")
    if isinstance(clean, float):
        words += f" With nothing cut it is {number(clean)}."
    titled = result.assign_attrs(long_name="Change of the answer's probability")
    if "layer" in result.dims:
        return [Shown(lines(titled.transpose(..., "layer")), words)]
    few = result.ndim == 1 or result.sizes["window"] <= MOST_SERIES
    drawn = titled.transpose("window", "cut") if result.ndim == 2 else titled
    return [Shown(bars(drawn) if few else heatmap(titled), words)]


def cut_in_accuracy(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Knockout over items: which stay right."""
    accuracy = banded(found, "accuracy", "Accuracy with a cut")
    at = smallest(accuracy)
    cut, window = at_place(accuracy, {"cut": at["cut"]}), at["window"]
    n = float(found["n"].isel(at))
    share = value_at(accuracy, at)
    words = (
        f"Cutting {cut} in the window {named(accuracy, 'window', window)} costs most:"
        f" {percent(share)} of {counted(n, 'item')} stay right"
        if share < 1
        else f"No cut costs an answer: all of {counted(n, 'item')} stay right"
    )
    control = float(found["control"].isel(at))
    if share < 1 and np.isfinite(control):
        words += f", against {percent(control)} with as many random positions cut"
    if accuracy.sizes["window"] == 1:
        names = {"accuracy": "the cut", "control": "random positions"}
        one = found.isel(window=0, drop=True)
        drawn = stacked(one, names, "Accuracy with a cut", "removed")
        return [Shown(bars(drawn), f"{words}.")]
    if accuracy.sizes["window"] <= MOST_SERIES:
        return [Shown(bars(accuracy.transpose("window", "cut")), f"{words}.")]
    plain = accuracy.drop_vars(["low", "high"], errors="ignore")
    return [Shown(heatmap(plain), f"{words}.")]


def cut_while_describing(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Descriptions with the image cut off: F1 by first cut layer."""
    mine = {"measure": "f1"}
    ends = {end: found[end].sel(mine, drop=True) for end in ("low", "high")}
    f1 = found["mean"].sel(mine, drop=True).rename("F1")
    kept = [name for name in f1.coords if name not in f1.dims]
    f1 = f1.drop_vars(kept)
    if np.isfinite(ends["low"]).any():
        f1 = f1.assign_coords({e: (v.dims, v.values) for e, v in ends.items()})
    f1 = f1.assign_attrs(
        long_name="F1 of the description", units="F1, mean over prompts"
    ).assign_attrs({k: found.attrs[k] for k in ("model", "paper") if k in found.attrs})
    at = smallest(f1)
    flow, cut = named(f1, "flow", at["flow"]), named(f1, "cut", at["cut"])
    whole = float(f1.isel(flow=at["flow"], cut=0))
    many = counted(found.sizes["prompt"], "description")
    words = (
        f"Of {many}, the objects suffer most with {flow} cut {cut}: F1"
        f" {number(value_at(f1, at))}, against {number(whole)} with nothing cut."
        if value_at(f1, at) < whole
        else f"Of {many}, no cut costs objects: F1 is {number(whole)} with nothing cut"
        " and no lower with any."
    )
    return [Shown(lines(f1.transpose("flow", "cut")), words)]


def cut_more_and_more(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Cumulative knockout: items right by number of cut layers."""
    rate = banded(found, "rate", "Items right with layers cut off")
    start, end = float(rate[0]), float(rate[-1])
    n = int(found.attrs["n"])
    way = str(found.attrs.get("direction", ""))
    words = (
        f"With nothing cut {percent(start)} of {counted(n, 'item')} are answered right,"
        f" with {counted(int(rate['n_cut'][-1]), 'layer')} cut {way} {percent(end)}."
    )
    half = np.flatnonzero(rate.values <= (start + end) / 2)
    if start > end and len(half):
        many = counted(int(rate["n_cut"].values[half[0]]), "layer")
        words += f" Half of what is lost is lost with {many} cut."
    drawn = rate.drop_vars("layer", errors="ignore").rename("right")
    return [Shown(lines(drawn.rename(n_cut="number of cut layers")), words)]


def held(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Image positions frozen: items right by the layer whose input is held."""
    rate = banded(found, "rate", "Items right with the image held")
    clean = float(found["right_clean"].mean())
    first = rate["source"].values[0]
    words = (
        f"With the image held from layer {first} on {percent(float(rate[0]))}"
        f"{_ends(found, 'rate', {'source': 0})} of"
        f" {counted(int(found.attrs['n']), 'item')} are answered right, against"
        f" {percent(clean)} with nothing held."
    )
    at = largest(rate)
    if value_at(rate, at) > float(rate[0]):
        best = rate["source"].values[at["source"]]
        words += f" Most are held from layer {best}: {percent(value_at(rate, at))}."
    return [Shown(lines(rate.rename("right").rename(source="first held layer")), words)]


def put_back(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Back-patching: items right by source and target layer."""
    rate = found["rate"].assign_attrs(long_name="Items right after back-patching")
    rate = rate.assign_attrs({"model": found.attrs.get("model", "")})
    at = largest(rate)
    source, target = (rate[dim].values[at[dim]] for dim in ("source", "target"))
    tried = int(np.isfinite(rate.values).sum())
    words = (
        f"At best {percent(value_at(rate, at))}{_ends(found, 'rate', at)} of"
        f" {counted(int(found.attrs['n']), 'item')} are answered right, with"
        f" h[{source}] put into layer {target}, against"
        f" {percent(float(found['right_clean'].mean()))} with nothing done. It is the"
        f" best of {tried} cells, so partly luck."
    )
    drawn = rate.rename(source="source layer", target="target layer")
    return [Shown(heatmap(drawn.transpose("source layer", "target layer")), words)]


def exchanged(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Cross patching: whose name is told, by the layer of the exchange."""
    names = {"original": "the target's own", "injected": "the donor's"}
    drawn = stacked(found, names, "Which picture's name is told")
    first, last = found["layer"].values[[0, -1]]
    told = found["injected"]
    words = (
        f"With the donor's tokens put in at layer {first}, {percent(float(told[0]))}"
        f"{_ends(found, 'injected', {'layer': 0})} of"
        f" {counted(int(found.attrs['n']), 'swap')} name what the donor shows; at layer"
        f" {last}, {percent(float(told[-1]))}."
    )
    critical = float(found["critical_layer"])
    words += (
        f" From layer {critical:.0f} on the target's own name is told more often."
        if np.isfinite(critical)
        else " In the last of these layers the target's own is not told more often."
    )
    return [Shown(lines(drawn), words)]


def _ends(found: xr.Dataset, name: str, at: dict[str, int]) -> str:
    low, high = (float(found[f"{name}_{end}"].isel(at)) for end in ("low", "high"))
    return interval(low, high)
