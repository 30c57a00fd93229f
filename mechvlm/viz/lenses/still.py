"""The still picture of a logit lens: where it says a word, and what it says there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from PIL import Image

from mechvlm.viz import stills
from mechvlm.viz.labels import TIMES, Grid
from mechvlm.viz.lenses.table import (
    LEFT,
    MOST_ROWS,
    ROW,
    SHARE,
    added,
    evenly,
    headline,
    legend,
    table,
    wide_of,
)
from mechvlm.viz.lenses.words import Said
from mechvlm.viz.plots.heatmap import thinned
from mechvlm.viz.plots.overlay import Segment, painted, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["Placed", "drawn"]

TOP, GAP = 0.78, 0.1
BIG = 3.4
SMALL = 5  # small panels in a row
WIDEST = 8.4


@dataclass(frozen=True)
class Placed:
    """A picture and the cells that the model saw in it.

    Attributes:
        image: The picture.
        grid: Where its cells lie.
        at: Index of each cell's position in the lens.
        strokes: The object's outline, in pixels of the picture.
    """

    image: Image.Image
    grid: Grid
    at: Int[np.ndarray, "row col"]
    strokes: tuple[Segment, ...]

    def cell(self, position: int) -> tuple[int, int]:
        """Row and column of a position, given by its index in the lens."""
        rows, cols = np.nonzero(self.at == position)
        return int(rows[0]), int(cols[0])


def drawn(said: Said, place: Placed | None, lensed: xr.Dataset) -> Drawing:
    """The still picture of a lens."""
    return over_picture(said, place, lensed) if place else over_plane(said, lensed)


def over_picture(said: Said, place: Placed, lensed: xr.Dataset) -> Drawing:
    """The picture at the best layer, small at other layers, and a table of words."""
    best, position = said.best
    n = len(said.layers.labels)
    high = BIG * place.image.height / place.image.width
    layers = evenly(n, 2 * SMALL, best)
    small = (BIG + GAP) / SMALL - GAP
    tall = small * place.image.height / place.image.width + 0.28
    rows = evenly(n, MOST_ROWS, best)
    pictures = 0.24 + high + 0.12 + tall * math.ceil(len(layers) / SMALL) + 0.5
    row = min(0.3, max(ROW, (pictures - 0.6) / len(rows)))
    total = TOP + max(pictures, 0.6 + row * len(rows))
    left = LEFT + BIG + 0.45
    drawing = stills.blank(left + wide_of(said), total)
    headline(drawing, lensed)
    y = total - TOP - 0.24 - high
    axes = added(drawing, LEFT, y, BIG, high)
    panel(axes, said, place, best)
    written(axes, said, place, best)
    ring(axes, place, position, 1.6)
    axes.set_title(f"layer {said.layers.labels[best]}", fontsize=8.5, loc="left", pad=3)
    for i, layer in enumerate(layers):
        down, across = divmod(i, SMALL)
        corner = (LEFT + across * (small + GAP), y - 0.12 - (down + 1) * tall)
        axes = added(drawing, *corner, small, tall - 0.28)
        panel(axes, said, place, layer)
        ring(axes, place, position, 0.7)
        axes.set_title(said.layers.labels[layer], fontsize=7.5, loc="left", pad=2)
    legend(drawing, said, LEFT, total - TOP - pictures + 0.08)
    table(drawing, said, rows, row, (left, total - TOP), spot(said, place, position))
    return drawing


def spot(said: Said, place: Placed | None, position: int) -> str:
    """A position in words: its cell where it is one of the picture's."""
    if place is not None and position in place.at:
        row, col = place.cell(position)
        label = said.positions.labels[position]
        return f"image row {row}, col {col} (position {label})"
    return said.positions.place(position)


def panel(axes: Axes, said: Said, place: Placed, layer: int) -> None:
    """The picture, its cells tinted at one layer."""
    strokes, size = list(place.strokes), place.image.size
    picture(axes, place.image, strokes, size=size, muted=True)
    painted(axes, said.share[layer][place.at], place.grid, SHARE)


