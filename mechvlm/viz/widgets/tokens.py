"""A number for each token, as the prompt's words in colours, through circuitsvis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal
from unicodedata import east_asian_width

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.figure import Figure
from mechvlm.viz.given import numbers
from mechvlm.viz.labels import axis, called, number, shown, title, units
from mechvlm.viz.palette import scale_of
from mechvlm.viz.payload import packed, tinted
from mechvlm.viz.widgets.blocks import FEW, PICTURE, blocks, pooled, said
from mechvlm.viz.widgets.boxes import boxed

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["tokens"]

MOST_WORDS = 600
MOST_CELLS = 100_000
WIDEST = 8.2


def tokens(
    result: xr.DataArray,
    *,
    pool: Literal["sum", "mean"] = "sum",
    grid: tuple[int, int] | None = None,
) -> Figure:
    """Colour each token of the prompt by its number, such as its attribution.

    Image positions have no words: an image becomes one token, or a few blocks. Where in
    the picture a number lies is what `viz.overlay` shows.

    Args:
        result: Over "position", such as `mv.integrated_gradients` returns; or with one
            dimension more, of which one row is shown at a time. The coordinate "token"
            names the positions; "group" says which are the image's.
        pool: What stands for the positions of an image: their "sum", as for scores that
            add up to a whole, or their "mean".
        grid: Rows and columns of blocks that each image becomes; None makes it one.

    Returns:
        A figure; its `data` holds the numbers as shown. A choice of rows begins with
        the row that holds the strongest number.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: Other dimensions, no tokens, no finite value, more words than one
            can read, or blocks that do not tile the image.

    Example:
        >>> scores = xr.DataArray(
        ...     [0.5, 0.25, -1.0], dims="position",
        ...     coords={"token": ("position", ["<image>", "<image>", "red"]),
        ...             "group": ("position", ["image", "image", "query"])})
        >>> figure = tokens(scores)
        >>> figure.data["token"].values.tolist(), figure.data.values.tolist()
        (['image x2 (sum)', 'red'], [0.75, -1.0])
    """
    numbers(result, "viz.tokens")
    if pool not in ("sum", "mean"):
        raise ResultError(f"pool={pool!r}: wanted 'sum' or 'mean'")
    small = shortened(checked(result), pool, grid)
    rows = by_row(small)
    scale, words = scale_of(small), written(small)
    first = int(np.unravel_index(np.nanargmax(np.abs(rows)), rows.shape)[0])
    names = row_names(small)
    spec: dict[str, object] = {
        "rows": names,
        "first": first,
        "tokens": words,
        "places": placed(small),
        "values": packed(rows),
        "scale": tinted(scale),
        "units": units(small),
        "note": small.attrs.get("pooling", ""),
    }
    letters = sum(len(token) + 3 for token in words)
    return Figure(
        small,
        "tokens",
        spec,
        partial(drawn, small, first),
        220 + 32 * -(-letters // 110) + 40 * (len(names) > 1),
        about=strongest(small),
        within=("widget",),
    )


def checked(result: xr.DataArray) -> xr.DataArray:
    """The result with "position" last, if it can be drawn at all."""
    if "position" not in result.dims or result.ndim > 2:
        raise ResultError(
            "tokens want (position) or one dimension more; "
            f"{called(result)} has {tuple(result.dims)}. Select the others:"
            " result.sel(head=3)."
        )
    if "token" not in result.coords:
        raise ResultError(
            f"{called(result)} has no coordinate 'token', so there are no words to"
            " colour: result.assign_coords(prompt.labels())"
        )
    return result.transpose(..., "position")


def shortened(
    result: xr.DataArray, pool: Literal["sum", "mean"], grid: tuple[int, int] | None
) -> xr.DataArray:
    """The result with image positions pooled, no longer than one can read."""
    grouped = result
    if "group" not in result.coords:
        alone = ("position", [""] * result.sizes["position"])
        grouped = result.assign_coords(group=alone)
    made = blocks(grouped, "position", [*PICTURE, "pad"], grid)
    rows = result.size // max(1, result.sizes["position"])
    if len(made) > MOST_WORDS or len(made) * rows > MOST_CELLS:
        raise ResultError(
            f"{len(made)} tokens in {rows} rows are more than one can read (at most"
            f" {MOST_WORDS}, and {MOST_CELLS} numbers). Select a part of the prompt or"
            " a coarser grid; viz.heatmap and viz.overlay show thousands of positions."
        )
    if not made:
        raise ResultError("the selection left no position: there is nothing to draw")
    firsts = [block.at[0] for block in made]
    small = grouped.isel(position=firsts).copy(
        data=pooled(result.values, -1, made, pool)
    )
    words = result["token"].values
    labels = [block.label(str(words[block.at[0]]), pool) for block in made]
    note = said(made, f"a block is the {pool} of its positions")
    attrs = {name: value for name, value in result.attrs.items() if name != "grids"}
    small.attrs = attrs | ({"pooling": note} if note else {})
    sizes = [block.size for block in made]
    return small.assign_coords(token=("position", labels), size=("position", sizes))


def by_row(small: xr.DataArray) -> np.ndarray:
    """The numbers as (row, position), one row where there is no other dimension."""
    values = np.asarray(small.values, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    return values.reshape(-1, small.sizes["position"])


def written(small: xr.DataArray) -> tuple[str, ...]:
    """The tokens as written; of many blocks only the note says what was done."""
    words = axis(small, "position").tokens
    if (small["size"].values > 1).sum() <= FEW:
        return words
    pairs = zip(words, small["size"].values, strict=True)
    return tuple(word.rsplit(" (", 1)[0] if n > 1 else word for word, n in pairs)


def row_names(small: xr.DataArray) -> list[str]:
    """What the rows are called; one empty name where there is one row."""
    if small.ndim == 1:
        return [""]
    across = axis(small, str(small.dims[0]))
    return [f"{across.name} {shown(label)}" for label in across.labels]


def placed(small: xr.DataArray) -> list[str]:
    """Where each token stands, in words."""
    along = axis(small, "position")
    pairs = zip(along.labels, small["group"].values, strict=True)
    return [f"position {at}{f', {group}' if group else ''}" for at, group in pairs]


def strongest(small: xr.DataArray) -> str:
    """For those who do not see the colours: the strongest token of either sign."""
    rows, names = by_row(small), row_names(small)
    words = written(small)
    parts = [f"{title(small)}, {len(words)} tokens."]
    for word, found in (
        ("Highest", np.nanargmax(rows)),
        ("lowest", np.nanargmin(rows)),
    ):
        row, i = (int(k) for k in np.unravel_index(int(found), rows.shape))
        where = f", {names[row]}" if names[row] else ""
        parts.append(f"{word}: {number(rows[row, i])} at “{words[i]}”{where};")
    note = small.attrs.get("pooling", "")
    return " ".join(parts).removesuffix(";") + "." + (f" {note}." if note else "")


@dataclass(frozen=True, slots=True)
class Word:
    """A token's box in the still, inches from the upper left.

    Attributes:
        text: What is written.
        x: Left edge.
        line: Line of text, 0 the first.
        width: Width of the box.
    """

    text: str
    x: float
    line: int
    width: float


def laid_out(words: tuple[str, ...], room: float) -> list[Word]:
    """Words in lines no wider than `room` inches, in a type of even width."""
    found, x, line = [], 0.0, 0
    for word in words:
        text = stills.shortened(word, 60)
        letters = sum(2 if east_asian_width(c) in "WF" else 1 for c in text)
        width = 0.0683 * letters + 0.12
        if x and x + width > room:
            x, line = 0.0, line + 1
        found.append(Word(text, x, line, width))
        x += width + 0.05
    return found


def drawn(small: xr.DataArray, first: int) -> Drawing:
    """The still picture: the words of one row in their colours."""
    words = laid_out(written(small), WIDEST)
    left, above, line = 0.3, 0.95, 0.27
    used = max(word.x + word.width for word in words)
    width = left + max(used, 4.6) + 1.1
    height = max(2.0, above + line * (words[-1].line + 1) + 0.2)
    drawing, scale = stills.blank(width, height), scale_of(small)
    axes = drawing.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    colour, span = stills.colours(scale), scale.high - scale.low
    for word, value in zip(words, by_row(small)[first], strict=True):
        box = (left + word.x, above + line * word.line, word.width, line - 0.05)
        boxed(axes, word.text, box, colour(float((value - scale.low) / span)))
    name = row_names(small)[first]
    heading = f"{title(small)}, {name}" if name else title(small)
    stills.headed(drawing, small.assign_attrs(long_name=heading), left)
    note, faint = str(small.attrs.get("pooling", "")), stills.theme().faint
    axes.text(left, 0.58, note, va="top", fontsize=stills.LABEL, color=faint)
    stills.bar(drawing, scale, small, (width - 0.8, height - above - 0.75, 0.1, 0.75))
    return drawing
