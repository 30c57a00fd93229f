"""Whether a map of attention lies on an object."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechvlm.axes import labelled
from mechvlm.errors import LayoutError, ResultError
from mechvlm.items import Area
from mechvlm.layout import ImageGrid, Layout, Positions, Rule

__all__ = ["localization"]

PAPER = "arXiv:2411.17491"


def localization(
    maps: xr.DataArray,
    at: Area | Positions,
    *,
    rule: Rule = "any",
    tolerance_cells: int = 1,
) -> xr.Dataset:
    """Does each map of attention lie on an object?

    Args:
        maps: What `attention_map` returned.
        at: The object: a box or mask in pixels of the original picture, or positions.
        rule: Which cells a box or mask covers; see `Layout.region`.
        tolerance_cells: How far beside the object a peak still counts as near,
            diagonals included. The paper's 40 pixels are about one cell.

    Returns:
        Dataset over the maps' (layer, row), 0 to 1: "hit", 1 where the largest value
        lies on the object; "near", 1 where within the tolerance; "mass", the share of
        the map that lies on the object; "iou", overlap of the object's n cells with the
        map's n largest, over their union; "image_mass", the share of the row's
        attention that the whole image takes. A map without any attention is NaN, and
        one with next to none is noise: see "image_mass". By chance a hit, and the mass
        of an even map, is `attrs["chance"]`, the object's share of the image's cells;
        being near, `attrs["chance_near"]`.

    Raises:
        ResultError: `maps` are no maps of attention.
        LayoutError: No cell of the image is the object's, or the tolerance is negative.
        RegionError: The box or mask lies outside the picture.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, figure 6.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> found = mv.localization(mv.attention_map(vlm, prompt), scene.mask(0))
        >>> found["hit"].dims, 0 < found.attrs["chance"] < 1
        (('layer', 'row'), True)
    """
    if set(maps.dims) != {"layer", "row", "grid_row", "grid_col"}:
        raise ResultError(
            f"localization wants the maps of attention_map, over (layer, row, grid_row,"
            f" grid_col); this has {tuple(maps.dims)}."
        )
    if tolerance_cells < 0:
        raise LayoutError(f"tolerance_cells={tolerance_cells}: wanted 0 or more.")
    maps = maps.transpose("layer", "row", "grid_row", "grid_col")
    inside = _cells(maps, at, rule)
    near = _grown(inside, tolerance_cells)
    flat = maps.values.reshape(*maps.shape[:2], -1).astype(float)
    found = _measured(flat, inside.ravel(), near.ravel())
    units = {"hit": "1 on the object, 0 beside", "near": "1 near the object, 0 far"}
    kept = ("model", "head_reduce", "layer_convention", "prompt")
    attrs = {name: maps.attrs[name] for name in kept if name in maps.attrs} | {
        "paper": PAPER,
        "chance": float(inside.mean()),
        "chance_near": float(near.mean()),
        "n_cells": int(inside.sum()),
        "tolerance_cells": tolerance_cells,
    }
    arrays = {
        name: labelled(
            values,
            name=name,
            units=units.get(name, "fraction"),
            paper=PAPER,
            layer=maps["layer"].values.tolist(),
            row=maps["row"].values.tolist(),
        )
        for name, values in found.items()
    }
    labels = {n: c for n, c in maps.coords.items() if c.dims == ("row",) and n != "row"}
    return xr.Dataset(arrays, attrs=attrs).assign_coords(labels)


def _measured(
    flat: Float[np.ndarray, "layer row cell"],
    inside: Bool[np.ndarray, " cell"],
    near: Bool[np.ndarray, " cell"],
) -> dict[str, Float[np.ndarray, "layer row"]]:
    """Every measure of every map."""
    total, n = flat.sum(axis=2), int(inside.sum())
    some = total > 0
    peak = flat.argmax(axis=2)
    # Stable, so that of equal cells the first count, as in the arg-max.
    largest = np.argsort(-flat, axis=2, kind="stable")[:, :, :n]
    shared = inside[largest].sum(axis=2)
    measures = {
        "hit": inside[peak].astype(float),
        "near": near[peak].astype(float),
        "mass": flat[:, :, inside].sum(axis=2) / np.where(some, total, 1),
        "iou": shared / (2 * n - shared),
    }
    found = {name: np.where(some, each, np.nan) for name, each in measures.items()}
    return found | {"image_mass": total}


def _cells(
    maps: xr.DataArray, at: Area | Positions, rule: Rule
) -> Bool[np.ndarray, "row col"]:
    """The object's cells of the maps' grid."""
    position = maps["position"].values
    if not isinstance(at, Positions):
        grid = _grid(maps)
        bos = Positions.of(range(grid.start))
        image = grid.positions
        layout = Layout(len(bos) + len(image), {"bos": bos, "image": image}, (grid,))
        at = layout.region(at, rule=rule)
    inside = np.isin(position, list(at))
    if inside.sum() < len(at) or not at:
        raise LayoutError(
            f"the object is at positions {at or 'none'}, and the map shows"
            f" {position.min()}..{position.max()}: its cells must be some of the map's."
        )
    return inside


def _grid(maps: xr.DataArray) -> ImageGrid:
    """The grid that the maps show."""
    width, height = maps.attrs["picture"]
    place = json.loads(maps.attrs["grids"])[maps.attrs["image"]]
    left, top, right, bottom = place["box"]
    box = (left, top, right, bottom)
    return ImageGrid(place["start"], place["rows"], place["cols"], width, height, box)


def _grown(
    cells: Bool[np.ndarray, "row col"], rings: int
) -> Bool[np.ndarray, "row col"]:
    """Cells with so many rings around them, diagonals included."""
    rows, cols = cells.shape
    grown = np.zeros_like(cells)
    for row, col in np.argwhere(cells):
        down = slice(max(0, row - rings), min(rows, row + rings + 1))
        across = slice(max(0, col - rings), min(cols, col + rings + 1))
        grown[down, across] = True
    return grown
