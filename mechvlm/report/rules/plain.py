"""What is drawn of numbers that no analysis is known to have made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.report.phrases import at_place, farthest, value_at, valued
from mechvlm.report.shown import Picture, Shown, on_picture
from mechvlm.viz.figure import Figure
from mechvlm.viz.labels import called, number, units
from mechvlm.viz.plots.bars import bars
from mechvlm.viz.plots.heatmap import heatmap
from mechvlm.viz.plots.lines import lines

__all__ = ["plain"]

MOST_LINES = 12
ORDERED = "layer"


def plain(result: xr.DataArray, image: Picture) -> list[Shown]:
    """Figures of labelled numbers by their dimensions.

    Over positions of a picture, the picture; a line over what has an order, bars over
    names, a map of two dimensions otherwise.

    Args:
        result: Numbers over one or two dimensions; those of size 1 that bear no
            name do not count.
        image: The picture that its positions show, if there is one.

    Raises:
        ResultError: The values are no numbers, or have no dimension or over two.
    """
    if result.dtype.kind not in "fiub":
        raise ResultError(
            f"{called(result)} holds {result.dtype} and no numbers. Give the variables"
            " that are measured."
        )
    alone = [
        dim
        for dim in result.dims
        if result.sizes[dim] == 1 and (result.ndim > 2 or _numeric(result, str(dim)))
    ]
    small = result.isel(dict.fromkeys(alone if result.size > 1 else alone[:-1], 0))
    if small.ndim not in (1, 2):
        fix = (
            'Give the result it is part of, or write it into the lead: lead="...".'
            if small.ndim == 0
            else "Select or average the others: result.sel(head=3), result.mean('row')."
        )
        raise ResultError(
            f"{called(result)} has the dimensions {tuple(result.dims)}; one or two can"
            f" be drawn. {fix}"
        )
    numbers = small.astype(float) if small.dtype.kind == "b" else small
    sentence = said(numbers)
    over = [dim for dim in numbers.dims if dim not in ("layer", "position")]
    seen = [] if over else on_picture(numbers, image)
    shown = [Shown(figure, sentence, "On the picture") for figure in seen]
    return [*shown, Shown(drawing(numbers), sentence, "By " + " and ".join(
        str(dim) for dim in numbers.dims
    ))]  # fmt: skip


def said(result: xr.DataArray) -> str:
    """One sentence: where the values lie, and which is farthest from 0."""
    at = farthest(result)
    values = np.asarray(result.values, dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low == high and values.size > 1:
        return f"Every value is {valued(low, units(result))}."
    return (
        f"From {number(low)} to {valued(high, units(result))}; farthest from 0 is"
        f" {at_place(result, at)} with {number(value_at(result, at))}."
    )


def drawing(result: xr.DataArray) -> Figure:
    """The figure that suits the dimensions."""
    draw = _one(result) if result.ndim == 1 else _two(result)
    return draw(result)


def _one(result: xr.DataArray) -> Callable[[xr.DataArray], Figure]:
    if "token" in result.coords:
        name = "value" if result.name is None else str(result.name)
        return lambda row: heatmap(row.expand_dims({"of": [name]}))
    return lines if _numeric(result, str(result.dims[0])) else bars


def _two(result: xr.DataArray) -> Callable[[xr.DataArray], Figure]:
    first, last = map(str, result.dims)
    if first == ORDERED and _few_names(result, last):
        return lambda plane: lines(plane.transpose(last, first))
    if _few_names(result, first):
        return lines if _numeric(result, last) else bars
    return heatmap


def _few_names(result: xr.DataArray, dim: str) -> bool:
    return not _numeric(result, dim) and result.sizes[dim] <= MOST_LINES


def _numeric(result: xr.DataArray, dim: str) -> bool:
    return dim not in result.coords or result[dim].dtype.kind in "iuf"
