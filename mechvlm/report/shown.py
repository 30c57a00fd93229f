"""What of a result is drawn, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import xarray as xr
from PIL import Image

from mechvlm.errors import ResultError
from mechvlm.graph.circuit import Circuit
from mechvlm.viz.figure import Figure
from mechvlm.viz.labels import grids
from mechvlm.viz.plots.overlay import overlay

__all__ = ["Picture", "Result", "Rule", "Shown", "banded", "on_picture", "stacked"]

Result: TypeAlias = xr.DataArray | xr.Dataset | Circuit
"""What an analysis returns and a page can show."""

Picture: TypeAlias = Image.Image | None


@dataclass(frozen=True)
class Shown:
    """One figure of a result, and what it says.

    Attributes:
        figure: The drawing.
        sentence: What it shows, from its numbers; plain text.
        title: Heading, where a result has several figures.
        citation: The paper behind the method, in full; "" where the result names none.
    """

    figure: Figure
    sentence: str
    title: str = ""
    citation: str = ""


@dataclass(frozen=True)
class Rule:
    """How the results of one analysis are known, and how they are shown.

    Attributes:
        analysis: Public name of the analysis, or of several alike.
        show: Draws a result.
        name: Name that the array bears; "" for a dataset.
        variables: Variables that the dataset has.
        dims: Dimensions that the array has, or that the dataset's first such variable
            has.
        attrs: Attributes that it carries; None stands for any value.
        heading: What a page calls it; "" takes the name of the analysis.
    """

    analysis: str
    show: (
        Callable[[xr.DataArray, Picture], list[Shown]]
        | Callable[[xr.Dataset, Picture], list[Shown]]
    )
    name: str = ""
    variables: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    attrs: Mapping[str, object] = field(default_factory=dict)
    heading: str = ""

    def knows(self, result: xr.DataArray | xr.Dataset) -> bool:
        """Whether the result is one of this analysis."""
        if isinstance(result, xr.Dataset):
            if not self.variables or not set(self.variables) <= set(result.data_vars):
                return False
            dims = result[self.variables[0]].dims
        else:
            if not self.name or result.name != self.name:
                return False
            dims = result.dims
        return set(self.dims) <= set(dims) and all(
            key in result.attrs and value in (None, result.attrs[key])
            for key, value in self.attrs.items()
        )


def on_picture(result: xr.DataArray, image: Picture) -> list[Figure]:
    """The result over its picture, where there is one and the result has its cells."""
    places = grids(result)
    if image is None or not places:
        return []
    right, below = (max(place.box[i] for place in places) for i in (2, 3))
    if right > image.width + 1 or below > image.height + 1:
        raise ResultError(
            f"the picture has {image.width} x {image.height} pixels, and the result's"
            f" cells reach to {right:.0f} x {below:.0f}. It is not the picture that was"
            " asked about, or not in its original size: give image=prompt.image."
        )
    return [overlay(result, image)]


def banded(found: xr.Dataset, name: str, heading: str = "") -> xr.DataArray:
    """One variable of a dataset with its interval, as figures draw it.

    Args:
        found: A dataset with the variables `name` and perhaps `name`_low and _high.
        name: The variable.
        heading: Title of its figure; "" keeps its name.
    """
    result = found[name].drop_vars(["low", "high"], errors="ignore")
    ends = {end: f"{name}_{end}" for end in ("low", "high")}
    if all(bound in found for bound in ends.values()):
        bounds = {end: found[bound] for end, bound in ends.items()}
        if np.isfinite(bounds["low"]).any():
            result = result.assign_coords(
                {end: (bound.dims, bound.values) for end, bound in bounds.items()}
            )
    about = {key: found.attrs[key] for key in ("model", "prompt") if key in found.attrs}
    attrs = {**about, "paper": found.attrs.get("paper", ""), **result.attrs}
    return result.assign_attrs(attrs | ({"long_name": heading} if heading else {}))


def stacked(
    found: xr.Dataset, names: Mapping[str, str], heading: str, key: str = "measure"
) -> xr.DataArray:
    """Variables of a dataset as lines of one figure.

    Args:
        found: A dataset.
        names: Variable -> what its line is called.
        heading: Title of the figure.
        key: What tells the lines apart, as the figure's key says it.

    Returns:
        Dimension `key`, then those of the variables, with intervals where they have.
    """
    each = [banded(found, name) for name in names]
    whole = all("low" in one.coords for one in each)
    bare = [one.drop_vars(["low", "high"], errors="ignore") for one in each]
    result = xr.concat(bare, key, coords="minimal", compat="override", join="exact")
    result = result.assign_coords({key: list(names.values())})
    if whole:
        for end in ("low", "high"):
            bounds = np.stack([one[end].values for one in each])
            result = result.assign_coords({end: (result.dims, bounds)})
    result.name = heading
    return result.assign_attrs(each[0].attrs | {"long_name": heading})
