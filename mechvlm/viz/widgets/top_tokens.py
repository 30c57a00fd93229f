"""The best tokens of a logit lens as a table, through circuitsvis."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.figure import Figure
from mechvlm.viz.labels import Axis, axis, number, shown, title
from mechvlm.viz.lenses.words import checked
from mechvlm.viz.palette import Scale
from mechvlm.viz.payload import packed, tinted
from mechvlm.viz.widgets.boxes import boxed

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["top_tokens"]

Across = Literal["layer", "position"]

MOST_POSITIONS = 64
MOST_CELLS = 60_000
SCALE = Scale(0.0, 1.0)


def top_tokens(lensed: xr.Dataset, *, across: Across = "layer") -> Figure:
    """Show the best tokens of a logit lens at few positions, as a table.

    Args:
        lensed: What `mv.logit_lens` returns, over (layer, position, k), at a few
            positions of the text; for an image use `viz.lens`.
        across: What the columns of the live table are: "layer", how one position's
            words change from layer to layer; or "position", what one layer says at
            each position. The other dimension is chosen, its last first.

    Returns:
        A figure; colours are probabilities, 0 to 1.

    Raises:
        ResultError: It is no lens, or of more positions than a table can show.

    Example:
        >>> shape, dims = (2, 1, 2), ("layer", "position", "k")
        >>> found = top_tokens(xr.Dataset({
        ...     "word": (dims, np.full(shape, "red")),
        ...     "token_id": (dims, np.ones(shape, int)),
        ...     "probability": (dims, np.full(shape, 0.5))}))
        >>> found.kind
        'top_tokens'
    """
    if across not in get_args(Across):
        raise ResultError(f"across={across!r}: wanted 'layer' or 'position'")
    lens = checked(lensed)
    refuse_too_much(lens)
    down: Across = "position" if across == "layer" else "layer"
    table = lens.transpose(down, "k", across)
    rows, columns = axis(table["word"], down), axis(table["word"], across)
    unique, ids = np.unique(table["word"].values.astype(str), return_inverse=True)
    spec: dict[str, object] = {
        "across": across,
        "best": lens.sizes["k"],
        "first": len(rows.labels) - 1,
        "rows": [rows.place(i) for i in range(len(rows.labels))],
        "columns": [head(columns, i) for i in range(len(columns.labels))],
        "places": [columns.place(i) for i in range(len(columns.labels))],
        "words": [shown(str(word)) for word in unique],
        "ids": ids.ravel().tolist(),
        "values": packed(table["probability"].values),
        "scale": tinted(SCALE),
        "units": "probability",
    }
    named = lens.assign_attrs(
        {"long_name": "Top tokens of the logit lens"} | lens.attrs
    )
    still = partial(drawn, named, down, across)
    about = strongest(named, rows.place(len(rows.labels) - 1), down)
    height = 190 + 30 * lens.sizes["k"]
    return Figure(
        named, "top_tokens", spec, still, height, about=about, within=("widget",)
    )


def refuse_too_much(lens: xr.Dataset) -> None:
    """Raise where a table would not be read."""
    n = lens.sizes["position"]
    if n > MOST_POSITIONS:
        raise ResultError(
            f"{n} positions are too many for a table of tokens (at most"
            f" {MOST_POSITIONS}). For an image use viz.lens(lensed, image); for a few"
            ' words mv.logit_lens(vlm, prompt, at="query"), or'
            " lensed.isel(position=[-2, -1])."
        )
    if lens["word"].size > MOST_CELLS:
        sizes = " x ".join(f"{k} {v}" for k, v in lens["word"].sizes.items())
        raise ResultError(
            f"{lens['word'].size} words ({sizes}) are too many for one table (at most"
            f" {MOST_CELLS}): take a smaller topk, fewer layers or fewer positions."
        )


def head(columns: Axis, i: int) -> str:
    """What stands over a column: its label, and its token where it has one."""
    if not columns.tokens:
        return columns.labels[i]
    return f"{columns.labels[i]} {stills.shortened(columns.tokens[i], 16)}"


def strongest(lens: xr.Dataset, place: str, down: str) -> str:
    """For those who do not see the table: its size, and how its last word came."""
    sizes = lens["word"].sizes
    best = lens["word"].isel({down: -1, "k": 0})
    sure = lens["probability"].isel({down: -1, "k": 0}).fillna(0)
    at = int(np.argmax(sure.values))
    along = axis(best, str(best.dims[0]))
    return (
        f"{title(lens)}: the {sizes['k']} best at {sizes['layer']} layers and"
        f" {sizes['position']} positions. At {place} the surest is"
        f" “{shown(str(best.values[at]))}”, probability {number(float(sure[at]))}, at"
        f" {along.place(at)}."
    )


def drawn(lens: xr.Dataset, down: str, across: str) -> Drawing:
    """The still picture: what one place says, best word first, a line for each layer.

    Or one layer's words, a line for each position.
    """
    one = lens.isel({down: -1}).transpose(across, "k")
    lines, where = axis(one["word"], across), axis(lens["word"], down)
    words = [
        [stills.shortened(shown(str(w)), 14) for w in row] for row in one["word"].values
    ]
    wide = max(0.55, 0.0683 * max(len(word) for row in words for word in row) + 0.14)
    names = [head(lines, i) for i in range(len(words))]
    left, above, line = 0.3 + 0.068 * max(map(len, (across, *names))) + 0.1, 0.95, 0.22
    best = lens.sizes["k"]
    width = max(5.2, left + best * (wide + 0.04) + 1.1)
    height = max(2.2, above + line * len(words) + 0.25)
    drawing = stills.blank(width, height)
    axes = drawing.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    faint, colour = stills.theme().faint, stills.colours(SCALE)
    axes.text(left - 0.1, above - 0.1, across, ha="right", fontsize=8, color=faint)
    for k in range(best):
        x = left + (k + 0.5) * (wide + 0.04)
        axes.text(x, above - 0.1, str(k + 1), ha="center", fontsize=8, color=faint)
    for i, row in enumerate(words):
        y = above + line * i
        axes.text(left - 0.1, y + 0.1, names[i], ha="right", va="center", fontsize=8)
        for k, word in enumerate(row):
            ground = colour(float(one["probability"][i, k]))
            boxed(axes, word, (left + k * (wide + 0.04), y, wide, line - 0.03), ground)
    heading = f"{title(lens)}, {where.place(len(where.labels) - 1)}"
    titled = (
        one["probability"]
        .reset_coords(drop=True)
        .assign_attrs(lens.attrs | {"long_name": heading})
    )
    titled.attrs["units"] = "probability"
    stills.headed(drawing, titled, 0.3)
    stills.bar(drawing, SCALE, titled, (width - 0.8, height - above - 0.9, 0.1, 0.9))
    return drawing
