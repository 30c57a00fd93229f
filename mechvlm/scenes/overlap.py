"""Two neighbours move towards one another until one hides a part of the other."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from mechvlm.scenes.drawing import mask_of
from mechvlm.scenes.world import GRID, Thing

_STEP_PX = 0.5
_FARTHEST_PX = 9.0
_HIDDEN = (0.1, 0.35)


def moved_together(
    things: Sequence[Thing], *, free: Sequence[int], rng: np.random.Generator
) -> list[Thing]:
    """The things, two of which overlap.

    Two that stand side by side, or one above the other, move along that line; each
    stays in its row and column, so it meets no third thing. If no two are neighbours,
    the second first takes a free cell beside the first.

    Args:
        things: At least two, one to a cell.
        free: Cells where nothing stands.
        rng: Draws which two, and which share of the earlier one is to be hidden: .1 to
            .35 where their shapes allow it.
    """
    found = list(things)
    pairs = _neighbours(found)
    if not pairs:
        beside = [cell for cell in free if _adjoin(cell, found[0].cell)]
        found[1] = replace(found[1], cell=int(rng.choice(beside)))
        pairs = _neighbours(found)
    under, over = pairs[int(rng.integers(len(pairs)))]
    wanted = rng.uniform(*_HIDDEN)
    for px in np.arange(_STEP_PX, _FARTHEST_PX + _STEP_PX, _STEP_PX).tolist():
        near = _approached(things=found, under=under, over=over, px=px)
        hidden = mask_of(near[under])
        if (hidden & mask_of(near[over])).sum() >= wanted * hidden.sum():
            break
    return near


def _neighbours(things: Sequence[Thing]) -> list[tuple[int, int]]:
    """Indices of things in adjoining cells, the one in the earlier cell first."""
    order = sorted(range(len(things)), key=lambda i: things[i].cell)
    pairs = combinations(order, 2)
    return [(i, j) for i, j in pairs if _adjoin(things[i].cell, things[j].cell)]


def _adjoin(one: int, other: int) -> bool:
    (row, column), (other_row, other_column) = divmod(one, GRID), divmod(other, GRID)
    return abs(row - other_row) + abs(column - other_column) == 1


def _approached(
    things: Sequence[Thing], *, under: int, over: int, px: float
) -> list[Thing]:
    found = list(things)
    beside = things[over].cell - things[under].cell == 1
    for i, sign in ((under, 1), (over, -1)):
        down, right = things[i].shift
        moved = (down, right + sign * px) if beside else (down + sign * px, right)
        found[i] = replace(things[i], shift=moved)
    return found
