"""Colours that mean the same in every figure: blue is above zero, orange below.

Both arms start at the same paper white and lose OKLab lightness in equal steps, so
equal differences look equal, in grey print and to colour-blind eyes alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError

__all__ = ["ABOVE", "BELOW", "LINES", "Scale", "scale_of"]

ABOVE = (
    "#f6f5f1", "#c2e2dd", "#8eccce", "#66b2c3", "#4396bc",
    "#2c79af", "#2b5b9d", "#244181", "#1b2a60",
)  # fmt: skip
BELOW = (
    "#f6f5f1", "#fbd4a2", "#f4b16f", "#e88f4f", "#d67033",
    "#bc5526", "#a03d1e", "#812a17", "#611a12",
)  # fmt: skip
LINES = ("#2c79af", "#cf5f2a", "#23947f", "#9a62a8", "#ad8417", "#7b7f87")


@dataclass(frozen=True, slots=True)
class Scale:
    """What number gets which colour.

    Attributes:
        low: Value of the first stop.
        high: Value of the last stop.
        stops: Colours at equal steps from `low` to `high`, as "#rrggbb".
    """

    low: float
    high: float
    stops: tuple[str, ...]


def scale_of(result: xr.DataArray) -> Scale:
    """Colour scale of a result: one arm for one sign, both arms centred on 0 for two.

    Args:
        result: Values to colour; NaN is left out.

    Returns:
        A scale that always contains 0, at the paper-white stop.

    Raises:
        ResultError: No value is finite.

    Example:
        >>> scale_of(xr.DataArray([-1.0, 4.0])).low
        -4.0
    """
    values = np.asarray(result.values, dtype=float)
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ResultError(
            "the result holds no finite number, so there is nothing to draw. Usual"
            "  cause: a selection that left no cell."
        )
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if low < 0 < high:
        most = max(-low, high)
        return Scale(-most, most, BELOW[:0:-1] + ABOVE)
    if low < 0:
        return Scale(low, 0.0, BELOW[::-1])
    return Scale(0.0, high or 1.0, ABOVE)
