"""A result over positions, laid back over the picture that the positions show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from PIL import Image

from mechvlm.errors import ResultError
from mechvlm.viz import stills
from mechvlm.viz.figure import Figure
from mechvlm.viz.given import numbers
from mechvlm.viz.labels import Grid, axis, called, describe, grids, units
from mechvlm.viz.palette import Scale, scale_of
from mechvlm.viz.payload import packed, picture_uri, tinted
from mechvlm.wanted import one

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["Outline", "Segment", "cells", "overlay", "segments"]

Outline: TypeAlias = Sequence[int | float] | Bool[np.ndarray, "height width"]
Segment: TypeAlias = tuple[float, float, float, float]

MOST_PANELS = 40
VEIL = 0.5  # share of paper over the grey picture


def overlay(
    result: xr.DataArray,
    image: Image.Image,
    *,
    outline: Outline | Sequence[Outline] | None = None,
    grid: int = 0,
) -> Figure:
    """Lay a map over its picture, layer by layer.

    Cells are coloured by value, more opaque the further from 0, over a grey picture.

    Args:
        result: ("layer", "position"), or ("position",), with `attrs["grids"]`.
        image: The picture that the prompt was asked about, in its original size.
        outline: The object: x0, y0, x1, y1 in pixels of the picture, or a bool mask
            [height width] of its size; or several of these, one for each object.
        grid: Which of the grids, where several views of the image were read: LLaVA-NeXT
            reads the whole picture (0), then each of its tiles.

    Returns:
        A figure; the live view has one picture per layer, a slider over the layers, and
        reads out its cells.

    Raises:
        ArgumentError: `result` is no DataArray, or `image` no picture of Pillow's.
        ResultError: Other dimensions, no such grid, a picture or mask of another size,
            or an outline of which the picture shows nothing.

    Example:
        >>> import json
        >>> over = xr.DataArray([[0.0, 1.0]], dims=("layer", "position"))
        >>> grid = {"start": 0, "rows": 1, "cols": 2, "box": [0, 0, 8, 4]}
        >>> over.attrs["grids"] = json.dumps([grid])
        >>> overlay(over, Image.new("RGB", (8, 4)), outline=(4, 0, 8, 4)).kind
        'overlay'
    """
    numbers(result, "viz.overlay")
    one(image, Image.Image, "image", "viz.overlay(result, PIL.Image.open(path))")
    planes = cells(result, grid)
    if len(grids(result)) > 1:
        planes = planes.assign_coords(grid=grid)
    place = grids(result)[grid]
    place.check(image.size)
    lines = segments(outline, image) if outline is not None else []
    spec: dict[str, object] = {
        "layers": names_of(planes),
        "grid": [place.start, place.rows, place.cols, *place.box],
        "size": image.size,
        "picture": picture_uri(image),
        "outline": [[round(v, 2) for v in line] for line in lines],
        "values": packed(planes.values),
        "scale": tinted(scale_of(planes)),
        "units": units(result),
        "veil": VEIL,
        "grids": len(grids(result)),
    }
    still = partial(drawn, planes, image, place, lines)
    about = "" if layered(planes) else describe(planes.isel(layer=0, drop=True))
    return Figure(planes, "overlay", spec, still, 720, about=about)


def layered(planes: xr.DataArray) -> bool:
    """Whether it is known of which layers these planes are."""
    return "layer" in planes.coords or planes.sizes["layer"] > 1


def names_of(planes: xr.DataArray) -> list[str]:
    """Names of the layers; of a map that is of no layer, an empty one."""
    return list(axis(planes, "layer").labels) if layered(planes) else [""]


def cells(result: xr.DataArray, grid: int = 0) -> xr.DataArray:
    """The image positions of a result, as rows and columns of cells.

    Args:
        result: ("layer", "position") or ("position",), with `attrs["grids"]`.
        grid: Which of the grids.

    Returns:
        ("layer", "row", "col") in the result's unit.

    Raises:
        ResultError: Other dimensions, or no such grid.
    """
    if set(result.dims) not in ({"layer", "position"}, {"position"}):
        raise ResultError(
            f"an overlay wants (layer, position); {called(result)} has"
            f" {tuple(result.dims)}. Select the others first: result.sel(head=3)."
        )
    found = grids(result)
    if not 0 <= grid < len(found):
        raise ResultError(
            f"the result has {len(found)} image grids in attrs['grids'], none is number"
            f" {grid}. {choice(found)}"
        )
    planes = result if "layer" in result.dims else result.expand_dims("layer")
    planes = planes.transpose("layer", "position")
    at = whereabouts(planes, found[grid])
    shape = (planes.sizes["layer"], found[grid].rows, found[grid].cols)
    named = {n: found for n, found in planes.coords.items() if not found.dims}
    if "layer" in planes.coords:
        named["layer"] = planes["layer"]
    return xr.DataArray(
        np.asarray(planes.values, dtype=float)[:, at].reshape(shape),
        dims=("layer", "row", "col"),
        coords=named,
        name=result.name,
        attrs=result.attrs,
    )


def choice(found: tuple[Grid, ...]) -> str:
    """What grids there are to choose from, or why there may be none."""
    if not found:
        return (
            "Usual cause: a prompt without an image, or attrs lost in arithmetic (use"
            " xr.set_options(keep_attrs=True))."
        )
    each = (
        f"grid={i} ({g.rows} x {g.cols} cells over x {g.box[0]:g} to {g.box[2]:g},"
        f" y {g.box[1]:g} to {g.box[3]:g})"
        for i, g in enumerate(found)
    )
    return f"There are {', '.join(each)}."


def whereabouts(planes: xr.DataArray, place: Grid) -> list[int]:
    """Index of each of the grid's positions in the result."""
    n = planes.sizes["position"]
    known = planes["position"].values if "position" in planes.coords else range(n)
    index = {int(position): i for i, position in enumerate(known)}
    wanted = range(place.start, place.start + place.rows * place.cols)
    missing = [position for position in wanted if position not in index]
    if missing:
        raise ResultError(
            f"the result lacks {len(missing)} of the image's {len(wanted)} positions,"
            f" the first is {missing[0]}. Run the analysis over all image positions."
        )
    return [index[position] for position in wanted]


