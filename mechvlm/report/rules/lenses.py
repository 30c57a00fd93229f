"""What the logit lens shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import xarray as xr

from mechvlm.report.phrases import counted, largest, named, percent, value_at
from mechvlm.report.shown import Picture, Shown, stacked
from mechvlm.viz.labels import Grid, grids, shown
from mechvlm.viz.lenses.lens import lens
from mechvlm.viz.plots.lines import lines

__all__ = ["hit", "named_by_layer", "read", "tracked"]


def read(found: xr.Dataset, image: Picture) -> list[Shown]:
    """The lens itself: each position's words, layer by layer."""
    best = found["word"].isel(k=0)
    last = best.isel(layer=-1)
    sure = found["probability"].isel(k=0)
    if last.size == 1:
        words = (
            f"Behind the last layer {named(last, 'position', 0)} reads"
            f" “{shown(str(last.values.item()))}”"
            f" ({percent(float(sure.isel(layer=-1).item()))})."
        )
    else:
        at = largest(sure)
        word, times = Counter(map(str, best.values.ravel())).most_common(1)[0]
        words = (
            f"The likeliest word of all is “{shown(str(best.isel(at).values.item()))}”,"
            f" {percent(value_at(sure, at))} at {named(sure, 'layer', at['layer'])},"
            f" {named(sure, 'position', at['position'])}; read most often is"
            f" “{shown(word)}”, in {times} of {best.size} cells."
        )
    cells = {g.start + i for g in _grids(found) for i in range(g.rows * g.cols)}
    whole = cells and cells <= set(map(int, found["position"].values))
    return [Shown(lens(found, image if whole else None), words)]


def _grids(found: xr.Dataset) -> list[Grid]:
    return list(grids(found["probability"].assign_attrs(found.attrs)))[:1]


def hit(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Share of positions that name an object, by layer."""
    at = largest(result)
    words = ", ".join(f"“{word}”" for word in result.attrs["words"])
    best = value_at(result, at)
    text = (
        f"At {named(result, 'layer', at['layer'])} {percent(best)} of"
        f" {counted(int(result.attrs['n_positions']), 'position')} decode to {words},"
        " the most of all layers."
        if best > 0
        else f"At no layer does a position decode to {words}."
    )
    titled = result.assign_attrs(long_name="Positions that decode to their object")
    return [Shown(lines(titled), text)]


def named_by_layer(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Tokens that decode to their object, random and background tokens beside."""
    names = {
        "hit_rate": "the object's tokens",
        "control_rate": "as many background tokens",
        "background_rate": "all background tokens",
    }
    mean = found[list(names)].mean("object", keep_attrs=True)
    drawn = stacked(
        mean.assign_attrs(found.attrs), names, "Tokens that name the object"
    )
    line = mean["hit_rate"]
    at = largest(line)
    words = (
        f"{percent(float(found['share_named'].sel(estimate='mean')))} of"
        f" {counted(int(found.attrs['n_objects']), 'object')} are named by a token of"
        f" their own at some layer."
    )
    if value_at(line, at) > 0:
        words += (
            " The share of an object's tokens that do is largest at"
            f" {named(line, 'layer', at['layer'])}: {percent(value_at(line, at))}, of"
            " as many background tokens"
            f" {percent(float(mean['control_rate'].isel(at)))}."
        )
    return [Shown(lines(drawn), words)]


def tracked(found: xr.Dataset, image: Picture) -> list[Shown]:
    """Answers through the layers: probability and rank."""
    rank, p = found["rank"], found["probability"]
    parts = []
    for i in range(rank.sizes["answer"]):
        line = rank.isel(answer=i)
        name = named(rank, "answer", i)
        first = _for_good(np.asarray(line.values) == 0)
        parts.append(
            f"{name} is first from {named(line, 'layer', first)} on"
            f" ({percent(float(p.isel(answer=i, layer=-1)))} in the end)"
            if first is not None
            else f"{name} ends with {counted(int(line[-1]), 'token')} above it"
            f" ({percent(float(p.isel(answer=i, layer=-1)))})"
        )
    text = "; ".join(parts) + "."
    titles = {
        "probability": "Probability of each answer",
        "rank": "Rank of each answer",
    }
    about = {
        k: found.attrs[k] for k in ("model", "prompt", "paper") if k in found.attrs
    }
    drawn = {
        name: found[name]
        .drop_vars("token_id", errors="ignore")
        .assign_attrs({**about, **found[name].attrs, "long_name": title})
        for name, title in titles.items()
    }
    below = "Tokens above each answer, 0 where it is first."
    return [
        Shown(lines(drawn["probability"]), text, "Probability"),
        Shown(lines(drawn["rank"]), below, "Rank"),
    ]


def _for_good(true: np.ndarray) -> int | None:
    """First place from which on everything is true; None where the last is not."""
    wrong = np.flatnonzero(~true)
    first = int(wrong[-1]) + 1 if len(wrong) else 0
    return first if first < len(true) else None
