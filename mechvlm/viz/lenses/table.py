"""What every still of a logit lens has: its table of words and its legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mechvlm.viz import stills
from mechvlm.viz.lenses.words import Said
from mechvlm.viz.palette import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "LEFT", "MOST_ROWS", "ROW", "SHARE", "added", "evenly", "headline", "legend",
    "table", "wide_of",
]  # fmt: skip

SHARE = Scale(0.0, 1.0)
LEFT = 0.25
ROW = 0.2  # inches of a table's row, which grows where there is room
MOST_ROWS = 29
WORD = 0.86
NAMED = 0.42  # inches of the table's columns of layers and ranks


def evenly(n: int, most: int, keep: int) -> list[int]:
    """At most so many of 0..n-1, the first, the last and `keep` among them.

    Example:
        >>> evenly(9, 4, 7)
        [0, 3, 7, 8]
    """
    if n <= most:
        return list(range(n))
    found = np.linspace(0, n - 1, most).round().astype(int)
    if keep not in found:
        inner = found[1:-1]
        found[1 + int(np.abs(inner - keep).argmin())] = keep
    return [int(i) for i in found]


def added(drawing: Drawing, x: float, y: float, wide: float, high: float) -> Axes:
    """Axes in inches from the drawing's lower left corner."""
    width, height = drawing.get_size_inches()
    return drawing.add_axes((x / width, y / height, wide / width, high / height))


def headline(drawing: Drawing, lensed: xr.Dataset) -> None:
    """Write title and subtitle as on every figure."""
    named = lensed["probability"].assign_attrs(lensed.attrs)
    stills.headed(drawing, named, LEFT)


def wide_of(said: Said) -> float:
    """Inches that the table of words takes."""
    return NAMED * (2 if said.sought else 1) + WORD * min(said.k, 5) + 0.2


def table(
    drawing: Drawing,
    said: Said,
    rows: list[int],
    row: float,
    corner: tuple[float, float],
    where: str,
) -> None:
    """Best words of the best position, layer by layer, the last layer on top."""
    (left, top), position = corner, said.best[1]
    wide, high = wide_of(said), 0.5 + row * len(rows)
    axes = added(drawing, left, top - high, wide, high)
    axes.set(xlim=(0, wide), ylim=(high, 0))
    axes.axis("off")
    faint = stills.theme().faint
    axes.text(0, 0.11, f"best words at {where}", fontsize=8.5, va="center")
    heads = ["layer", "rank"] if said.sought else ["layer"]
    start = NAMED * len(heads)
    for i, name in enumerate(heads):
        axes.text(i * NAMED, 0.36, name, color=faint, fontsize=7, va="center")
    axes.text(start, 0.36, "best word first, with its probability as a bar",
              color=faint, fontsize=7, va="center")  # fmt: skip
    axes.plot([0, wide - 0.26], [0.47, 0.47], lw=0.7, color=stills.theme().rule)
    for i, layer in enumerate(reversed(rows)):
        y = 0.5 + row * (i + 0.5)
        axes.text(0.05, y, said.layers.labels[layer], fontsize=7.5, va="center")
        if said.sought:
            rank = rank_words(said, int(said.ranks[layer, position]))
            axes.text(NAMED, y, rank, fontsize=7.5, va="center", color=faint)
        for k in range(min(said.k, 5)):
            spelled(axes, said, (layer, position, k), (start + k * WORD, y, 0.86 * row))


def rank_words(said: Said, rank: int) -> str:
    """A rank for reading; "> 5" beyond five top words."""
    if rank:
        return f"{rank:,}".replace(",", "\N{THIN SPACE}")
    return "" if said.exact else f"> {said.k}"


def spelled(
    axes: Axes, said: Said, cell: tuple[int, int, int], box: tuple[float, float, float]
) -> None:
    """One word of the table over the bar of its probability.

    Args:
        axes: The table, in inches.
        said: The lens.
        cell: Layer, position and which of the best words.
        box: Left, middle and height.
    """
    from matplotlib.patches import Rectangle

    x, y, tall = box
    y -= tall / 2
    hit = int(said.index[cell]) in said.members
    share = float(said.probability[cell])
    room = WORD - 0.06
    ground = stills.colours(SHARE)(0.0)
    bar = stills.colours(SHARE)(0.3 if hit else 0.14)
    for wide, colour in ((room, ground), (room * share, bar)):
        axes.add_patch(Rectangle((x, y), wide, tall, fc=colour, ec="none"))
    if hit:
        edge = stills.series(1)
        axes.add_patch(Rectangle((x, y), room, tall, fill=False, ec=edge, lw=1.1))
    axes.text(
        x + 0.04, y + tall / 2, stills.shortened(said.word(*cell), 11),
        fontsize=7.2, va="center",
        weight="bold" if hit else "normal",
    )  # fmt: skip


def legend(drawing: Drawing, said: Said, x: float, y: float) -> None:
    """What the tints mean, as a bar with two ends."""
    axes = added(drawing, x, y + 0.16, 1.5, 0.08)
    axes.imshow(
        np.linspace(0, 1, 256)[None],
        cmap=stills.colours(SHARE),
        aspect="auto",
        extent=(0, 1, 0, 1),
    )
    axes.set_axis_off()
    low, high, meaning = ends(said)
    faint = stills.theme().faint
    for place, words, align in ((0, low, "left"), (1, high, "right")):
        axes.text(place, -0.6, words, fontsize=7, color=faint, ha=align, va="top",
                  transform=axes.transAxes)  # fmt: skip
    axes.text(1.08, 0.5, stills.shortened(meaning, 34), fontsize=7, color=faint,
              va="center", transform=axes.transAxes)  # fmt: skip


def ends(said: Said) -> tuple[str, str, str]:
    """What the palest and the deepest tint mean, and of what."""
    if not said.sought:
        top = 100 * float(said.probability[:, :, 0].max())
        return "0", f"{top:.3g} %", "probability of the best word"
    low = rank_words(said, said.deepest) if said.exact else f"> {said.k}"
    return low, "1", f"rank of “{said.sought}”, log scale"