def box_of(place: Placed, row: int, col: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of a cell, in pixels of the picture."""
    x0, y0, x1, y1 = place.grid.box
    wide, high = (x1 - x0) / place.grid.cols, (y1 - y0) / place.grid.rows
    return x0 + col * wide, y0 + row * high, wide, high


def ring(axes: Axes, place: Placed, position: int, thick: float) -> None:
    """Mark the cell whose words the table lists, where it is one of the picture's."""
    from matplotlib.patches import Rectangle

    if position not in place.at:
        return
    x, y, wide, high = box_of(place, *place.cell(position))
    for colour, lw in ((stills.theme().paper, 1.9 * thick), (stills.series(1), thick)):
        axes.add_patch(
            Rectangle((x, y), wide, high, fill=False, ec=colour, lw=lw, zorder=7)
        )


def written(axes: Axes, said: Said, place: Placed, layer: int) -> None:
    """Write each cell's best word, where cells are wide enough for one."""
    room = BIG * (place.grid.box[2] - place.grid.box[0]) / place.image.width
    room /= place.grid.cols
    if room < 0.3:
        return
    for (row, col), at in np.ndenumerate(place.at):
        x, y, wide, high = box_of(place, row, col)
        word, share = said.word(layer, int(at)), float(said.share[layer, at])
        on_picture(axes, word, (x + wide / 2, y + high / 2), share, room)


def on_picture(
    axes: Axes, word: str, at: tuple[float, float], share: float, room: float
) -> None:
    """A word on its tinted cell, with a rim that keeps it legible on any picture."""
    from matplotlib.patheffects import withStroke

    ink, rim = inks(share)
    size = min(6.5, 6.5 * room / (0.052 * max(4, min(len(word), 8))))
    axes.text(
        *at, stills.shortened(word, 8), ha="center", va="center", fontsize=size,
        color=ink, zorder=6, path_effects=[withStroke(linewidth=1.2, foreground=rim)],
    )  # fmt: skip


def inks(share: float) -> tuple[str, str]:
    """Colours of words on a tint, and of their rim.

    The picture beneath is grey, drawn half-way towards the paper.
    """
    from matplotlib.colors import to_hex, to_rgb

    rgba = stills.colours(SHARE)(share)
    alpha = 0.9 * share**0.7
    red, green, blue = (
        alpha * c + (1 - alpha) * (0.25 + paper / 2)
        for c, paper in zip(rgba, to_rgb(stills.theme().paper), strict=False)
    )
    dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.52
    return ("#ffffff" if dark else "#20242b"), to_hex((red, green, blue))


def over_plane(said: Said, lensed: xr.Dataset) -> Drawing:
    """Layers by positions; the best one's words below, where cells hold none."""
    n_layers, n = said.share.shape
    full = n * 0.5 <= WIDEST
    columns = np.array(
        np.arange(n + 1) * min(0.82, WIDEST / n)
        if full
        else stills.edges(said.positions, WIDEST, 0.3)
    )
    row = 0.2 if full else min(0.2, max(0.09, 3.0 / n_layers))
    best, position = said.best
    rows = [] if full else evenly(n_layers, MOST_ROWS, best)
    below, high, wide = 0.38 if full else 0.85, row * n_layers, float(columns[-1])
    total = TOP + 0.1 + high + below + (0.3 if full else 0.85 + ROW * len(rows))
    drawing = stills.blank(
        max(LEFT + 0.4 + wide + 0.25, 6.2, LEFT + wide_of(said)), total
    )
    headline(drawing, lensed)
    bottom = total - TOP - 0.1 - high
    axes = added(drawing, LEFT + 0.35, bottom, wide, high)
    borders, strongest = thinned(said.share, columns)
    axes.pcolormesh(
        borders, np.arange(n_layers + 1) * row, strongest,
        cmap=stills.colours(SHARE), vmin=0, vmax=1, rasterized=True,
    )  # fmt: skip
    label_plane(axes, said, columns, row)
    if full:
        words_in_cells(axes, said, columns, row)
    legend(drawing, said, LEFT + 0.35, bottom - below - 0.2)
    if not full:
        corner = (LEFT, bottom - below - 0.3)
        table(drawing, said, rows, ROW, corner, spot(said, None, position))
    return drawing


def label_plane(
    axes: Axes, said: Said, columns: Float[np.ndarray, " edge"], row: float
) -> None:
    """Name layers and positions; long image blocks are named once."""
    n_layers, n = said.share.shape
    step = math.ceil(0.14 / row)
    axes.set_yticks(
        [(i + 0.5) * row for i in range(0, n_layers, step)],
        list(said.layers.labels[::step]),
    )
    axes.set_ylabel("layer")
    quiet, middles = said.positions.quiet(), (columns[:-1] + columns[1:]) / 2
    names = said.positions.tokens or said.positions.labels
    named = [i for i in range(n) if not quiet[i]]
    room = min((columns[i + 1] - columns[i] for i in named), default=1.0)
    named = named[:: max(1, math.ceil(0.12 / room))]
    axes.set_xticks(
        middles[named], [stills.shortened(names[i], 11) for i in named],
        rotation=0 if room >= 0.5 else 90, color=stills.theme().ink,
    )  # fmt: skip
    for group, start, stop in said.positions.groups:
        if all(quiet[start:stop]):
            axes.text((columns[start] + columns[stop]) / 2, -0.12,
                      f"{group} {TIMES}{stop - start}", ha="center", va="top",
                      color=stills.theme().faint)  # fmt: skip
    stills.quiet_axes(axes)


def words_in_cells(
    axes: Axes, said: Said, columns: Float[np.ndarray, " edge"], row: float
) -> None:
    """The best word of every layer and position, as in the first pictures of a lens."""
    for layer, position in np.ndindex(*said.share.shape):
        rgba = stills.colours(SHARE)(float(said.share[layer, position]))
        light = 0.3 * rgba[0] + 0.59 * rgba[1] + 0.11 * rgba[2] > 0.52
        room = columns[position + 1] - columns[position]
        axes.text(
            columns[position] + room / 2, (layer + 0.5) * row,
            stills.shortened(said.word(layer, position), int(13 * room)),
            ha="center", va="center", fontsize=6.8,
            color="#20242b" if light else "#ffffff",
            weight="bold" if said.index[layer, position, 0] in said.members else None,
        )  # fmt: skip