def segments(outline: Outline | Sequence[Outline], image: Image.Image) -> list[Segment]:
    """Straight strokes of outlines, as x0, y0, x1, y1 in pixels of the picture.

    Args:
        outline: A box x0, y0, x1, y1, or a bool mask [height width], or several.
        image: The picture; a mask must have its size.

    Returns:
        The border of each box and mask, collinear neighbours joined.

    Raises:
        ResultError: A mask has another size, a box not four numbers, or it bounds
            nothing of the picture.
    """
    lone = isinstance(outline, np.ndarray) or not any(map(np.ndim, outline))
    several = cast("Sequence[Outline]", [outline] if lone else outline)
    return [line for each in several for line in around(each, image)]


def around(outline: Outline, image: Image.Image) -> list[Segment]:
    """Strokes of one outline."""
    given = np.asarray(outline)
    if given.shape == (image.height, image.width):
        if not given.any():
            raise ResultError(
                "the outline is a mask without a pixel: there is nothing to draw. Usual"
                " cause: the mask of an object that is not in this picture."
            )
        return bordered(given.astype(bool))
    if given.shape != (4,):
        raise ResultError(
            f"an outline of shape {given.shape} is neither a box (x0, y0, x1, y1) nor a"
            f" mask of the picture's {image.height} x {image.width} pixels, nor a list"
            " of such."
        )
    x0, y0, x1, y1 = (float(v) for v in given)
    if not (max(x0, 0) < min(x1, image.width) and max(y0, 0) < min(y1, image.height)):
        raise ResultError(
            f"the outline {x0:g}, {y0:g}, {x1:g}, {y1:g} bounds nothing of a picture of"
            f" {image.width} x {image.height}. Wanted x0, y0, x1, y1 in its pixels, x1"
            " and y1 the right and lower ends, not a width and a height."
        )
    return [(x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)]


def bordered(mask: Bool[np.ndarray, "height width"]) -> list[Segment]:
    """Strokes between the pixels inside a mask and those outside."""
    padded = np.pad(mask, 1)
    across = strokes(padded[1:] != padded[:-1])
    down = strokes((padded[:, 1:] != padded[:, :-1]).T)
    flat = [(a - 1.0, at + 0.0, b - 1.0, at + 0.0) for at, a, b in across]
    return flat + [(at + 0.0, a - 1.0, at + 0.0, b - 1.0) for at, a, b in down]


