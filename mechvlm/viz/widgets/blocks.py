"""Neighbouring positions, or those of one part of an image, taken as one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import xarray as xr
from jaxtyping import Float, Shaped

from mechvlm.errors import ResultError
from mechvlm.viz.labels import Grid, called, grids

__all__ = ["FEW", "PICTURE", "Block", "blocks", "pooled", "said"]

PICTURE = ("image", "object")
"""Groups of one picture: an object's positions lie among those of its image."""

FEW = 4
"""So many blocks can each say what was done with their members."""


@dataclass(frozen=True, slots=True)
class Block:
    """Positions that become one, or a single position that stays.

    Attributes:
        at: Places along the dimension, in order; neighbours or not.
        group: The group they are in.
        name: What they are together; "" where a single position keeps its token.
    """

    at: tuple[int, ...]
    group: str
    name: str = ""

    @property
    def size(self) -> int:
        """How many positions it stands for."""
        return len(self.at)

    def label(self, token: str, how: str) -> str:
        """Its name with its size and what was done, or the token of a lone position."""
        if self.size == 1:
            return self.name or token
        return f"{self.name or self.group} x{self.size} ({how})"


def blocks(
    result: xr.DataArray,
    dim: str,
    wanted: Sequence[str],
    grid: tuple[int, int] | None = None,
) -> list[Block]:
    """Blocks of positions along `dim`, in order of their first; all others alone.

    Args:
        result: A result with a coordinate `<dim>_group` or `group`.
        dim: The dimension that is cut into blocks.
        wanted: Groups whose runs become blocks. One picture's image and object
            positions are two blocks, however they lie among one another.
        grid: Rows and columns of blocks to cut each image into.

    Raises:
        ResultError: The grid is missing, does not tile an image, or meets one in part.
    """
    coordinate = f"{dim}_group" if f"{dim}_group" in result.coords else "group"
    groups = [str(group) for group in result[coordinate].values]
    cells: dict[int, str] = {}
    if grid is not None:
        if "image" not in wanted:
            raise ResultError(
                f"grid={grid} cuts up the image, which is not among the groups to"
                f" collapse ({', '.join(wanted) or 'none'}): name it, or drop the grid"
            )
        cells = cells_of(result, dim, groups, grid)
    found: dict[Hashable, list[int]] = {}
    runs = groupby(
        range(len(groups)),
        key=lambda i: PICTURE if groups[i] in PICTURE else groups[i],
    )
    for run, (_, members) in enumerate(runs):
        for i in members:
            key = (run, groups[i], cells.get(i, "")) if groups[i] in wanted else i
            found.setdefault(key, []).append(i)
    return [
        Block(tuple(at), groups[at[0]], cells.get(at[0], "")) for at in found.values()
    ]


def cells_of(
    result: xr.DataArray, dim: str, groups: Sequence[str], grid: tuple[int, int]
) -> dict[int, str]:
    """Name of the block of its image that each image position along `dim` is in."""
    images = grids(result)
    if not images:
        raise ResultError(
            f"grid={grid} wants to know how the image's positions lie: {called(result)}"
            ' has no attrs["grids"]. Keep the attributes that the analysis wrote'
            " (xr.set_options(keep_attrs=True)), or leave out grid."
        )
    at = result[dim].values if dim in result.coords else range(result.sizes[dim])
    places = {int(position): i for i, position in enumerate(at)}
    named: dict[int, str] = {}
    for number, image in enumerate(images):
        prefix = "image" if len(images) == 1 else f"image {number}"
        tile = tiles(image, grid)
        last = image.start + image.rows * image.cols
        there = [p for p in range(image.start, last) if p in places]
        if there and len(there) < image.rows * image.cols:
            raise ResultError(
                f"{called(result)} holds {len(there)} of the"
                f" {image.rows * image.cols} positions of image {number} along {dim}:"
                " blocks want all of them. Select whole images, or leave out grid."
            )
        for position in there:
            row, col = divmod(position - image.start, image.cols)
            block = f"{prefix} r{row // tile[0]} c{col // tile[1]}"
            if groups[places[position]] == "image":
                named[places[position]] = block
    lost = groups.count("image") - len(named)
    if lost or (dim == "source" and not named):
        raise ResultError(
            f"{lost or 'all'} image positions along {dim} are in no grid of"
            ' attrs["grids"], or there is no image: grid has nothing to cut up. Leave'
            " it out, or keep the positions' own numbers as coordinate."
        )
    return named


def tiles(image: Grid, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of positions in each block of an image."""
    for n, parts in zip((image.rows, image.cols), grid, strict=True):
        if not 1 <= parts <= n or n % parts:
            raise ResultError(
                f"grid={grid} does not tile an image of {image.rows} x {image.cols}"
                f" positions. Rows: {divisors(image.rows)}; columns:"
                f" {divisors(image.cols)}."
            )
    return image.rows // grid[0], image.cols // grid[1]


def divisors(n: int) -> str:
    """Numbers of equal parts that n positions can be cut into, as words."""
    *first, last = [str(k) for k in range(1, n + 1) if n % k == 0]
    return f"{', '.join(first)} or {last}" if first else last


def said(made: Iterable[Block], how: str) -> str:
    """A sentence on how many positions pooled tokens stand for; "" where none is.

    Args:
        made: All blocks of a dimension.
        how: What was done with a block's members.
    """
    sizes: dict[str, list[int]] = {}
    for block in made:
        if block.size > 1:
            sizes.setdefault(block.group, []).append(block.size)
    if not sizes:
        return ""
    words = []
    for group, each in sizes.items():
        per = str(each[0]) if len(set(each)) == 1 else f"{min(each)} to {max(each)}"
        words.append(
            f"{sum(each)} {group} positions as {len(each)}"
            f" {'block' if len(each) == 1 else f'blocks of {per}'}"
        )
    return f"{'; '.join(words)}; {how}"


def pooled(
    values: Shaped[np.ndarray, "..."], axis: int, made: Sequence[Block], how: str
) -> Float[np.ndarray, "..."]:
    """Values with each block along an axis as one: its "sum" or its "mean".

    One plane at a time is reordered and widened, so that the attention of thousands of
    positions needs little memory beside itself.
    """
    order = np.concatenate([block.at for block in made])
    sizes = np.array([block.size for block in made])
    starts = np.cumsum(sizes) - sizes
    moved = np.moveaxis(values, axis, -1)
    out = np.empty((*moved.shape[:-1], len(made)))
    for i in np.ndindex(moved.shape[:-2]):
        plane = moved[i][..., order]
        out[i] = np.add.reduceat(plane, starts, axis=-1, dtype=float)
    if how == "mean":
        out /= sizes
    return np.moveaxis(out, -1, axis)
