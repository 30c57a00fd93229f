"""A labelled plane of numbers: layer x position, layer x head, cut x layer."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.figure import Figure
from mechvlm.viz.given import numbers
from mechvlm.viz.labels import Axis, axis, called, grids, subtitle, title, units
from mechvlm.viz.palette import scale_of
from mechvlm.viz.payload import packed, spoken, tinted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["heatmap"]

MOST_ROWS = 800
WIDEST = 8.2
GUTTER = 0.2


def heatmap(result: xr.DataArray) -> Figure:
    """Draw a two-dimensional result as a map: rows are its first dimension.

    Layers run upwards, as the residual stream does. Tokens are written under their
    columns; a long block of image positions is named once, in the band above, and
    shares the room that the words leave.

    Args:
        result: Any result with two dimensions. Over "position" the coordinates `token`
            and `group` label the columns. Colours are centred on 0 where both signs
            occur; `attrs["units"]` labels the colour bar.

    Returns:
        A figure; pointing at a cell of its live view reads it out. Where columns are
        thinner than a pixel, a pixel shows the strongest of its cells.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: The result has not two dimensions, no finite value, or more than
            800 rows.

    Example:
        >>> plane = xr.DataArray([[0.0, 0.5], [1.0, 0.2]], dims=("layer", "head"))
        >>> heatmap(plane).kind
        'map'
    """
    numbers(result, "viz.heatmap")
    if result.ndim != 2:
        raise ResultError(
            f"a heat map wants two dimensions; {called(result)} has"
            f" {tuple(result.dims)}. Select the others: result.sel(layer=3), or use"
            " viz.lines for one line per cut and viz.attention for patterns."
        )
    if len(result) > MOST_ROWS:
        raise ResultError(
            f"{len(result)} rows are more than a map can show (at most {MOST_ROWS};"
            f" columns may be any number). Give the long dimension last:"
            f" result.transpose({str(result.dims[1])!r}, {str(result.dims[0])!r})."
        )
    down, across = (axis(result, str(dim)) for dim in result.dims)
    spec: dict[str, object] = {
        "rows": spoken(down),
        "cols": spoken(across),
        "quiet": across.quiet(),
        "values": packed(result.values),
        "scale": tinted(scale_of(result)),
        "units": units(result),
        "grids": [[g.start, g.rows, g.cols] for g in grids(result)],
    }
    height = 250 + max(120, min(26 * len(down.labels), 320))
    return Figure(result, "map", spec, partial(drawn, result), height)


def drawn(result: xr.DataArray) -> Drawing:
    """The still picture of a map."""
    down, across = (axis(result, str(dim)) for dim in result.dims)
    columns = np.array(stills.edges(across, WIDEST, 0.3 if across.tokens else 0.42))
    row = min(0.3, max(0.1, 3.4 / len(down.labels)))
    left = 0.62 + stills.width_of(stills.shortened(t, 28) for t in down.labels)
    below = 0.4 + (stills.width_of(written(across)) if across.tokens else 0.14)
    above = 0.68 + (0.24 if across.groups else 0.0)
    wide, high = float(columns[-1]), row * len(down.labels)
    heading = 0.085 * max(len(title(result)), min(80, 0.8 * len(subtitle(result))))
    width = max(left + wide + 1.05, left + heading)
    drawing = stills.blank(width, above + high + below)
    box = (left / width, below / (above + high + below), wide / width)
    axes = drawing.add_axes((*box, high / (above + high + below)))
    scale = scale_of(result)
    borders, strongest = thinned(np.asarray(result.values, dtype=float), columns)
    axes.pcolormesh(
        borders,
        np.arange(len(down.labels) + 1) * row,
        np.ma.masked_invalid(strongest),
        cmap=stills.colours(scale), vmin=scale.low, vmax=scale.high, rasterized=True,
    )  # fmt: skip
    label_rows(axes, down, row)
    label_columns(axes, across, columns)
    band(axes, across, columns, high)
    stills.quiet_axes(axes)
    stills.headed(drawing, result, left)
    tall = min(high, 2.4)
    stills.bar(
        drawing, scale, result, (left + wide + GUTTER, below + high - tall, 0.1, tall)
    )
    return drawing


def thinned(
    values: Float[np.ndarray, "row col"], borders: Float[np.ndarray, " border"]
) -> tuple[Float[np.ndarray, " bin_border"], Float[np.ndarray, "row bin"]]:
    """Columns thinner than a pixel, joined: a pixel shows the strongest of its cells.

    Args:
        values: Cells of the map; NaN where there is none.
        borders: Borders of its columns, inches.

    Returns:
        Borders of what is drawn, and its values: no peak is averaged away.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    pixel = np.floor(borders[:-1] * stills.DPI)
    thin = np.diff(borders) * stills.DPI < 1
    joined = thin & np.roll(thin, 1) & (np.diff(pixel, prepend=-1.0) == 0)
    first = np.flatnonzero(~joined)
    high = np.fmax.reduceat(values, first, axis=1)
    low = np.fmin.reduceat(values, first, axis=1)
    strongest = np.where(np.abs(low) > np.abs(high), low, high)
    return np.append(borders[first], borders[-1]), strongest


