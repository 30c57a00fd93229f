"""Attention over few tokens: what goes into a group, and what its members read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError

__all__ = ["MOST_TOKENS", "collapse"]

MOST_TOKENS = 100
ORDER = ("image", "pad", "system", "template", "generated", "query")


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring positions that become one, or a single position that stays."""

    start: int
    stop: int
    group: str

    @property
    def size(self) -> int:
        """How many positions it stands for."""
        return self.stop - self.start


def collapse(
    result: xr.DataArray,
    groups: Sequence[str] | None = None,
    *,
    limit: int = MOST_TOKENS,
) -> xr.DataArray:
    """Collapse blocks of positions of one group into one position each.

    Attention *into* a block is the sum over its keys, so every row still sums to 1;
    rows *of* a block are the mean over its queries.

    Args:
        result: Dimensions that include "target" and "source", with the coordinates
            `source_token`, `source_group`, `target_token`, `target_group`.
        groups: Groups to collapse; None takes the image and then, one at a time, as
            many others as it takes to stay within `limit`.
        limit: At most so many sources afterwards.

    Returns:
        The same dimensions, shorter. Labels of blocks say what was done and how many
        positions they stand for: "image x81 (sum)" as source, "image x81 (mean)" as
        target. Added coordinates: `source_size`, `target_size`.

    Raises:
        ResultError: A coordinate is missing, or there are still too many sources.

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
    wanted = list(groups) if groups is not None else fewest(result, limit)
    runs = blocks(result, "source", wanted)
    if len(runs) > limit:
        raise ResultError(
            f"{len(runs)} source positions are left after collapsing"
            f" {', '.join(wanted) or 'nothing'}; at most {limit} can be shown. Select a"
            " part of the prompt, or name more groups."
        )
    shorter = merged(result, "source", runs, "sum")
    return merged(shorter, "target", blocks(result, "target", wanted), "mean")


def fewest(result: xr.DataArray, limit: int) -> list[str]:
    """The image, and as few other groups as bring the sources within `limit`."""
    wanted = [ORDER[0]]
    for group in ORDER[1:]:
        if len(blocks(result, "source", wanted)) <= limit:
            break
        wanted.append(group)
    return wanted


def blocks(result: xr.DataArray, dim: str, wanted: Sequence[str]) -> list[Run]:
    """Positions of `dim` in runs: blocks of a wanted group, all others alone."""
    found, start = [], 0
    for group, members in groupby(str(g) for g in result[f"{dim}_group"].values):
        stop = start + len(list(members))
        if group in wanted:
            found.append(Run(start, stop, group))
        else:
            found += [Run(i, i + 1, group) for i in range(start, stop)]
        start = stop
    return found


def merged(
    result: xr.DataArray, dim: str, runs: Sequence[Run], how: str
) -> xr.DataArray:
    """The result with each run of `dim` as one position: its "sum" or its "mean"."""
    place = result.dims.index(dim)
    starts = [run.start for run in runs]
    sizes = np.array([run.size for run in runs])
    values = np.add.reduceat(np.asarray(result.values, dtype=float), starts, axis=place)
    if how == "mean":
        values = values / sizes.reshape(
            [-1 if i == place else 1 for i in range(result.ndim)]
        )
    tokens = result[f"{dim}_token"].values
    names = [
        str(tokens[run.start]) if run.size == 1 else f"{run.group} x{run.size} ({how})"
        for run in runs
    ]
    kept = {
        str(k): (v.dims, v.values)
        for k, v in result.coords.items()
        if dim not in v.dims
    }
    at = result[dim].values[starts] if dim in result.coords else np.array(starts)
    made = {
        dim: (dim, at),
        f"{dim}_token": (dim, names),
        f"{dim}_group": (dim, [run.group for run in runs]),
        f"{dim}_size": (dim, sizes),
    }
    return xr.DataArray(
        values,
        dims=result.dims,
        coords=kept | made,
        name=result.name,
        attrs=result.attrs,
    )
