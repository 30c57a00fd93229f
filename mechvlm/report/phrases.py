"""Numbers of a result in words: where it is largest, how sure it is, of how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz.labels import axis, called, number

__all__ = [
    "among", "at_place", "counted", "interval", "largest", "named", "percent",
    "smallest", "value_at",
]  # fmt: skip

NARROW = "\N{NO-BREAK SPACE}"  # a number stays with its sign
SPOKEN = ("layer", "position", "head", "row")
"""Dimensions whose coordinates are said after their name: "layer 3"."""
QUOTED = ("answer", "arm", "circuit", "set", "subset", "window")
"""Dimensions whose coordinates are names that a user chose."""


def percent(share: float) -> str:
    """A share as a percentage.

    Example:
        >>> [percent(x).replace(NARROW, " ") for x in (0.974, -0.001, float("nan"))]
        ['97 %', '0 %', 'no value']
    """
    if not np.isfinite(share):
        return "no value"
    return f"{round(100 * share)}{NARROW}%".replace("-", "\N{MINUS SIGN}")


def counted(n: int | float, word: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "swap"), counted(12, "swap")
        ('1 swap', '12 swaps')
    """
    return f"{n:.0f} {word}{'' if n == 1 else 's'}"


def interval(low: float, high: float) -> str:
    """The ends of an interval in brackets, or nothing where there is none."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return ""
    return f" ({percent(low)} to {percent(high)})"


def largest(result: xr.DataArray) -> dict[str, int]:
    """Index of the largest value, by dimension."""
    return _extreme(result, np.asarray(result.values, dtype=float))


def smallest(result: xr.DataArray) -> dict[str, int]:
    """Index of the smallest value, by dimension."""
    return _extreme(result, -np.asarray(result.values, dtype=float))


def farthest(result: xr.DataArray) -> dict[str, int]:
    """Index of the value farthest from 0, by dimension."""
    return _extreme(result, np.abs(np.asarray(result.values, dtype=float)))


def _extreme(result: xr.DataArray, sizes: np.ndarray) -> dict[str, int]:
    if not np.isfinite(sizes).any():
        raise ResultError(
            f"{called(result)} holds no finite number, so there is nothing to say of"
            " it. Usual cause: a selection that left no cell."
        )
    at = np.unravel_index(
        int(np.argmax(np.where(np.isfinite(sizes), sizes, -np.inf))), sizes.shape
    )
    return dict(zip(map(str, result.dims), map(int, at), strict=True))


def value_at(result: xr.DataArray, index: Mapping[str, int]) -> float:
    """The value at an index."""
    return float(result.isel(dict(index)).item())


def named(result: xr.DataArray, dim: str, index: int) -> str:
    """One coordinate, as a reader would say it: "layer 3", “red”, "image → last"."""
    found = axis(result, dim)
    label = found.labels[index].replace("->", "→")
    words = f"{dim} {label}" if dim in SPOKEN else label
    words = f"“{label}”" if dim in QUOTED else words
    if found.tokens and not found.quiet()[index]:
        return f"{words} “{found.tokens[index]}”"
    inside = [g for g, start, stop in found.groups if start <= index < stop]
    return f"{words} ({inside[0]})" if inside else words


def at_place(result: xr.DataArray, index: Mapping[str, int]) -> str:
    """A cell of a result in words, its dimensions in order."""
    return ", ".join(named(result, dim, i) for dim, i in index.items())


def among(words: Sequence[str]) -> str:
    """Words in a row.

    Example:
        >>> among(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def valued(value: float, units: str) -> str:
    """A number with its unit."""
    return f"{number(value)} {units}".strip()