def written(across: Axis) -> list[str]:
    """Label of each column, "" for those that stay unlabelled."""
    words = across.tokens or across.labels
    return [
        "" if silent else stills.shortened(word, 20)
        for word, silent in zip(words, across.quiet(), strict=True)
    ]


def label_rows(axes: Axes, down: Axis, row: float) -> None:
    """Name the rows; layers run upwards, all else downwards."""
    step = math.ceil(0.14 / row)
    shown = range(0, len(down.labels), step)
    axes.set_yticks(
        [(i + 0.5) * row for i in shown],
        [stills.shortened(down.labels[i], 28).replace("->", "→") for i in shown],
    )
    axes.set_ylabel(down.name)
    axes.set_ylim(0, len(down.labels) * row)
    if down.name != "layer":
        axes.invert_yaxis()


def label_columns(axes: Axes, across: Axis, columns: np.ndarray) -> None:
    """Name the columns: tokens upright, plain coordinates thinned out."""
    words = written(across)
    middles = (columns[:-1] + columns[1:]) / 2
    named = [i for i, word in enumerate(words) if word]
    narrow = min((columns[i + 1] - columns[i] for i in named), default=1.0)
    room = 0.105 if across.tokens else 0.05 + 0.07 * max(len(w) for w in words)
    named = named[:: math.ceil(room / narrow)]
    axes.set_xticks(
        middles[named],
        [words[i] for i in named],
        rotation=90 if across.tokens else 0,
        color=stills.theme().ink if across.tokens else stills.theme().faint,
    )
    axes.set_xlabel(across.name)
    axes.set_xlim(0, columns[-1])


def band(axes: Axes, across: Axis, columns: np.ndarray, high: float) -> None:
    """Name the groups of columns above the map, where the name has room."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(axes.transData, axes.transAxes)
    for run in across.groups:
        group, start, stop = run
        left, right = columns[start] + 0.015, columns[stop] - 0.015
        if start:
            axes.axvline(columns[start], color=stills.theme().paper, lw=0.9)
        line, text = 1 + 0.07 / high, 1 + 0.11 / high
        strong = group == "image"
        colour = stills.theme().ink if strong else stills.theme().faint
        axes.plot(
            [left, right], [line, line], transform=place, clip_on=False,
            lw=1.1, color=colour, solid_capstyle="butt",
        )  # fmt: skip
        room = right - left + 0.05
        words = next(
            (w for w in (across.said(run), group) if 0.062 * len(w) <= room), ""
        )
        axes.text(
            (left + right) / 2, text, words, transform=place,
            ha="center", va="bottom", color=colour,
        )  # fmt: skip
