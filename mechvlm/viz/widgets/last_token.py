"""What the last token reads: its rows of attention as maps."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz.figure import Figure
from mechvlm.viz.given import numbers
from mechvlm.viz.labels import called
from mechvlm.viz.plots.heatmap import heatmap
from mechvlm.viz.widgets.blocks import FEW
from mechvlm.viz.widgets.collapse import collapse

__all__ = ["attention_from_last", "attention_into"]


def attention_from_last(
    result: xr.DataArray, *, layer: int, grid: tuple[int, int] | None = None
) -> Figure:
    """What the last token reads in one layer: head by (collapsed) source.

    Args:
        result: As for `attention`; the target axis may be the last position alone.
        layer: The layer to show.
        grid: Rows and columns of blocks that each image becomes; see `collapse`.

    Returns:
        A map of attention weights; each row sums to 1.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: No such layer, other dimensions, or as for `collapse`.

    Paper: Neo et al. 2025, arXiv:2410.07149, look at attention from the last token.
    """
    numbers(result, "viz.attention_from_last")
    one = result
    if "layer" in result.dims:
        if "layer" not in result.coords:
            one = result.assign_coords(layer=range(result.sizes["layer"]))
        if layer not in one["layer"].values:
            raise ResultError(f"no layer {layer} among {one['layer'].values.tolist()}")
        one = one.sel(layer=layer)
    if set(one.dims) != {"head", "target", "source"}:
        raise ResultError(
            "attention_from_last wants (layer, head, target, source), layer left out"
            f" or not; {called(result)} has {tuple(result.dims)}"
        )
    small = collapse(one.isel(target=slice(-1, None)), grid=grid)
    last = small.isel(target=0, drop=True).transpose("head", "source")
    last = last.drop_vars("layer", errors="ignore")
    title = f"Attention from the last token, layer {layer}"
    if (last["source_size"].values > 1).sum() > FEW:
        names = [
            str(name).removesuffix(" (sum)") for name in last["source_token"].values
        ]
        last = last.assign_coords(source_token=("source", names))
        title += " (each block is a sum)"
    return heatmap(last.assign_attrs(long_name=title, units="attention weight"))


def attention_into(result: xr.DataArray, group: str = "image") -> Figure:
    """How much of the last token's attention goes to one group: layer by head.

    Args:
        result: As for `attention`; the target axis may be the last position alone.
        group: Group whose weights are summed.

    Returns:
        A map of shares: 0 reads nothing of the group, 1 nothing else.

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: The result has no layers, or no source in that group.

    Paper: Neo et al. 2025, arXiv:2410.07149.
    """
    numbers(result, "viz.attention_into")
    if set(result.dims) != {"layer", "head", "target", "source"}:
        raise ResultError(
            "attention_into wants all layers: dims layer, head, target, source; here"
            f" {', '.join(map(str, result.dims))}"
        )
    if "source_group" not in result.coords:
        raise ResultError(
            "attention_into wants the coordinate source_group, which says what group"
            " each source is in; mv.attention_patterns writes it"
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
