"""Where the edges of a flow graph are drawn: the same in live views and stills.

Lengths across are in columns: group i stands at i + 0.5. A band of layers is one step
up. Side by side at a node, ribbons take as much room as they are thick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import xarray as xr

from mechvlm.errors import ResultError

__all__ = ["UNITS", "Ribbon", "Standing", "Which", "drawn_edges", "labelled", "ribbons"]

Which: TypeAlias = Literal["kept", "all"]
"""Edges that are told from chance, or those without a control as well."""

Standing: TypeAlias = Literal["kept", "uncontrolled", "other"]
"""What can be said of a cut: an edge; without a control; not told from chance."""

FULL, ROOM = 0.16, 0.62
"""Width of the strongest ribbon, and most that all at one node take, in columns."""
UNITS = "change of the answer's probability, %"
CLEAR = 0.75
"""Room of a written effect, in columns."""


@dataclass(frozen=True, slots=True)
class Ribbon:
    """A cut, drawn from its source to its target.

    Attributes:
        source: Number of the group that is read.
        target: Number of the group that reads.
        band: Number of the band, from below.
        standing: What can be said of it.
        effect: What the cut does to the answer, as the result says.
        width: In columns, proportional to the effect's size.
        start: Where it leaves its source, in columns.
        stop: Where it reaches its target, in columns.
    """

    source: int
    target: int
    band: int
    standing: Standing
    effect: float
    width: float = 0.0
    start: float = 0.0
    stop: float = 0.0

    @property
    def middle(self) -> float:
        """Where it is half way up, in columns."""
        return (self.start + self.stop) / 2


def drawn_edges(result: xr.Dataset, which: Which, least: float) -> list[Ribbon]:
    """The cuts to draw, not yet placed: edges, and what is more than `least` without.

    Args:
        result: What `flow_graph` returns.
        which: "kept" leaves out those without a control.
        least: Size of an effect below which a cut that is no edge is not drawn.

    Raises:
        ResultError: No cut was measured.
    """
    ordered = result.transpose("band", "source", "target", ...)
    effect = np.asarray(ordered["effect"].values, dtype=float)
    if not np.isfinite(effect).any():
        raise ResultError(
            "no cut of this flow graph was measured, so there is nothing to draw."
            ' result["status"] says why of each; usually the groups cannot read one'
            " another."
        )
    kept = np.asarray(ordered["kept"].values, dtype=bool)
    alone = np.asarray(ordered["uncontrolled"].values, dtype=bool)
    found = []
    for k, j, i in np.argwhere(np.isfinite(effect)).tolist():
        value = float(effect[k, j, i])
        if kept[k, j, i]:
            found.append(Ribbon(j, i, k, "kept", value))
        elif alone[k, j, i]:
            if which == "all":
                found.append(Ribbon(j, i, k, "uncontrolled", value))
        elif abs(value) >= least:
            found.append(Ribbon(j, i, k, "other", value))
    return found


def ribbons(edges: Sequence[Ribbon], full: float) -> tuple[Ribbon, ...]:
    """Place ribbons: at each node side by side, in the order of where they go.

    Args:
        edges: Not yet placed.
        full: Size of an effect that is as thick as any may be, above 0.

    Returns:
        The same ones, with width, start and stop.

    Example:
        >>> edge = Ribbon(0, 2, 0, "kept", -50.0)
        >>> (placed,) = ribbons([edge], full=100.0)
        >>> placed.width, placed.start, placed.stop
        (0.08, 0.5, 2.5)
    """
    widths = [FULL * abs(edge.effect) / full for edge in edges]
    leaving = _meeting([(e.band, e.source, e.target) for e in edges])
    reaching = _meeting([(e.band, e.target, e.source) for e in edges])
    most = max((sum(widths[i] for i in own) for own in leaving + reaching), default=0)
    press = min(1.0, ROOM / most) if most else 1.0
    widths = [width * press for width in widths]
    start, stop = (_beside(each, widths) for each in (leaving, reaching))
    return tuple(
        replace(
            edge,
            width=widths[i],
            start=edge.source + 0.5 + start[i],
            stop=edge.target + 0.5 + stop[i],
        )
        for i, edge in enumerate(edges)
    )


def _meeting(ends: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Which of (band, here, there) meet at a node, by where they go from it."""
    found: dict[tuple[int, int], list[int]] = {}
    for i in sorted(range(len(ends)), key=lambda i: ends[i]):
        found.setdefault(ends[i][:2], []).append(i)
    return list(found.values())


def _beside(groups: Sequence[Sequence[int]], widths: Sequence[float]) -> list[float]:
    """Each one's middle, side by side with those that it meets, around 0."""
    found = [0.0] * len(widths)
    for own in groups:
        at = -sum(widths[i] for i in own) / 2
        for i in own:
            found[i] = at + widths[i] / 2
            at += widths[i]
    return found


def labelled(placed: Sequence[Ribbon]) -> tuple[Ribbon, ...]:
    """The edges whose effect can be written at their middle: no two lie on each other.

    The strongest come first; a weaker one whose words would touch goes without.

    Example:
        >>> strong = Ribbon(0, 1, 0, "kept", -50.0, start=0.5, stop=1.5)
        >>> weak = Ribbon(1, 0, 0, "kept", -9.0, start=1.5, stop=0.5)
        >>> labelled([weak, strong]) == (strong,)
        True
    """
    found: list[Ribbon] = []
    for each in sorted(placed, key=lambda one: -abs(one.effect)):
        beside = (one.middle for one in found if one.band == each.band)
        if each.standing == "kept" and all(
            abs(x - each.middle) > CLEAR for x in beside
        ):
            found.append(each)
    return tuple(found)
