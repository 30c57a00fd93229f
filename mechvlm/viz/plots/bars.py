"""Lying bars, one for each condition, with their intervals where they have any."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.figure import Figure
from mechvlm.viz.labels import axis, title, units
from mechvlm.viz.payload import packed, spoken
from mechvlm.viz.plots.lines import bounds, laid_out, names

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["bars"]

MOST_BARS = 600
BAR = 0.17
"""Height of one bar, inches."""


def bars(result: xr.DataArray) -> Figure:
    """Draw one bar for each entry of the last dimension, side by side by the first.

    Args:
        result: Two dimensions, such as ("reading", "set"), the first one in colours; or
            one. `attrs["units"]` labels the values; coordinates "low" and "high" of the
            same dimensions are drawn as whiskers.

    Returns:
        A figure with its zero line, its conditions named on the left.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: Other dimensions, no finite value, or more than 600 bars.

    Example:
        >>> bars(xr.DataArray([0.1, 0.9], dims="set", name="decrease")).kind
        'bars'
    """
    series = laid_out(result, "viz.bars", "bars want (colour, condition)")
    if series.size > MOST_BARS:
        raise ResultError(
            f"{series.size} bars are more than one can read (at most {MOST_BARS})."
            " Select some, or use viz.lines or viz.heatmap."
        )
    rows = axis(series, str(series.dims[1]))
    spec: dict[str, object] = {
        "key": str(result.dims[0]) if result.ndim == 2 else "",
        "series": names(series),
        "rows": spoken(rows),
        "values": packed(series.values),
        "units": units(result),
        "bands": [packed(bound) for bound in bounds(series)],
    }
    high = 90 + len(rows.labels) * (16 + 13 * series.shape[0])
    return Figure(result, "bars", spec, partial(drawn, series), high)


def drawn(series: xr.DataArray) -> Drawing:
    """The still picture of the bars."""
    values = np.asarray(series.values, dtype=float)
    labels = axis(series, str(series.dims[1])).labels
    n_series, n_rows = values.shape
    left = 0.5 + stills.width_of(stills.shortened(name, 40) for name in labels)
    wide, above, below, right = 4.8, 0.95, 0.6, 0.4
    step = n_series * BAR + 0.13
    high = n_rows * step
    width, height = left + wide + right, above + high + below
    drawing = stills.blank(width, height)
    axes = drawing.add_axes((left / width, below / height, wide / width, high / height))
    at = np.arange(n_rows) * step
    ends = bounds(series)
    for i, line in enumerate(values):
        where = at + (i - (n_series - 1) / 2) * BAR
        colour = stills.series(i)
        axes.barh(where, line, BAR * 0.86, color=colour, label=names(series)[i])
        if ends:
            axes.hlines(where, ends[0][i], ends[1][i], color=stills.theme().ink, lw=1.1)
    axes.axvline(0, color=stills.theme().faint, lw=0.9)
    axes.set_yticks(at, [stills.shortened(name, 40) for name in labels])
    axes.set_ylim(at[-1] + step / 2, at[0] - step / 2)
    axes.set_xlabel(units(series))
    axes.set_ylabel(str(series.dims[1]), labelpad=8)
    axes.grid(axis="x", color=stills.theme().rule, lw=0.7)
    axes.set_axisbelow(True)
    stills.quiet_axes(axes)
    axes.tick_params(axis="y", length=0)
    if n_series > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=n_series, frameon=False,
            borderpad=0, borderaxespad=0.3, handlelength=1.0, handleheight=0.9,
            handletextpad=0.5, columnspacing=1.6,
        )  # fmt: skip
    stills.headed(drawing, series.assign_attrs(long_name=title(series)), 0.35)
    return drawing