def strokes(changes: Bool[np.ndarray, "line along"]) -> list[tuple[int, int, int]]:
    """Runs of True in each line, as (line, start, stop)."""
    padded = np.pad(changes, ((0, 0), (1, 1))).astype(np.int8)
    turns = np.diff(padded, axis=1)
    starts, stops = np.argwhere(turns == 1), np.argwhere(turns == -1)
    return [
        (int(line), int(start), int(stop))
        for (line, start), (_, stop) in zip(starts, stops, strict=True)
    ]


def drawn(
    planes: xr.DataArray, image: Image.Image, place: Grid, lines: list[Segment]
) -> Drawing:
    """The still picture: the image, then one panel for each layer."""
    n = planes.sizes["layer"]
    shown = np.unique(np.linspace(0, n - 1, min(n, MOST_PANELS)).round().astype(int))
    cols = min(len(shown) + 1, 6 if len(shown) < 18 else 8)
    rows = math.ceil((len(shown) + 1) / cols)
    wide = max(8.2, 1.3 * cols) / cols if cols > 4 else 2.0
    high = wide * image.height / image.width + 0.26
    left, above, below = 0.25, 0.64, 0.12
    width = max(left + cols * wide + 0.95, 6.0)
    drawing = stills.blank(width, above + rows * high + below)
    scale, small = scale_of(planes), image.convert("RGB")
    most = math.ceil(wide * stills.DPI)
    small.thumbnail((most, most), reducing_gap=4.0)
    total = above + rows * high + below
    for panel in range(len(shown) + 1):
        row, col = divmod(panel, cols)
        x, y = left + col * wide, total - above - (row + 1) * high
        box = (x / width, y / total, (wide - 0.12) / width, (high - 0.26) / total)
        axes = drawing.add_axes(box)
        values = planes.values[shown[panel - 1]] if panel else None
        picture(axes, small, lines, size=image.size, muted=panel > 0)
        if values is not None:
            painted(axes, values, place, scale)
        name = names_of(planes)[shown[panel - 1]]
        said = f"layer {name}" if name else "map"
        axes.set_title(said if panel else "image", fontsize=8, loc="left", pad=3)
    stills.headed(drawing, planes, left)
    tall = min(rows * high - 0.26, 2.2)
    corner = (left + cols * wide + 0.1, total - above - 0.26 - tall)
    stills.bar(drawing, scale, planes, (*corner, 0.1, tall))
    return drawing


def pale(image: Image.Image) -> Image.Image:
    """The picture, grey and near the paper: colours over it keep their meaning."""
    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, Image.new("RGB", grey.size, stills.theme().paper), VEIL)


def picture(
    axes: Axes,
    image: Image.Image,
    lines: list[Segment],
    *,
    size: tuple[int, int],
    muted: bool,
) -> None:
    """Show the picture, of that size in pixels, with the object's outline."""
    from matplotlib.collections import LineCollection

    (width, height), small = size, image.convert("RGB")
    small.thumbnail((math.ceil(axes.bbox.width), math.ceil(axes.bbox.height)))
    shown = pale(small) if muted else small
    axes.imshow(np.asarray(shown), extent=(0, width, height, 0), zorder=0)
    strokes = [[(x0, y0), (x1, y1)] for x0, y0, x1, y1 in lines]
    ground, ink = stills.theme().paper, stills.theme().ink
    axes.add_collection(LineCollection(strokes, colors=ground, lw=2.2, zorder=4))
    axes.add_collection(LineCollection(strokes, colors=ink, lw=1.0, zorder=5))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(stills.theme().rule)


def painted(
    axes: Axes, values: Float[np.ndarray, "row col"], place: Grid, scale: Scale
) -> None:
    """Colour the cells over the picture; a dashed line bounds a view of a part."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    most = max(-scale.low, scale.high)
    rgba = stills.colours(scale)(Normalize(scale.low, scale.high)(values))
    share = np.clip(np.abs(np.nan_to_num(values)) / most, 0, 1) ** 0.7
    rgba[..., 3] = np.where(np.isfinite(values), 0.9 * share, 0.0)
    x0, y0, x1, y1 = place.box
    if place.box != (0, 0, axes.get_xlim()[1], axes.get_ylim()[0]):
        seen = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=0.7, ls=(0, (4, 3)))
        seen.set_edgecolor(stills.theme().faint)
        axes.add_patch(seen)
    axes.imshow(rgba, extent=(x0, x1, y1, y0), interpolation="nearest", zorder=2)
