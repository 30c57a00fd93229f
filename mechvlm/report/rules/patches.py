"""What patching and attribution results show."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechvlm.report.phrases import (
    at_place,
    farthest,
    largest,
    named,
    smallest,
    value_at,
    valued,
)
from mechvlm.report.shown import Picture, Shown, on_picture, stacked
from mechvlm.viz.labels import number
from mechvlm.viz.plots.bars import bars
from mechvlm.viz.plots.heatmap import heatmap
from mechvlm.viz.plots.lines import lines

__all__ = ["paths", "recovered", "scored", "screened"]

MOST_RECEIVERS = 4
MOST_CANDIDATES = 24


def recovered(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Activation patching, or its estimate: recovery by layer and place."""
    estimated = "estimated" in str(result.name)
    heading = "Estimated recovery" if estimated else "Recovery"
    words = f"{_best(result)} {_half(result)}".strip()
    if estimated:
        words = f"By its gradient: {words[0].lower()}{words[1:]}"
    places = [str(dim) for dim in result.dims if dim != "layer"]
    titled = result.assign_attrs(long_name=f"{heading} by layer")
    if result.ndim == 1 or places == ["set"]:
        drawn = titled.transpose(..., "layer") if "layer" in result.dims else titled
        return [Shown(lines(drawn), words)]
    titled = titled.assign_attrs(long_name=f"{heading} by layer and {places[0]}")
    shown = [Shown(heatmap(titled), words, f"By layer and {places[0]}")]
    if places == ["position"]:
        over = titled.assign_attrs(long_name=f"{heading} on the picture")
        here = _on_image(result, "of the gap")
        shown[:0] = [Shown(f, here, "On the picture") for f in on_picture(over, image)]
    return shown


def _best(result: xr.DataArray) -> str:
    if result.attrs.get("direction") == "noise":
        at = smallest(result)
        return (
            f"Least is left with {at_place(result, at)} corrupted:"
            f" {number(value_at(result, at))} of the gap between the clean run (1) and"
            " the corrupted one (0)."
        )
    at = largest(result)
    if value_at(result, at) <= 0:
        return (
            f"Nothing comes back: even at best, with {at_place(result, at)} restored,"
            f" {number(value_at(result, at))} of the gap between the corrupted run (0)"
            " and the clean one (1)."
        )
    return (
        f"Most comes back with {at_place(result, at)} restored:"
        f" {number(value_at(result, at))} of the gap between the corrupted run (0) and"
        " the clean one (1)."
    )


def _half(result: xr.DataArray) -> str:
    """The layers in which each set alone brings back half or more."""
    if result.attrs.get("direction") == "noise" or "set" not in result.dims:
        return ""
    words = []
    for i in range(result.sizes["set"]):
        line = result.isel(set=i)
        enough = np.flatnonzero(line.values >= 0.5)
        if len(enough):
            first, last = (line["layer"].values[enough[i]] for i in (0, -1))
            where = f"layers {first} to {last}" if first != last else f"layer {first}"
            if len(enough) <= enough[-1] - enough[0]:
                where = f"{len(enough)} of the layers {first} to {last}"
            words.append(f"{named(result, 'set', i)} does so in {where}")
    text = "; ".join(words)
    return f"Half or more: {text}." if text else "No set brings back half alone."


def _on_image(result: xr.DataArray, of_what: str) -> str:
    """The image position that counts most, and how much."""
    cells = result
    if "group" in result.coords:
        mine = np.flatnonzero(result["group"].values == "image")
        cells = result.isel(position=mine) if len(mine) else result
    match result.attrs.get("direction"):
        case "noise":
            at, done = smallest(cells), "leaves least when corrupted"
        case "denoise":
            at, done = largest(cells), "restores most"
        case _:
            at, done = farthest(cells), "counts most"
    return (
        f"Of single image positions {at_place(cells, at)} {done}:"
        f" {valued(value_at(cells, at), of_what)}."
    )


