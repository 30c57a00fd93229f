"""Attention patterns through circuitsvis, with image positions collapsed first."""

from __future__ import annotations

import base64
import math
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.figure import Figure
from mechvlm.viz.given import numbers
from mechvlm.viz.labels import axis, called, number, shown
from mechvlm.viz.palette import Scale
from mechvlm.viz.widgets.blocks import FEW
from mechvlm.viz.widgets.collapse import collapse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["View", "attention"]

View = Literal["patterns", "heads"]

MOST_CELLS = 6_000_000
MOST_DRAWN = {"patterns": 330_000, "heads": 60_000}
"""Cells of one layer that circuitsvis draws within seconds."""

LAYERED = ("layer", "head", "target", "source")


def attention(
    result: xr.DataArray,
    *,
    layer: int | None = None,
    grid: tuple[int, int] | None = None,
    view: View = "patterns",
) -> Figure:
    """Show attention patterns of all heads, one layer at a time.

    Image positions are collapsed (see `collapse`): circuitsvis draws at most about a
    hundred tokens well.

    Args:
        result: ("layer", "head", "target", "source") or ("head", "target", "source"),
            every position being both a target and a source.
        layer: Layer shown first, and in the still picture; None takes the middle one.
        grid: Rows and columns of blocks that each image becomes, such as (3, 3), so
            that one sees where in the image heads look; None makes it one token.
        view: "patterns", circuitsvis's tokens coloured by what they read, with small
            patterns; or "heads", its one large pattern with words on both axes.

    Returns:
        A figure whose live view is circuitsvis's, with a choice of layers.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: Other dimensions, targets that are not the sources, more numbers
            than one page should carry or one view can draw, or as for `collapse`.

    Example:
        >>> words = {"token": ["a", "i", "i"], "group": ["query", "image", "image"]}
        >>> both = {f"{d}_{k}": (d, v) for d in LAYERED[2:] for k, v in words.items()}
        >>> causal = np.tri(3)[None] / np.tri(3).sum(1)[:, None]
        >>> found = xr.DataArray(causal, dims=LAYERED[1:], coords=both)
        >>> attention(found).data.shape
        (1, 1, 2, 2)
    """
    numbers(result, "viz.attention")
    if view not in MOST_DRAWN:
        raise ResultError(f"view={view!r}: wanted {' or '.join(map(repr, MOST_DRAWN))}")
    small = collapse(squared(result), grid=grid)
    refuse_too_much(small, view)
    layers = axis(small, "layer").labels
    first = len(layers) // 2
    if layer is not None:
        if str(layer) not in layers:
            raise ResultError(f"no layer {layer} here; there are {', '.join(layers)}")
        first = layers.index(str(layer))
    small.attrs.setdefault("units", "attention weight")
    small.attrs["long_name"] = "Attention patterns"
    weights = np.clip(np.nan_to_num(small.values), 0, 1)
    levels = np.rint(weights * 65535).astype("<u2")
    tokens = joint_tokens(small)
    spec: dict[str, object] = {
        "view": view,
        "layers": layers,
        "first": first,
        "heads": [f"head {name}" for name in axis(small, "head").labels],
        # As HTML for the patterns; the other view writes them on a canvas.
        "tokens": [escape(t) for t in tokens] if view == "patterns" else tokens,
        "note": noted(small),
        "shape": small.shape,
        "data": base64.b64encode(levels.tobytes()).decode(),
    }
    still = partial(drawn, small.isel(layer=first, drop=True), layers[first])
    about, height = strongest(small), tall(small, view)
    return Figure(
        small, "attention", spec, still, height, about=about, within=("widget",)
    )


