"""Places in a graph drawn in rows: few crossings, straight ways, nothing overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["Link", "apart", "crossings", "ordered", "placed"]

SWEEPS = 12
SETTLINGS = 40


@dataclass(frozen=True, slots=True)
class Link:
    """A way between things that stand in rows next to each other.

    Attributes:
        lower: Thing in the lower row.
        upper: Thing in the row above.
        weight: How much a crossing of it hurts, and how straight it wants to be.
    """

    lower: int
    upper: int
    weight: float = 1.0


def apart(
    wanted: Sequence[float], gaps: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Places as near as can be to the wanted ones, in their order and so far apart.

    The least sum of weighted squares: neighbours that would touch form a block, and a
    block stands at the weighted mean of what its members want.

    Args:
        wanted: Place that each would like, from left to right.
        gaps: Least distance of each from the one before it; the first is not read.
        weights: How much each holds to its wish, above 0.

    Returns:
        As many places.

    Example:
        >>> apart([0.0, 0.0, 9.0], [0.0, 2.0, 2.0], [1.0, 1.0, 1.0])
        [-1.0, 1.0, 9.0]
    """
    offsets = np.cumsum([0.0, *gaps[1:]]) if len(wanted) else np.empty(0)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, members
    for wish, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, total, members = wish - float(offset), weight, 1
        while blocks and blocks[-1][0] > mean:
            before, held, others = blocks.pop()
            mean = (before * held + mean * total) / (held + total)
            total, members = held + total, others + members
        blocks.append((mean, total, members))
    level = [mean for mean, _, members in blocks for _ in range(members)]
    return [mean + float(offset) for mean, offset in zip(level, offsets, strict=True)]


def crossings(
    lower: Sequence[int], upper: Sequence[int], links: Sequence[Link]
) -> float:
    """Crossings of the ways between two rows, each by the product of its weights.

    Example:
        >>> crossings([0, 1], [2, 3], [Link(0, 3), Link(1, 2)])
        1.0
    """
    below = {thing: i for i, thing in enumerate(lower)}
    above = {thing: i for i, thing in enumerate(upper)}
    a = np.array([below[link.lower] for link in links])
    b = np.array([above[link.upper] for link in links])
    w = np.array([link.weight for link in links])
    if not links:
        return 0.0
    crossed = (a[:, None] < a[None, :]) & (b[:, None] > b[None, :])
    return float((crossed * w[:, None] * w[None, :]).sum())


def ordered(
    rows: Sequence[Sequence[int]], links: Sequence[Link]
) -> tuple[tuple[int, ...], ...]:
    """The things of each row from left to right, so that few ways cross.

    Each thing moves to the mean of those that it is joined to in the row below, then in
    the row above, and so on; the order with the fewest crossings is kept (barycentre
    method of Sugiyama et al. 1981).

    Args:
        rows: Things by row, from the bottom, in an order to start from.
        links: Ways between rows next to each other.

    Returns:
        The same rows, ordered; the same input always gives the same order.

    Example:
        >>> ordered([[0, 1], [2, 3]], [Link(0, 3), Link(1, 2)])
        ((0, 1), (3, 2))
    """
    row_of = {thing: i for i, row in enumerate(rows) for thing in row}
    between: list[list[Link]] = [[] for _ in rows]
    for link in links:
        between[row_of[link.lower]].append(link)
    order = [list(row) for row in rows]

    def crossed() -> float:
        pairs = zip(order, order[1:], between, strict=False)
        return sum(crossings(low, high, own) for low, high, own in pairs)

    best, least = tuple(map(tuple, order)), crossed()
    for sweep in range(SWEEPS):
        if sweep % 2 == 0:
            for i in range(1, len(order)):
                down = [(x.upper, x.lower, x.weight) for x in between[i - 1]]
                order[i] = by_mean(order[i], order[i - 1], down)
        else:
            for i in range(len(order) - 2, -1, -1):
                up = [(x.lower, x.upper, x.weight) for x in between[i]]
                order[i] = by_mean(order[i], order[i + 1], up)
        now = crossed()
        if now < least:
            best, least = tuple(map(tuple, order)), now
    return best


def by_mean(
    row: Sequence[int],
    beside: Sequence[int],
    joined: Sequence[tuple[int, int, float]],
) -> list[int]:
    """A row by the mean place of what each thing is joined to in the row beside it.

    Places are shares of a row, so that one without links keeps its own.
    """
    place = {thing: (i + 0.5) / len(beside) for i, thing in enumerate(beside)}
    sums = {thing: [0.0, 0.0] for thing in row}
    for mine, other, weight in joined:
        sums[mine][0] += weight * place[other]
        sums[mine][1] += weight
    means = {
        thing: total / weight if weight else (i + 0.5) / len(row)
        for i, (thing, (total, weight)) in enumerate(sums.items())
    }
    return sorted(row, key=lambda thing: means[thing])


def placed(
    rows: Sequence[Sequence[int]],
    links: Sequence[Link],
    *,
    widths: Mapping[int, float],
    gap: float,
) -> dict[int, float]:
    """Centres of things in ordered rows: as straight above each other as there is room.

    Args:
        rows: Things by row, from the bottom, in order from left to right.
        links: Ways between rows next to each other.
        widths: Room that each thing takes.
        gap: Least distance between the borders of two things in a row.

    Returns:
        Thing -> its centre; the leftmost border of all stands at 0.

    Example:
        >>> widths = {0: 4.0, 1: 4.0, 2: 4.0}
        >>> placed([[0], [1, 2]], [Link(0, 1)], widths=widths, gap=2.0)
        {0: 2.0, 1: 2.0, 2: 8.0}
    """
    joined: dict[int, list[tuple[int, float]]] = {t: [] for row in rows for t in row}
    for link in links:
        joined[link.lower].append((link.upper, link.weight))
        joined[link.upper].append((link.lower, link.weight))
    at: dict[int, float] = {}
    gaps: list[list[float]] = []
    for row in rows:
        need = [0.0]
        for one, other in pairwise(row):
            need.append((widths[one] + widths[other]) / 2 + gap)
        gaps.append(need)
        start = np.cumsum(need) - sum(need) / 2
        at.update(zip(row, map(float, start), strict=True))
    for turn in range(SETTLINGS):
        for i in range(len(rows)) if turn % 2 == 0 else range(len(rows) - 1, -1, -1):
            at |= settled(rows[i], gaps[i], joined, at)
    left = min((at[thing] - widths[thing] / 2 for thing in at), default=0.0)
    return {thing: round(place - left, 2) for thing, place in at.items()}


def settled(
    row: Sequence[int],
    gaps: Sequence[float],
    joined: Mapping[int, Sequence[tuple[int, float]]],
    at: Mapping[int, float],
) -> dict[int, float]:
    """Where one row goes if the rows beside it stay where they are."""
    wanted, weights = [], []
    for thing in row:
        held = sum(weight for _, weight in joined[thing])
        mean = sum(at[other] * weight for other, weight in joined[thing])
        wanted.append(mean / held if held else at[thing])
        weights.append(held or 0.1)
    return dict(zip(row, apart(wanted, gaps, weights), strict=True))
