"""Results in the shape that a figure draws: values with the ends of their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

__all__ = ["beside", "beyond", "columns", "stacked", "titled", "with_interval"]


def with_interval(
    result: xr.Dataset, names: Sequence[str], dim: str, title: str
) -> xr.DataArray:
    """Variables of a result as lines, with "low" and "high" as coordinates.

    Args:
        result: Holds each name, and each with "_low" and "_high".
        names: The variables, one line each.
        dim: Name of the new dimension.
        title: Heading of the figure.
    """
    lines = {name: columns(result, name) for name in names}
    return stacked(lines, dim, title).assign_attrs(
        model=result.attrs["model"], paper=result.attrs["paper"]
    )


def columns(result: xr.Dataset, name: str, **at: str) -> xr.DataArray:
    """A variable, whole or at a place, with its "_low" and "_high" as coordinates."""
    here = result.sel(at)
    ends = {end: here[f"{name}_{end}"] for end in ("low", "high")}
    return here[name].assign_coords(ends)


def stacked(lines: Mapping[str, xr.DataArray], dim: str, title: str) -> xr.DataArray:
    """Lines of one axis as one array, each with "low" and "high" as coordinates."""
    first = next(iter(lines.values()))
    along = str(first.dims[0])
    low, high = (
        np.stack([line[end].values for line in lines.values()])
        for end in ("low", "high")
    )
    dims = (dim, along)
    return xr.DataArray(
        np.stack([line.values for line in lines.values()]),
        dims=dims,
        coords={
            dim: list(lines),
            along: first[along].values,
            "low": (dims, low),
            "high": (dims, high),
        },
        name=title,
        attrs={**first.attrs, "long_name": title},
    )


def beside(values: Mapping[str, xr.DataArray], dim: str, title: str) -> xr.DataArray:
    """Single numbers side by side, each with "low" and "high" as coordinates."""
    first = next(iter(values.values()))
    ends = {
        end: (dim, [float(value[end]) for value in values.values()])
        for end in ("low", "high")
    }
    return xr.DataArray(
        [float(value) for value in values.values()],
        dims=dim,
        coords={dim: list(values), **ends},
        name=title,
        attrs={**first.attrs, "long_name": title},
    )


def beyond(end: float, mark: float = 0.0) -> bool | None:
    """Whether the end of an interval lies above a mark; None where there is none."""
    return None if np.isnan(end) else end > mark


def titled(title: str, found: xr.Dataset) -> dict[str, str]:
    """Attributes that head a figure: what it shows, on which model, after whom."""
    return {
        "long_name": title,
        "model": found.attrs["model"],
        "paper": found.attrs["paper"],
    }
