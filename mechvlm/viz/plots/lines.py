"""Lines over layers, one for each cut, with their intervals where they have any."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.figure import Figure
from mechvlm.viz.given import numbers
from mechvlm.viz.labels import axis, called, title, units
from mechvlm.viz.palette import scale_of
from mechvlm.viz.payload import packed, spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["lines"]

ALONE = "(alone)"
"""Dimension of a lone line, which a result of one dimension does not have."""
MOST_LINES = 200
WIDE = 5.6
"""Width of the axes, inches."""
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))


def lines(result: xr.DataArray) -> Figure:
    """Draw one line for each entry of the first dimension over the last one.

    Args:
        result: Two dimensions, the last one "layer" or another that has an order, such
            as ("cut", "layer"); or that one alone. `attrs["units"]` labels the values;
            coordinates "low" and "high" of the same dimensions are drawn as bands.

    Returns:
        A figure with its zero line and each line named at its end.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: Other dimensions, no finite value, or more than 200 lines.

    Example:
        >>> drops = xr.DataArray([[0.0, -40.0]], dims=("cut", "layer"))
        >>> lines(drops).kind
        'lines'
    """
    series = laid_out(result, "viz.lines", "lines want (line, layer)")
    if len(series) > MOST_LINES:
        raise ResultError(
            f"{len(series)} lines are more than one can tell apart (at most"
            f" {MOST_LINES}). Lines go over the last dimension, here"
            f" {series.dims[1]!r}: transpose the result, select some of the others, or"
            " use viz.heatmap."
        )
    along = axis(series, str(series.dims[1]))
    spec: dict[str, object] = {
        "lines": spoken(axis(series, str(series.dims[0]))) | {"labels": names(series)},
        "cols": spoken(along),
        "values": packed(series.values),
        "units": units(result),
        "bands": [packed(bound) for bound in bounds(series)],
    }
    high = 140 + max(300, 16 * len(series))
    return Figure(result, "lines", spec, partial(drawn, series), high)


def laid_out(result: xr.DataArray, call: str, wanted: str) -> xr.DataArray:
    """The result with one dimension for its lines or colours, before the last one.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: Other dimensions, or no finite value.
    """
    numbers(result, call)
    if result.ndim not in (1, 2):
        raise ResultError(
            f"{wanted}; {called(result)} has {tuple(result.dims)}. Select or average"
            " the others first."
        )
    scale_of(result)  # refuses a result without a finite value
    return result if result.ndim == 2 else result.expand_dims(ALONE)


def names(series: xr.DataArray) -> list[str]:
    """Name of each line, arrows drawn as arrows."""
    if str(series.dims[0]) == ALONE:
        return ["" if series.name is None else str(series.name)]
    found = axis(series, str(series.dims[0])).labels
    return [name.replace("->", "→") for name in found]


def bounds(series: xr.DataArray) -> tuple[Float[np.ndarray, "line layer"], ...]:
    """Lower and upper ends of the intervals; nothing where the result has none."""
    if not {"low", "high"} <= set(series.coords):
        return ()
    low, high = (
        series[end].broadcast_like(series).transpose(*series.dims)
        for end in ("low", "high")
    )
    return np.asarray(low.values, float), np.asarray(high.values, float)


def drawn(series: xr.DataArray) -> Drawing:
    """The still picture of the series."""
    values = np.asarray(series.values, dtype=float)
    right = 0.35 + stills.width_of(
        (stills.shortened(n, 30) for n in names(series)), 8.5
    )
    left, wide, above, below = 0.8, WIDE, 0.72, 0.55
    high = max(2.9, 0.15 * len(values))
    width, height = left + wide + right, above + high + below
    drawing = stills.blank(width, height)
    axes = drawing.add_axes((left / width, below / height, wide / width, high / height))
    axes.axhline(0, color=stills.theme().faint, lw=0.9, zorder=1)
    at = np.arange(values.shape[1])
    for i, (low, high_end) in enumerate(zip(*bounds(series), strict=True)):
        colour = stills.series(i)
        axes.fill_between(at, low, high_end, color=colour, alpha=0.13, lw=0)
    for i, line in enumerate(values):
        colour, dash = stills.series(i), DASHES[i // stills.SERIES % len(DASHES)]
        axes.plot(at, line, lw=1.7, marker="o", ms=3, color=colour, ls=dash)
    label_ends(drawing, series, values, high)
    along = axis(series, str(series.dims[1]))
    step = -(-len(along.labels) // 16)
    axes.set_xticks(at[::step], list(along.labels[::step]))
    axes.set_xlabel(along.name)
    axes.set_ylabel(units(series), labelpad=6)
    axes.grid(axis="y", color=stills.theme().rule, lw=0.7)
    axes.set_axisbelow(True)
    stills.quiet_axes(axes)
    stills.headed(drawing, series.assign_attrs(long_name=title(series)), left)
    return drawing


def label_ends(
    drawing: Drawing,
    series: xr.DataArray,
    values: Float[np.ndarray, "line layer"],
    high: float,
) -> None:
    """Write each line's name at its right end, moved apart where ends meet."""
    axes = drawing.axes[0]
    low, top = axes.get_ylim()
    apart = 0.15 / high * (top - low)
    ends = [last_value(line) for line in values]
    places = spread(ends, apart)
    n = values.shape[1]
    beside = right_of(n)
    for i, (name, end, place) in enumerate(
        zip(names(series), ends, places, strict=True)
    ):
        colour = stills.series(i)
        lead = {"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkB": 3}
        axes.annotate(
            stills.shortened(name, 30), (n - 1, end), (beside, place),
            va="center", color=colour, fontsize=8.5, annotation_clip=False,
            arrowprops=lead | {"relpos": (0, 0.5), "shrinkA": 1},
        )  # fmt: skip
    axes.set_ylim(low, top)
    axes.set_xlim(-0.3, n - 0.7)


def right_of(n: int) -> float:
    """Place of the names beside n places, a tenth of an inch from the axes' end."""
    return n - 0.7 + (n - 0.4) * 0.1 / WIDE


def last_value(line: Float[np.ndarray, " layer"]) -> float:
    """The last finite value of a line, 0 where there is none."""
    finite = line[np.isfinite(line)]
    return float(finite[-1]) if finite.size else 0.0


def spread(ends: list[float], apart: float) -> list[float]:
    """Places for labels: ordered as `ends`, `apart` from each other, as near as can be.

    Neighbours that would touch form a block, and a block stands at its members' mean.

    Example:
        >>> spread([0.0, 0.0, 5.0], 1.0)
        [-0.5, 0.5, 5.0]
    """
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    blocks: list[
        list[float]
    ] = []  # each: ends less their offsets, whose mean is its place
    for rank, i in enumerate(order):
        block = [ends[i] - rank * apart]
        while blocks and np.mean(blocks[-1]) > np.mean(block):
            block = blocks.pop() + block
        blocks.append(block)
    level = [float(np.mean(block)) for block in blocks for _ in block]
    back = {i: level[rank] + rank * apart for rank, i in enumerate(order)}
    return [back[i] for i in range(len(ends))]