def scored(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Scores of single positions: integrated gradients, gradient times input."""
    units = str(result.attrs.get("units", ""))
    method = str(result.attrs.get("method", "attribution"))
    at = farthest(result)
    words = (
        f"The score farthest from 0 is {valued(value_at(result, at), units)}, at"
        f" {at_place(result, at)}."
    )
    if value_at(result, at) == 0:
        words = "Every score is 0: nothing moves the metric."
    elif "group" in result.coords:
        sums = result.groupby("group").sum()
        most = farthest(sums)
        words += (
            f" Together the {sums['group'].values[most['group']]} positions add"
            f" {valued(value_at(sums, most), units)}, more in size than any other"
            " group."
        )
    titled = result.assign_attrs(long_name=method.capitalize())
    here = _on_image(result, units)
    shown = [Shown(f, here, "On the picture") for f in on_picture(titled, image)]
    if not shown or (result.values[_outside(result)] != 0).any():
        row = titled.expand_dims({"score": [method]})
        shown.append(Shown(heatmap(row), words, "By position"))
    return shown


def _outside(result: xr.DataArray) -> np.ndarray:
    if "group" not in result.coords:
        return np.ones(result.shape, dtype=bool)
    return np.asarray(result["group"].values != "image")


def paths(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Path patching: what each sender gives each receiver."""
    effect = result
    if "effect" in result.coords:
        bare = result["effect"].drop_vars(["raw", "effect"], errors="ignore")
        effect = bare.assign_attrs(result.attrs)
    effect = effect.rename("effect")
    at = farthest(effect)
    senders = {dim: i for dim, i in at.items() if dim != "receiver"}
    first = effect.isel(receiver=at["receiver"])
    words = (
        f"The path from {at_place(first, senders)} to"
        f" {effect['receiver'].values[at['receiver']]} moves most:"
        f" {number(value_at(effect, at))} of the gap (0: the path does nothing)."
        if value_at(effect, at)
        else "No path moves anything: every effect is 0."
    )
    if effect.ndim == 2:
        titled = effect.assign_attrs(long_name="Effect of single paths")
        ordered = titled.dims[-1] == "layer"
        few = effect.sizes["receiver"] <= 6
        draw = heatmap if not few else lines if ordered else bars
        return [Shown(draw(titled), words)]
    sizes = np.nanmax(np.abs(effect.values), axis=(1, 2))
    strongest = np.argsort(-np.nan_to_num(sizes), kind="stable")[:MOST_RECEIVERS]
    shown = []
    for k, i in enumerate(strongest):
        name = str(effect["receiver"].values[i])
        plane = effect.isel(receiver=int(i), drop=True)
        best = farthest(plane)
        own = (
            f"Into {name}, most comes from {at_place(plane, best)}:"
            f" {number(value_at(plane, best))} of the gap."
        )
        figure = heatmap(plane.assign_attrs(long_name=f"Effect of paths into {name}"))
        shown.append(Shown(figure, own if k else words, f"Into {name}"))
    return shown


def screened(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Candidates scored by gradient, and what they do when measured."""
    n = min(found.sizes["candidate"], MOST_CANDIDATES)
    some = found.isel(candidate=slice(0, n))
    names = {"score": "estimated by gradient", "effect": "measured"}
    both = stacked(some, names, "Estimated and measured", "effect")
    at = farthest(found["effect"])
    words = (
        f"Of {found.attrs.get('candidates', found.sizes['candidate'])} candidates"
        f" {found.sizes['candidate']} were measured; {at_place(found['effect'], at)}"
        f" does most: without it {number(value_at(found['effect'], at))} of the gap is"
        " lost."
    )
    agreement = found.attrs.get("agreement") or {}
    together = (agreement.get("all") or {}).get("spearman")
    if together is not None:
        words += (
            f" Estimate and measurement agree by rank with Spearman {together:.2f}."
        )
    if n < found.sizes["candidate"]:
        words += f" Drawn: the first {n}."
    return [Shown(bars(both), words)]