def refuse_too_much(small: xr.DataArray, view: View) -> None:
    """Raise where a page would be too heavy, or its first look too slow."""
    layers, heads, n, _ = small.shape
    if small.size > MOST_CELLS:
        fits = max(1, MOST_CELLS // (heads * n * n))
        raise ResultError(
            f"{small.size} attention weights ({layers} layers x {heads} heads x {n} x"
            f" {n} tokens) are too many for one page (at most {MOST_CELLS}). Choose at"
            f" most {fits} layers: result.sel(layer=[8, 9, 10]); or a coarser grid."
        )
    if heads * n * n > MOST_DRAWN[view]:
        fits = max(1, MOST_DRAWN[view] // (n * n))
        other = "" if view == "patterns" else ', or view="patterns"'
        raise ResultError(
            f"{heads} heads of {n} x {n} tokens are too many for view={view!r} to draw"
            f" in seconds (at most {MOST_DRAWN[view]} cells in a layer). Choose at most"
            f" {fits} heads: result.sel(head=[0, 1]); or a coarser grid{other}."
        )


def squared(result: xr.DataArray) -> xr.DataArray:
    """The result as (layer, head, target, source), its targets being its sources."""
    wanted = LAYERED
    if set(result.dims) not in (set(wanted), set(wanted[1:])):
        raise ResultError(
            f"attention wants {wanted} or {wanted[1:]}; {called(result)}"
            f" has {tuple(result.dims)}"
        )
    if result.sizes["target"] != result.sizes["source"]:
        raise ResultError(
            f"attention patterns want every position as target and as source; here"
            f" {result.sizes['target']} targets read {result.sizes['source']} sources."
            " For single rows use viz.attention_from_last or viz.heatmap."
        )
    empty = [str(dim) for dim in result.dims if not result.sizes[dim]]
    if empty:
        raise ResultError(
            f"the selection left no {', no '.join(empty)}: there is nothing to draw"
        )
    full = result if "layer" in result.dims else result.expand_dims("layer")
    return full.transpose(*wanted)


def joint_tokens(small: xr.DataArray) -> list[str]:
    """One label for each collapsed token, that holds for it as target and as source.

    What was done stands with a few blocks; with many only in the note.
    """
    names = [str(token) for token in small["source_token"].values]
    sizes = small["source_size"].values
    how = " (keys: sum, queries: mean)" if (sizes > 1).sum() <= FEW else ""
    return [
        name.removesuffix(" (sum)") + how if size > 1 else shown(name)
        for name, size in zip(names, sizes, strict=True)
    ]


def noted(small: xr.DataArray) -> str:
    """How positions were pooled, as a sentence; "" where none was."""
    note = str(small.attrs.get("pooling", ""))
    return f"{note[:1].upper()}{note[1:]}." if note else ""


def tall(small: xr.DataArray, view: View) -> int:
    """Height in pixels that the live view wants."""
    heads, n = small.sizes["head"], small.sizes["source"]
    if view == "heads":
        return 330 + 90 * -(-heads // 12) + min(860, 220 + 30 * n)
    words = sum(len(token) + 2 for token in joint_tokens(small))
    return 420 + 118 * -(-heads // 7) + 28 * -(-words // 100)


def strongest(small: xr.DataArray) -> str:
    """For those who do not see the figure: its size, and what the last token reads."""
    layers, heads, n, _ = small.shape
    counts = f"{layers} layers by {heads} heads over {n} tokens"
    last = np.nan_to_num(small.values[:, :, -1])
    read = small["source_group"].values.astype(str) != "bos"
    read[-1] = False
    text = f"Attention patterns, {counts}."
    note = f" {noted(small)}" if noted(small) else ""
    if not read.any() or not last[:, :, read].any():
        return text + note
    at = np.unravel_index(int(np.argmax(np.where(read, last, -1))), last.shape)
    words = [
        axis(small, dim).labels[i] for dim, i in zip(LAYERED, at[:2], strict=False)
    ]
    token = joint_tokens(small)[at[2]]
    return (
        f"{text} The last token reads “{token}” most, itself and the beginning aside:"
        f" {number(float(last[at]))} in layer {words[0]}, head {words[1]}.{note}"
    )


def drawn(small: xr.DataArray, layer: str) -> Drawing:
    """The still picture: one small pattern for each head of a layer."""
    heads = small.sizes["head"]
    names = tuple(joint_tokens(small))
    cols = min(4 if heads <= 12 else 8, heads)
    rows = math.ceil(heads / cols)
    gutter = 0.3 + 0.058 * max(len(stills.shortened(t, 22)) for t in names)
    wide = max(1.75, min(2.6, 0.14 * len(names))) if cols <= 4 else 1.45
    above, cell = 0.62 + 0.18 * bool(noted(small)), wide + 0.3
    width = max(5.2, gutter + cols * (wide + 0.2) + 1.0)
    height = above + rows * cell + gutter
    drawing = stills.blank(width, height)
    scale = Scale(0.0, 1.0)
    for head in range(heads):
        row, col = divmod(head, cols)
        x, y = gutter + col * (wide + 0.2), height - above - (row + 1) * cell + 0.05
        axes = drawing.add_axes((x / width, y / height, wide / width, wide / height))
        pattern = small.values[head]
        axes.imshow(pattern, cmap=stills.colours(scale), vmin=0, vmax=1, aspect="auto")
        axes.set_title(
            f"head {axis(small, 'head').labels[head]}", fontsize=8, loc="left", pad=3
        )
        name_tokens(
            axes, names if col == 0 else (), names if head + cols >= heads else ()
        )
    titled = small.assign_attrs(long_name=f"Attention patterns, layer {layer}")
    stills.headed(drawing, titled, gutter)
    words = stills.shortened(noted(small), int((width - gutter) * 15))
    colour, at = stills.theme().faint, (gutter / width, 1 - 0.57 / height)
    drawing.text(*at, words, va="top", fontsize=stills.LABEL, color=colour)
    x = gutter + cols * (wide + 0.2)
    box = (x, height - above - cell + 0.05, 0.1, wide)
    stills.bar(drawing, scale, titled, box)
    return drawing


def name_tokens(axes: Axes, down: tuple[str, ...], across: tuple[str, ...]) -> None:
    """Name rows and columns of a small pattern, thinned out to what fits."""
    for names, place, turn in (
        (down, axes.set_yticks, 0),
        (across, axes.set_xticks, 90),
    ):
        at = range(0, len(names), math.ceil(len(names) / 14) or 1)
        words = [stills.shortened(names[i], 22) for i in at]
        place(at, words, fontsize=7, rotation=turn)
    stills.quiet_axes(axes)
