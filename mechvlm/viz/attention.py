"""Attention patterns through circuitsvis, with image positions collapsed first."""

from __future__ import annotations

import base64
import math
from functools import partial
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.collapse import collapse
from mechvlm.viz.figure import Figure
from mechvlm.viz.heatmap import heatmap
from mechvlm.viz.labels import axis, called, shown
from mechvlm.viz.palette import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["attention", "attention_from_last", "attention_into"]

MOST_CELLS = 6_000_000
LAYERED = ("layer", "head", "target", "source")


def attention(result: xr.DataArray, *, layer: int | None = None) -> Figure:
    """Show attention patterns of all heads, one layer at a time.

    Image positions are collapsed (see `collapse`): circuitsvis draws at most about a
    hundred tokens well.

    Args:
        result: ("layer", "head", "target", "source") or ("head", "target", "source"),
            every position being both a target and a source.
        layer: Layer shown first, and in the still picture; None takes the middle one.

    Returns:
        A figure whose live view is circuitsvis's, with a choice of layers.

    Raises:
        ResultError: Other dimensions, targets that are not the sources, or more numbers
            than one page should carry.
    """
    small = collapse(squared(result))
    if small.size > MOST_CELLS:
        raise ResultError(
            f"{small.size} attention weights are too many for one page (at most"
            f" {MOST_CELLS}). Choose layers: result.sel(layer=[8, 9, 10])."
        )
    layers = axis(small, "layer").labels
    first = len(layers) // 2
    if layer is not None:
        if str(layer) not in layers:
            raise ResultError(f"no layer {layer} here; there are {', '.join(layers)}")
        first = layers.index(str(layer))
    tokens = joint_tokens(small)
    levels = np.rint(np.clip(np.nan_to_num(small.values), 0, 1) * 255).astype(np.uint8)
    spec = {
        "layers": layers,
        "first": first,
        "heads": [f"head {name}" for name in axis(small, "head").labels],
        "tokens": [escape(token) for token in tokens],
        "shape": small.shape,
        "data": base64.b64encode(levels.tobytes()).decode(),
    }
    still = partial(drawn, small.isel(layer=first))
    rows = -(-small.sizes["head"] // 8)
    return Figure(small, "attention", spec, still, 460 + 120 * rows)


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
    full = result if "layer" in result.dims else result.expand_dims("layer")
    return full.transpose(*wanted)


def joint_tokens(small: xr.DataArray) -> list[str]:
    """One label for each collapsed token, that holds for it as target and as source."""
    sources = [str(token) for token in small["source_token"].values]
    sizes = small["source_size"].values
    return [
        name.replace("(sum)", "(keys: sum, queries: mean)") if size > 1 else shown(name)
        for name, size in zip(sources, sizes, strict=True)
    ]


def attention_from_last(result: xr.DataArray, *, layer: int) -> Figure:
    """What the last token reads in one layer: head by (collapsed) source.

    Args:
        result: As for `attention`; the target axis may be the last position alone.
        layer: The layer to show.

    Returns:
        A map of attention weights; each row sums to 1.

    Raises:
        ResultError: No such layer.

    Paper: Neo et al. 2025, arXiv:2410.07149, look at attention from the last token.
    """
    one = result
    if "layer" in result.dims:
        if "layer" not in result.coords:
            one = result.assign_coords(layer=range(result.sizes["layer"]))
        if layer not in one["layer"].values:
            raise ResultError(f"no layer {layer} among {one['layer'].values.tolist()}")
        one = one.sel(layer=layer)
    last = collapse(one.isel(target=slice(-1, None))).isel(target=0, drop=True)
    last = last.transpose("head", "source").drop_vars("layer", errors="ignore")
    last.attrs |= {"long_name": f"Attention from the last token, layer {layer}"}
    last.attrs.setdefault("units", "attention weight")
    return heatmap(last)


def attention_into(result: xr.DataArray, group: str = "image") -> Figure:
    """How much of the last token's attention goes to one group: layer by head.

    Args:
        result: As for `attention`; the target axis may be the last position alone.
        group: Group whose weights are summed.

    Returns:
        A map of shares: 0 reads nothing of the group, 1 nothing else.

    Raises:
        ResultError: The result has no layers, or no source in that group.

    Paper: Neo et al. 2025, arXiv:2410.07149.
    """
    if "layer" not in result.dims:
        raise ResultError(
            "attention_into wants all layers: dims layer, head, target, source"
        )
    groups = result["source_group"].values.astype(str)
    if group not in groups:
        raise ResultError(
            f"no source position is of group {group!r}; there are"
            f" {', '.join(sorted(set(groups)))}"
        )
    last = result.isel(target=-1, drop=True)
    share = last.isel(source=np.flatnonzero(groups == group)).sum("source")
    share = share.transpose("layer", "head").drop_vars(
        ["target", "target_token", "target_group"], errors="ignore"
    )
    share.attrs = {**result.attrs, "units": "share of the attention row"}
    share.attrs["long_name"] = f"Attention of the last token to the {group} positions"
    return heatmap(share)


def drawn(small: xr.DataArray) -> Drawing:
    """The still picture: one small pattern for each head of a layer."""
    heads = small.sizes["head"]
    down, across = axis(small, "target").tokens, axis(small, "source").tokens
    cols = min(4 if heads <= 12 else 8, heads)
    rows = math.ceil(heads / cols)
    gutter = 0.3 + 0.058 * max(len(stills.shortened(t, 22)) for t in across)
    wide = max(1.75, min(2.6, 0.14 * len(across))) if cols <= 4 else 1.45
    above, cell = 0.62, wide + 0.3
    width, height = gutter + cols * (wide + 0.2) + 1.0, above + rows * cell + gutter
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
            axes, down if col == 0 else (), across if head + cols >= heads else ()
        )
    stills.headed(drawing, titled(small), gutter)
    x = gutter + cols * (wide + 0.2)
    stills.bar(
        drawing, scale, titled(small), (x, height - above - cell + 0.05, 0.1, wide)
    )
    return drawing


def titled(small: xr.DataArray) -> xr.DataArray:
    """The pattern with a heading that says its layer."""
    heading = f"Attention patterns, layer {small['layer'].item()}"
    return small.assign_attrs(long_name=heading, units="attention weight")


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
