"""Which position of a prompt is what, and which cell of the image grid is which pixel.

Positions are always found in token ids and the processor's output; nothing here knows
a model or a constant such as "the image starts at 5".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, SupportsInt

import numpy as np
from jaxtyping import Bool, Float

from mechvlm.errors import LayoutError, RegionError

__all__ = ["GROUPS", "Box", "ImageGrid", "Layout", "Positions", "Rule"]

GROUPS = ("bos", "system", "image", "query", "template", "generated", "pad")
"""The groups that part a sequence; every position is in exactly one."""

DERIVED = ("last", "text", "prompt_text")

Box = tuple[int | float, int | float, int | float, int | float]
"""Left, top, right, bottom in pixels of the original image; half-open."""

Rule = Literal["any", "center"] | int | float


@dataclass(frozen=True, slots=True)
class Positions:
    """An immutable, sorted set of positions in one sequence.

    Example:
        >>> image = Positions.of(range(5, 581))
        >>> image, len(image), 580 in image
        (Positions(5..580), 576, True)
        >>> image - Positions.of(range(6, 580)) | Positions.of(0)
        Positions(0, 5, 580)
    """

    indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is not sorted, unique and non-negative."""
        if any(b <= a for a, b in pairwise(self.indices)):
            raise LayoutError(
                f"positions {self.indices[:8]} are not sorted and unique. Build them"
                " with Positions.of(...), which sorts and merges."
            )
        if self.indices and self.indices[0] < 0:
            raise LayoutError(
                f"position {self.indices[0]} is negative. Positions count from the"
                " start of the sequence; the last one is `layout.last`."
            )

    @classmethod
    def of(cls, *parts: int | Iterable[SupportsInt]) -> Positions:
        """Positions from ints, ranges or any iterables of ints, merged and sorted.

        Raises:
            LayoutError: A position is negative, or no whole number.
        """
        found: set[int] = set()
        for part in parts:
            found.update(map(_whole, (part,) if isinstance(part, int) else part))
        return cls(tuple(sorted(found)))

    def __iter__(self) -> Iterator[int]:
        """Positions in rising order."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.indices)

    def __contains__(self, position: object) -> bool:
        """Whether this position is one of them."""
        return position in self.indices

    def __or__(self, other: Positions) -> Positions:
        """Positions in either."""
        return Positions.of(self, other)

    def __and__(self, other: Positions) -> Positions:
        """Positions in both."""
        return Positions.of(set(self.indices) & set(other.indices))

    def __sub__(self, other: Positions) -> Positions:
        """Positions here that are not there."""
        return Positions.of(set(self.indices) - set(other.indices))

    def __str__(self) -> str:
        """Runs of neighbours, shortened: `0, 5..580`."""
        runs: list[list[int]] = []
        for index in self.indices:
            if runs and index == runs[-1][-1] + 1:
                runs[-1] = [runs[-1][0], index]
            else:
                runs.append([index])
        return ", ".join("..".join(map(str, run)) for run in runs)

    def __repr__(self) -> str:
        """As `str`, with the type's name."""
        return f"Positions({self})"


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """One image's block of positions and the pixels that each of them sees.

    Attributes:
        start: Position of the top-left cell; cells follow row by row.
        rows: Cells from top to bottom.
        cols: Cells from left to right.
        width: Width of the original image, pixels.
        height: Height of the original image, pixels.
        box: The rectangle of the original image that the grid covers, pixels. Narrower
            than the image where the processor crops, wider where it pads.
    """

    start: int
    rows: int
    cols: int
    width: int
    height: int
    box: Box

    @property
    def positions(self) -> Positions:
        """All positions of this image."""
        return Positions.of(range(self.start, self.start + self.rows * self.cols))

    def cell_box(self, row: int, col: int) -> Box:
        """Rectangle of the original image that a cell sees, pixels."""
        self._check(row, col)
        left, top, right, bottom = self.box
        x, y = (right - left) / self.cols, (bottom - top) / self.rows
        return left + col * x, top + row * y, left + (col + 1) * x, top + (row + 1) * y

    def position(self, row: int, col: int) -> int:
        """Position of a cell in the sequence."""
        self._check(row, col)
        return self.start + row * self.cols + col

    def coverage(
        self, area: Box | Bool[np.ndarray, "height width"]
    ) -> Float[np.ndarray, "row col"]:
        """Share of each cell, 0 to 1, that a box or a mask covers.

        Args:
            area: Box in pixels of the original image, or its mask of that size.

        Raises:
            RegionError: The box is empty or not inside the picture, or the mask is
                empty or has another size than the picture.
        """
        left, top, right, bottom = self.box
        xs = np.linspace(left, right, self.cols + 1)
        ys = np.linspace(top, bottom, self.rows + 1)
        if isinstance(area, tuple):
            x0, y0, x1, y1 = self._checked_box(area)
            down, across = _overlap(ys, [y0, y1]), _overlap(xs, [x0, x1])
            return np.asarray(down @ across.T)
        mask = self._checked_mask(area)
        down = _overlap(ys, np.arange(self.height + 1.0))
        across = _overlap(xs, np.arange(self.width + 1.0))
        return np.asarray(down @ mask.astype(float) @ across.T)

    def holds_center(
        self, area: Box | Bool[np.ndarray, "height width"]
    ) -> Bool[np.ndarray, "row col"]:
        """Whether each cell's centre lies in a box or a mask."""
        left, top, right, bottom = self.box
        x = left + (np.arange(self.cols) + 0.5) * (right - left) / self.cols
        y = top + (np.arange(self.rows) + 0.5) * (bottom - top) / self.rows
        if isinstance(area, tuple):
            x0, y0, x1, y1 = self._checked_box(area)
            return np.outer((y >= y0) & (y < y1), (x >= x0) & (x < x1))
        mask = self._checked_mask(area)
        inside = np.outer((y >= 0) & (y < self.height), (x >= 0) & (x < self.width))
        rows = np.clip(np.floor(y), 0, self.height - 1).astype(int)
        cols = np.clip(np.floor(x), 0, self.width - 1).astype(int)
        return np.asarray(mask[np.ix_(rows, cols)] & inside)

    def _check(self, row: int, col: int) -> None:
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise LayoutError(
                f"cell ({row}, {col}) is outside the grid of {self.rows} rows and"
                f" {self.cols} columns; both count from 0."
            )

    def _checked_box(self, box: Box) -> Box:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise RegionError(
                f"box {box} is not inside the picture of {self.width} x {self.height}"
                " pixels. Wanted (left, top, right, bottom) with left < right and"
                " top < bottom in pixels of the original image; COCO boxes are"
                " (left, top, width, height) and must be converted."
            )
        return box

    def _checked_mask(self, mask: Bool[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != (self.height, self.width):
            raise RegionError(
                f"mask of shape {mask.shape} does not fit the picture: wanted"
                f" ({self.height}, {self.width}), height first, before any resizing."
            )
        if not mask.any():
            raise RegionError("the mask is empty: no pixel is set.")
        return mask


@dataclass(frozen=True, slots=True)
class Layout:
    """Which position of one sequence is what.

    Attributes:
        n: Number of positions.
        groups: The partition: group name -> positions (see `GROUPS`).
        grids: One per image, in the order of the sequence.

    Example:
        >>> layout = Layout(3, {"bos": Positions.of(0), "query": Positions.of(1, 2)})
        >>> layout["query"], layout["text"], layout.last
        (Positions(1..2), Positions(0..2), 2)
    """

    n: int
    groups: Mapping[str, Positions]
    grids: tuple[ImageGrid, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse groups that are not a partition of 0..n-1."""
        unknown = sorted(set(self.groups) - set(GROUPS))
        if unknown:
            raise LayoutError(f"unknown groups {unknown}; known are {list(GROUPS)}.")
        seen = sorted(i for group in self.groups.values() for i in group)
        if seen != list(range(self.n)):
            raise LayoutError(
                f"the groups hold {len(seen)} positions and are no partition of"
                f" 0..{self.n - 1}: every position must be in exactly one group."
            )
        image = Positions.of(*(grid.positions for grid in self.grids))
        if image != self.groups.get("image", Positions()):
            raise LayoutError(
                f"the image grids hold positions {image}, the group 'image' holds"
                f" {self.groups.get('image', Positions())}."
            )
        held = {name: group for name, group in self.groups.items() if group}
        object.__setattr__(self, "groups", held)

    def __hash__(self) -> int:
        """Hash of the partition and the grids."""
        return hash((self.n, tuple(sorted(self.groups.items())), self.grids))

    @property
    def last(self) -> int:
        """The last position: where the next token is predicted."""
        return self.n - 1

    def __getitem__(self, group: str) -> Positions:
        """Positions of a group, or of a derived one: last, text, prompt_text.

        Raises:
            LayoutError: No group has this name.
        """
        if group in GROUPS:
            return self.groups.get(group, Positions())
        if group == "last":
            return Positions.of(self.last)
        if group == "text":
            return Positions.of(range(self.n)) - self["image"]
        if group == "prompt_text":
            return self["text"] - self["generated"] - self["pad"]
        known = ", ".join((*GROUPS, *DERIVED))
        raise LayoutError(f"no group is called {group!r}; known are {known}.")

    def group_of(self, position: int) -> str:
        """Name of the group that a position is in."""
        for name, positions in self.groups.items():
            if position in positions:
                return name
        raise LayoutError(f"position {position} is outside 0..{self.n - 1}.")

    def cell(self, row: int, col: int, image: int = 0) -> int:
        """Position of a cell of an image's grid."""
        return self._grid(image).position(row, col)

    def region(
        self,
        area: Box | Bool[np.ndarray, "height width"],
        *,
        rule: Rule = "any",
        buffer: int = 0,
        image: int = 0,
    ) -> Positions:
        """Image positions whose cells see a box or a mask.

        Args:
            area: Box (left, top, right, bottom) in pixels of the original image, right
                and bottom excluded, or a bool mask [height width] of that image.
            rule: "any": the cell sees any part of it. "center": the cell's centre is in
                it. A number in (0, 1]: at least this share of the cell is covered.
            buffer: Rings of neighbouring cells to add, diagonals included.
            image: Which image of the prompt.

        Raises:
            RegionError: The area is not inside the picture, or has no cell: the
                processor cropped it away, or the rule asks too much of its size.
            LayoutError: There is no such image, rule, or number of rings.
        """
        if buffer < 0:
            raise LayoutError(f"buffer={buffer}: wanted 0 or more rings of cells.")
        grid = self._grid(image)
        chosen = _chosen(grid, area, rule)
        if not chosen.any():
            raise RegionError(
                f"no cell of the image grid satisfies rule={rule!r} for this area. The"
                f" grid sees the rectangle {grid.box} of the {grid.width} x"
                f" {grid.height} picture: an area cropped away has no tokens; a small"
                ' one may need rule="any".'
            )
        for _ in range(buffer):
            chosen = _dilated(chosen)
        at = np.flatnonzero(chosen) + grid.start
        return Positions.of(at.tolist())

    def extended(self, n_new: int) -> Layout:
        """The layout with `n_new` more positions, in the group "generated"."""
        new = Positions.of(range(self.n, self.n + n_new))
        groups = dict(self.groups) | {"generated": self["generated"] | new}
        return Layout(self.n + n_new, groups, self.grids)

    def _grid(self, image: int) -> ImageGrid:
        if not 0 <= image < len(self.grids):
            raise LayoutError(
                f"image {image} was asked for, and the prompt has {len(self.grids)}."
                " Was the prompt built without its image?"
            )
        return self.grids[image]


def _whole(index: SupportsInt) -> int:
    """One position; a mask's truth values and a share of one are none."""
    number = index if isinstance(index, int) else np.asarray(index)[()]
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise LayoutError(
            f"{index!r} is no position; wanted whole numbers. Of a boolean mask, take"
            " the places where it is true: Positions.of(np.flatnonzero(mask))."
        )
    return int(number)


def _overlap(
    edges: Float[np.ndarray, " edge"], spans: Iterable[int | float]
) -> Float[np.ndarray, "cell span"]:
    """Share of each cell between neighbouring `edges` that each span covers."""
    ends = np.asarray(list(spans), dtype=float)
    low = np.maximum(edges[:-1, None], ends[None, :-1])
    high = np.minimum(edges[1:, None], ends[None, 1:])
    return np.asarray(np.clip(high - low, 0, None) / np.diff(edges)[:, None])


def _chosen(
    grid: ImageGrid, area: Box | Bool[np.ndarray, "height width"], rule: Rule
) -> Bool[np.ndarray, "row col"]:
    if rule == "center":
        return grid.holds_center(area)
    covered = grid.coverage(area)
    if rule == "any":
        return covered > 0
    if isinstance(rule, str) or not 0 < rule <= 1:  # type: ignore[redundant-expr]
        raise LayoutError(
            f'rule={rule!r} is not understood: wanted "any", "center" or the least'
            " covered share of a cell, a number above 0 and up to 1."
        )
    # A cell that is wholly covered sums to 1 only up to rounding.
    return covered >= rule - 1e-9


def _dilated(cells: Bool[np.ndarray, "row col"]) -> Bool[np.ndarray, "row col"]:
    """The cells and their eight neighbours."""
    rows, cols = cells.shape
    padded = np.pad(cells, 1)
    views = [padded[i : i + rows, j : j + cols] for i in range(3) for j in range(3)]
    return np.asarray(np.logical_or.reduce(views))
