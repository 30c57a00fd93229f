"""Attention over few tokens: what goes into a block, and what its members read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz.widgets.blocks import PICTURE, Block, blocks, pooled, said

__all__ = ["MOST_TOKENS", "collapse"]

MOST_TOKENS = 100
ORDER = (*PICTURE, "pad", "system", "template", "generated", "query")


def collapse(
    result: xr.DataArray,
    groups: Sequence[str] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    limit: int = MOST_TOKENS,
) -> xr.DataArray:
    """Collapse blocks of positions of one group into one position each.

    Attention *into* a block is the sum over its keys, so every row still sums to 1;
    rows *of* a block are the mean over its queries.

    Args:
        result: Dimensions that include "target" and "source", with the coordinates
            `source_token`, `source_group`, `target_token`, `target_group`.
        groups: Groups to collapse; None takes the image (and "object", its positions on
            an object, as a block of their own) and then, one at a time, as many others
            as it takes to stay within `limit`.
        grid: Rows and columns of blocks that each image becomes, so that one sees where
            in it a head looks; `attrs["grids"]` must say how its positions lie. None
            makes an image one block.
        limit: At most so many sources afterwards.

    Returns:
        The same dimensions, shorter. Labels of blocks say what was done and how many
        positions they stand for: "image x81 (sum)" or "image r0 c2 x9 (sum)" as source,
        "(mean)" as target; with several images "image 1 r0 c2". Added coordinates:
        `source_size`, `target_size`; `attrs["pooling"]` says it in a sentence.

    Raises:
        ResultError: A coordinate or the grid is missing, blocks do not tile an image,
            an image is there in part, or there are still too many sources.

    Example:
        >>> words = {"token": ["a", "i", "i"], "group": ["query", "image", "image"]}
        >>> dims = ("target", "source")
        >>> both = {f"{d}_{k}": (d, v) for d in dims for k, v in words.items()}
        >>> eye = xr.DataArray(np.eye(3), dims=dims, coords=both)
        >>> small = collapse(eye)
        >>> small.values.tolist(), small["source_token"].values.tolist()
        ([[1.0, 0.0], [0.0, 1.0]], ['a', 'image x2 (sum)'])
    """
    needed = [
        f"{dim}_{what}" for dim in ("source", "target") for what in ("token", "group")
    ]
    missing = [name for name in needed if name not in result.coords]
    if missing:
        raise ResultError(
            f"cannot collapse attention without the coordinates {', '.join(missing)}"
        )
    wanted = list(groups) if groups is not None else fewest(result, grid, limit)
    sources = blocks(result, "source", wanted, grid)
    if len(sources) > limit:
        coarser = "take a coarser grid, " if grid else ""
        raise ResultError(
            f"{len(sources)} source positions are left after collapsing"
            f" {', '.join(wanted) or 'nothing'}; at most {limit} can be shown. Select a"
            f" part of the prompt, {coarser}or name more groups."
        )
    shorter = merged(result, "source", sources, "sum")
    targets = blocks(result, "target", wanted, grid)
    small = merged(shorter, "target", targets, "mean")
    attrs = {name: value for name, value in small.attrs.items() if name != "grids"}
    note = said(sources, "attention into a block is the sum, of a block the mean")
    small.attrs = attrs | ({"pooling": note} if note else {})
    return small


def fewest(result: xr.DataArray, grid: tuple[int, int] | None, limit: int) -> list[str]:
    """The image, and as few other groups as bring the sources within `limit`."""
    wanted = list(PICTURE)
    for group in ORDER[len(PICTURE) :]:
        if len(blocks(result, "source", wanted, grid)) <= limit:
            break
        wanted.append(group)
    return wanted


def merged(
    result: xr.DataArray, dim: str, made: Sequence[Block], how: str
) -> xr.DataArray:
    """The result with each block of `dim` as one position: its "sum" or its "mean"."""
    tokens = result[f"{dim}_token"].values
    values = pooled(result.values, result.dims.index(dim), made, how)
    kept = {
        str(k): (v.dims, v.values)
        for k, v in result.coords.items()
        if dim not in v.dims
    }
    firsts = [block.at[0] for block in made]
    at = result[dim].values[firsts] if dim in result.coords else np.array(firsts)
    labels = [block.label(str(tokens[block.at[0]]), how) for block in made]
    coords = {
        dim: (dim, at),
        f"{dim}_token": (dim, labels),
        f"{dim}_group": (dim, [block.group for block in made]),
        f"{dim}_size": (dim, [block.size for block in made]),
    }
    return xr.DataArray(
        values,
        dims=result.dims,
        coords=kept | coords,
        name=result.name,
        attrs=result.attrs,
    )
