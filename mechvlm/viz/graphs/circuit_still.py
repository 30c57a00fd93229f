"""The still picture of a placed circuit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xarray as xr

from mechvlm.viz import stills
from mechvlm.viz.graphs import arcs
from mechvlm.viz.graphs.lanes import FULL_PX
from mechvlm.viz.graphs.wiring import PORTS, Spot, Way, Wiring
from mechvlm.viz.labels import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["CircuitStill"]

LEFT_PX, RIGHT_PX, ABOVE_PX, BELOW_PX = 70.0, 18.0, 62.0, 84.0
LEAST_PX = 560.0


@dataclass(frozen=True)
class CircuitStill:
    """What the still of a circuit shows.

    Attributes:
        wiring: Where everything is.
        data: Effects, for title and subtitle.
        full: Size of the strongest effect; 0 where none is known.
        marks: Effects of the legend.
        notes: Lines under the picture: what widths say, and how many edges are shown.
    """

    wiring: Wiring
    data: xr.DataArray
    full: float
    marks: Sequence[float]
    notes: Sequence[str]

    def __call__(self) -> Drawing:
        """Draw it."""
        wide = max(LEAST_PX, LEFT_PX + self.wiring.width + RIGHT_PX)
        tall = ABOVE_PX + self.wiring.height + BELOW_PX
        drawing = stills.blank(wide / arcs.PER_INCH, tall / arcs.PER_INCH)
        axes = drawing.add_axes((0, 0, 1, 1))
        spare = wide - LEFT_PX - RIGHT_PX - self.wiring.width
        axes.set_xlim(-LEFT_PX - spare / 2, wide - LEFT_PX - spare / 2)
        axes.set_ylim(-BELOW_PX, tall - BELOW_PX)
        axes.set_axis_off()
        self._bands(axes)
        ways = self.wiring.ways
        for way in reversed(ways):
            self._way(axes, way)
        self._served(axes)
        for i, spot in enumerate(self.wiring.spots):
            _box(axes, spot, {way.port for way in ways if way.receiver == i})
        self._legend(axes)
        stills.headed(drawing, self.data, 0.16)
        return drawing

    def _bands(self, axes: Axes) -> None:
        low, high = axes.get_xlim()
        for i, band in enumerate(self.wiring.bands):
            if i % 2 == 0:
                axes.axhspan(band.low, band.high, color=stills.theme().card, lw=0)
            axes.text(
                low + 12, (band.low + band.high) / 2, band.name,
                va="center", color=stills.theme().faint,
            )  # fmt: skip
        axes.set_xlim(low, high)

    def _way(self, axes: Axes, way: Way) -> None:
        from matplotlib.patches import PathPatch

        known = not math.isnan(way.effect)
        colour: str | tuple[float, ...] = stills.theme().faint
        width = arcs.HAIR_PX
        if known and self.full:
            colour, width = arcs.colour(way.effect, self.full), max(width, way.width)
        axes.add_patch(
            PathPatch(
                arcs.rising(way.points), fill=False, lw=width * arcs.POINT,
                edgecolor=colour, capstyle="butt",
                ls="solid" if known or not self.full else (0, (2, 2)),
            )
        )  # fmt: skip

    def _served(self, axes: Axes) -> None:
        for taker, head in self.wiring.served:
            low, high = self.wiring.spots[taker], self.wiring.spots[head]
            axes.plot(
                [low.x, high.x],
                [low.y + low.height / 2, high.y - high.height / 2],
                color=stills.theme().faint, lw=0.7, ls=(0, (1, 2)),
            )  # fmt: skip

    def _legend(self, axes: Axes) -> None:
        left, _ = axes.get_xlim()
        at, under = left + 14, -16.0
        for size in self.marks:
            axes.plot(
                [at, at + 26], [under, under], color=arcs.colour(size, self.full),
                lw=abs(size) / self.full * FULL_PX * arcs.POINT, solid_capstyle="butt",
            )  # fmt: skip
            axes.text(at + 32, under, number(size), va="center")
            at += 80
        under -= 17.0 if self.marks else 0.0
        for i, note in enumerate(self.notes):
            axes.text(
                left + 14, under - 15 * i, note, va="center", color=stills.theme().faint
            )


def _box(axes: Axes, spot: Spot, used: set[str]) -> None:
    """A node with its label, and q, k and v at the foot of a head."""
    from matplotlib.patches import FancyBboxPatch

    on, last = stills.theme(), spot.kind == "logits"
    face = {"logits": on.ink, "tokens": on.card, "mlp": on.card}.get(
        spot.kind, on.paper
    )
    box = axes.add_patch(
        FancyBboxPatch(
            (spot.x - spot.width / 2, spot.y - spot.height / 2),
            spot.width, spot.height,
            boxstyle=f"round,pad=0,rounding_size={11 if spot.kind == 'mlp' else 5}",
            facecolor=face, lw=0.8, zorder=3,
            edgecolor=on.ink if spot.kind in ("head", "logits") else on.faint,
        )
    )  # fmt: skip
    head = spot.kind == "head"
    label = axes.text(
        spot.x, spot.y + (5 if head else -0.5), spot.written,
        ha="center", va="center_baseline", zorder=4, color=on.paper if last else on.ink,
    )  # fmt: skip
    label.set_clip_path(box)
    for port in spot.ports:
        axes.text(
            spot.x + PORTS[port] * spot.width, spot.y - 10, port,
            ha="center", va="center_baseline", fontsize=6.5, zorder=4,
            color=on.ink if port in used else on.rule,
        )  # fmt: skip
