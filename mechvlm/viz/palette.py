"""Colours that mean the same in every figure: blue is above zero, orange below.

Both arms start at the same pale ground (a dark one on dark paper) and move away from it
in equal steps of OKLab lightness, so equal differences look equal, in grey print and to
colour-blind eyes alike. The colours of series differ in lightness where their hues are
one to those eyes, and stand out enough from the paper to write in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError

__all__ = ["DARK", "LIGHT", "Scale", "Theme", "scale_of"]


@dataclass(frozen=True, slots=True)
class Theme:
    """Every colour of the figures, on light or on dark paper.

    Attributes:
        name: "light" or "dark".
        ink: Words that matter.
        faint: Words that explain.
        rule: Hair lines.
        paper: Ground of a page.
        card: Ground of what stands out from the page.
        accent: Links and what has the focus.
        missing: Cells without a value.
        above: Colours of 0 and upwards, in equal steps.
        below: Colours of 0 and downwards, in equal steps.
        series: Colours that tell lines, bars and groups apart.
    """

    name: str
    ink: str
    faint: str
    rule: str
    paper: str
    card: str
    accent: str
    missing: str
    above: tuple[str, ...]
    below: tuple[str, ...]
    series: tuple[str, ...]


LIGHT = Theme(
    "light", "#20242b", "#646b76", "#d9dce1", "#ffffff", "#f7f7f5", "#2b5b9d",
    "#d9d9d9",
    above=(
        "#f6f5f1", "#c2e2dd", "#8eccce", "#66b2c3", "#4396bc",
        "#2c79af", "#2b5b9d", "#244181", "#1b2a60",
    ),
    below=(
        "#f6f5f1", "#fbd4a2", "#f4b16f", "#e88f4f", "#d67033",
        "#bc5526", "#a03d1e", "#812a17", "#611a12",
    ),
    series=("#2468ae", "#c4490c", "#0f7f77", "#7a2178", "#694906", "#222c3a"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e7e9ec", "#a0a7b2", "#3a3f48", "#15171b", "#1e2126", "#7db3e6",
    "#4a4e57",
    above=(
        "#24272c", "#233c60", "#1b538c", "#066eab", "#068bc2",
        "#2fa7d3", "#5ac2e1", "#88dced", "#b9f5f8",
    ),
    below=(
        "#24272c", "#5b2d22", "#813923", "#a44a23", "#c2622a",
        "#da7f39", "#ed9f55", "#fbc07b", "#fee4b9",
    ),
    series=("#63a4f4", "#ee7f45", "#8eeadb", "#b97fc6", "#f3dd8c", "#b4b8bf"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scale:
    """What number gets which colour.

    Attributes:
        low: Value of the first stop.
        high: Value of the last stop.
    """

    low: float
    high: float

    def stops(self, theme: Theme = LIGHT) -> tuple[str, ...]:
        """Colours at equal steps from `low` to `high`, as "#rrggbb"."""
        if self.low < 0 < self.high:
            return theme.below[:0:-1] + theme.above
        return theme.below[::-1] if self.low < 0 else theme.above


def scale_of(result: xr.DataArray) -> Scale:
    """Colour scale of a result: one arm for one sign, both arms centred on 0 for two.

    Args:
        result: Values to colour; NaN is left out.

    Returns:
        A scale that always contains 0, at the stop of the ground's colour.

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
            " cause: a selection that left no cell."
        )
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if low < 0 < high:
        most = max(-low, high)
        return Scale(-most, most)
    if low < 0:
        return Scale(low, 0.0)
    return Scale(0.0, high or 1.0)
