"""Two results side by side, on one scale, and their difference."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.errors import ResultError
from mechvlm.viz.figure import Figure
from mechvlm.viz.given import numbers
from mechvlm.viz.labels import axis, number, units
from mechvlm.viz.payload import tinted
from mechvlm.viz.plots.compare_still import Pair, common, drawn
from mechvlm.viz.plots.heatmap import heatmap
from mechvlm.viz.plots.lines import lines

__all__ = ["compare"]

MOST_LINES = 4  # of one result: two such bundles are told apart in one plot


def compare(
    left: xr.DataArray,
    right: xr.DataArray,
    *,
    names: tuple[str, str] = ("left", "right"),
) -> Figure:
    """Draw two results of one shape on one scale, and the first less the second.

    Maps stand side by side, or below each other where they are wide; up to four lines
    over layers share one plot. Pointing at a cell reads both and their difference.

    Args:
        left: One or two dimensions, such as (layer, head) or (cut, layer).
        right: The same dimensions, coordinates and unit.
        names: What the results are called, such as ("clean", "control").

    Returns:
        A figure; its data holds "left", "right" and "difference". The difference has a
        scale of its own: 0 where both agree.

    Raises:
        ArgumentError: One of them is no DataArray.
        ResultError: Other dimensions, coordinates or units, with the first difference
            named; no finite value; or two equal names.

    Example:
        >>> clean = xr.DataArray([[0.0, 0.5], [1.0, 0.2]], dims=("layer", "head"))
        >>> figure = compare(clean, clean / 2, names=("clean", "control"))
        >>> float(figure.data["difference"].max())
        0.5
    """
    for result in (left, right):
        numbers(result, "viz.compare")
    if names[0] == names[1]:
        raise ResultError(
            f"both results are called {names[0]!r}: name what differs, such as"
            ' names=("clean", "control").'
        )
    refuse_unlike(left, right, names)
    right = right.transpose(*left.dims)
    difference = left.copy(data=floats(left) - floats(right)).drop_vars(
        [end for end in ("low", "high") if end in left.coords]
    )
    if not np.isfinite(difference.values).any():
        raise ResultError(
            f"no cell is finite both in {names[0]!r} and in {names[1]!r}: there is"
            " nothing to compare. Usual cause: results over other selections."
        )
    pair = Pair(left, right, difference, names, together=lined(left))
    spec = lined_spec(pair) if pair.together else mapped_spec(pair)
    return Figure(
        gathered(pair),
        "compare",
        spec,
        partial(drawn, pair),
        height_px(pair),
        about=about(pair),
        within=("lines",) if pair.together else ("map",),
    )


def floats(result: xr.DataArray) -> Float[np.ndarray, "..."]:
    """Values as floats; infinite ones are missing."""
    values = np.asarray(result.values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def lined(result: xr.DataArray) -> bool:
    """Whether these are few lines over layers, rather than a map."""
    if result.ndim == 1:
        return True
    return result.dims[-1] == "layer" and result.shape[0] <= MOST_LINES


def refuse_unlike(
    left: xr.DataArray, right: xr.DataArray, names: tuple[str, str]
) -> None:
    """Say what differs first between two results that cannot be compared."""
    a, b = names
    if set(left.dims) != set(right.dims):
        raise ResultError(
            f"{a!r} is over {tuple(left.dims)} and {b!r} over {tuple(right.dims)}:"
            " compare results of the same dimensions. Select or average the others."
        )
    if left.ndim not in (1, 2):
        raise ResultError(
            f"{a!r} is over {tuple(left.dims)}; one or two dimensions can be compared."
            " Select the others: result.sel(head=3)."
        )
    if units(left) != units(right):
        raise ResultError(
            f"{a!r} is in {units(left) or 'no unit'!r} and {b!r} in"
            f" {units(right) or 'no unit'!r}: one scale would mean two things. Run both"
            " with the same metric."
        )
    for dim in map(str, left.dims):
        refuse_other_places(left, right, dim, names)


def refuse_other_places(
    left: xr.DataArray, right: xr.DataArray, dim: str, names: tuple[str, str]
) -> None:
    """Say where two results' coordinates along one dimension first differ."""
    advice = f" Select what both have: result.sel({dim}=[...])."
    if dim == "position":
        advice = (
            " Prompts of other layouts have no position in common: compare them over"
            ' layer and head, or average groups first: result.groupby("group").mean().'
        )
    along = (
        str(name)
        for name in left.coords
        if left[name].dims == (dim,)
        and name in right.coords
        and right[name].dims == (dim,)
        and name not in riding(left)
    )
    for name in sorted(along, key=lambda each: each != dim):
        pairs = zip(left[name].values, right[name].values, strict=False)
        for i, (mine, other) in enumerate(pairs):
            if mine != other:
                raise ResultError(
                    f"{dim} number {i} differs: its {name} is {str(mine)!r} in"
                    f" {names[0]!r} and {str(other)!r} in {names[1]!r}.{advice}"
                )
    if left.sizes[dim] != right.sizes[dim]:
        raise ResultError(
            f"{names[0]!r} has {left.sizes[dim]} {dim}s and {names[1]!r}"
            f" {right.sizes[dim]}.{advice}"
        )


