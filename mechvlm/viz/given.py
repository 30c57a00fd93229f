"""What came to be drawn: a labelled array of real numbers, or a message."""

from __future__ import annotations

import xarray as xr

from mechvlm.errors import ResultError
from mechvlm.viz.labels import called
from mechvlm.wanted import one

__all__ = ["numbers"]


def numbers(result: object, call: str) -> xr.DataArray:
    """A result of real numbers.

    Args:
        result: What a caller gave.
        call: The function that was called, as written: "viz.heatmap".

    Raises:
        ArgumentError: It is no DataArray.
        ResultError: It holds texts, objects or complex numbers.

    Example:
        >>> numbers(xr.DataArray([1, 2]), "viz.lines").size
        2
    """
    fix = f'{call}(result), or one part of a Dataset: {call}(dataset["effect"])'
    found = one(result, xr.DataArray, "result", fix)
    if found.dtype.kind not in "biuf":
        raise ResultError(
            f"{called(found)} holds values of type {found.dtype}; {call} draws real"
            " numbers. Usual cause: texts or None among them; result.astype(float)"
            " shows which."
        )
    return found