def riding(result: xr.DataArray) -> list[str]:
    """Coordinates that are each result's own numbers ("raw", "low"), not labels."""
    return [
        str(name)
        for name, coord in result.coords.items()
        if name not in result.dims and coord.dims and coord.dtype.kind == "f"
    ]


def gathered(pair: Pair) -> xr.Dataset:
    """Both results and their difference, with the attributes on which both agree."""
    each = {"left": pair.left, "right": pair.right, "difference": pair.difference}
    bare = {name: result.drop_vars(riding(result)) for name, result in each.items()}
    return xr.Dataset(bare, attrs=common(pair))


def mapped_spec(pair: Pair) -> dict[str, object]:
    """Three maps, the first two on one scale."""
    unit = f"{units(pair.left)} · " if units(pair.left) else ""
    shared = {"scale": tinted(pair.scale), "units": f"{unit}both"}
    own = f"{unit}difference"
    first, second, third = (
        heatmap(each).spec for each in (pair.left, pair.right, pair.difference)
    )
    return {
        "kind": "map",
        "names": pair.names,
        "panels": [first | shared, second | shared, third | {"units": own}],
        "narrow": pair.narrow,
    }


def lined_spec(pair: Pair) -> dict[str, object]:
    """Both results' lines in one plot, and those of the difference in another."""
    return {
        "kind": "lines",
        "names": pair.names,
        "panels": [lines(pair.both).spec | {"pairs": True}, lines(pair.apart).spec],
    }


def height_px(pair: Pair) -> int:
    """Room for the panels at 900 pixels of width."""
    if pair.together:
        return 980
    one = 130 + max(120, min(26 * pair.left.shape[0], 320))
    return 130 + one * (2 if pair.narrow else 3)


def about(pair: Pair) -> str:
    """Both ranges, and where the two differ most."""
    values = floats(pair.difference)
    at = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
    where = ", ".join(
        axis(pair.difference, str(dim)).place(int(i))
        for dim, i in zip(pair.difference.dims, at, strict=True)
    )
    unit = f" ({units(pair.left)})" if units(pair.left) else ""
    a, b = (number(float(floats(each)[at])) for each in (pair.left, pair.right))
    if values[at] == 0:
        return f"“{pair.names[0]}” and “{pair.names[1]}”{unit} are equal in every cell."
    return (
        f"“{pair.names[0]}” and “{pair.names[1]}”{unit}, and the first less the second."
        f" They differ most at {where}: {a} and {b}, a difference of"
        f" {number(float(values[at]))}."
    )
