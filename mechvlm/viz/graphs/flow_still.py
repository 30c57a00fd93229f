"""The still picture of a flow graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xarray as xr

from mechvlm.viz import stills
from mechvlm.viz.graphs import arcs
from mechvlm.viz.graphs.ribbons import UNITS, Ribbon
from mechvlm.viz.labels import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["FlowStill"]

COLUMN_PX, STEP_PX = 124.0, 104.0
LEFT_PX, RIGHT_PX, ABOVE_PX = 132.0, 16.0, 66.0
NAMES_PX, NOTE_PX = 44.0, 15.0
INSIDE_PX = 13.0
"""Width of a ribbon from which on words stand in it, and not before it."""


@dataclass(frozen=True, eq=False)
class FlowStill:
    """What the still of a flow graph shows.

    Attributes:
        data: The result, for title and subtitle.
        groups: Name and size of each group.
        bands: Names of the bands, from below.
        ribbons: The cuts, placed.
        full: Size of the strongest effect.
        labelled: Ribbons beside which their effect is written.
        marks: Effects of the legend.
        notes: Lines under the picture.
    """

    data: xr.Dataset
    groups: Sequence[Mapping[str, str]]
    bands: Sequence[str]
    ribbons: Sequence[Ribbon]
    full: float
    labelled: Sequence[Ribbon]
    marks: Sequence[float]
    notes: Sequence[str]

    def __call__(self) -> Drawing:
        """Draw it."""
        below = NAMES_PX + 30 + NOTE_PX * (1 + len(self.notes))
        wide = max(560.0, LEFT_PX + COLUMN_PX * len(self.groups) + RIGHT_PX)
        tall = ABOVE_PX + STEP_PX * len(self.bands) + below
        drawing = stills.blank(wide / arcs.PER_INCH, tall / arcs.PER_INCH)
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set_xlim(-LEFT_PX, wide - LEFT_PX)
        axes.set_ylim(-below, tall - below)
        axes.set_axis_off()
        self._ground(axes, wide - LEFT_PX)
        strongest_last = sorted(self.ribbons, key=_on_top)
        for ribbon in strongest_last:
            self._ribbon(axes, ribbon)
        self._nodes(axes)
        for ribbon in self.labelled:
            self._label(axes, ribbon)
        self._legend(axes, -NAMES_PX - 14)
        stills.headed(drawing, self.data, 0.16)
        return drawing

    def _ground(self, axes: Axes, right: float) -> None:
        on = stills.theme()
        for k, band in enumerate(self.bands):
            if k % 2 == 0:
                axes.axhspan(k * STEP_PX, (k + 1) * STEP_PX, color=on.card, lw=0)
            axes.text(
                -LEFT_PX + 15, (k + 0.5) * STEP_PX, _lines(band),
                va="center", color=on.faint,
            )  # fmt: skip
        top = STEP_PX * len(self.bands)
        for i, group in enumerate(self.groups):
            x = (i + 0.5) * COLUMN_PX
            axes.plot([x, x], [0, top], color=on.rule, lw=1.0, zorder=1.5)
            axes.text(
                x, -16, stills.shortened(group["name"], 17), ha="center",
                va="center", fontsize=9, weight="bold",
            )  # fmt: skip
            axes.text(x, -31, group["size"], ha="center", va="center", color=on.faint)
        if any(group["size"] for group in self.groups):
            axes.text(-LEFT_PX + 15, -31, "tokens", va="center", color=on.faint)
        axes.set_xlim(-LEFT_PX, right)

    def _ribbon(self, axes: Axes, ribbon: Ribbon) -> None:
        from matplotlib.patches import PathPatch

        low, high = ribbon.band * STEP_PX, (ribbon.band + 1) * STEP_PX
        way = [(ribbon.start * COLUMN_PX, low), (ribbon.stop * COLUMN_PX, high)]
        width = max(arcs.HAIR_PX, ribbon.width * COLUMN_PX) * arcs.POINT
        stripes = (0, (2.4 / width, 2.4 / width))
        axes.add_patch(
            PathPatch(
                arcs.rising(way), fill=False, lw=width, capstyle="butt",
                edgecolor=arcs.colour(ribbon.effect, self.full), zorder=2,
                alpha=0.22 if ribbon.standing == "other" else 1.0,
                ls=stripes if ribbon.standing == "uncontrolled" else "solid",
            )
        )  # fmt: skip

    def _label(self, axes: Axes, ribbon: Ribbon) -> None:
        from matplotlib.colors import to_rgba
        from matplotlib.patheffects import withStroke

        ink = stills.theme().ink
        ground: tuple[float, ...] = to_rgba(stills.theme().paper)
        if ribbon.width * COLUMN_PX >= INSIDE_PX:
            ink, ground = stills.theme().paper, arcs.colour(ribbon.effect, self.full)
        axes.text(
            ribbon.middle * COLUMN_PX, (ribbon.band + 0.5) * STEP_PX,
            f"{number(ribbon.effect)} %", ha="center", va="center", zorder=4,
            color=ink, path_effects=[withStroke(linewidth=2.6, foreground=ground)],
        )  # fmt: skip

    def _nodes(self, axes: Axes) -> None:
        on = stills.theme()
        edges = [each for each in self.ribbons if each.standing != "other"]
        ends = {(e.source, e.band) for e in edges}
        ends |= {(e.target, e.band + 1) for e in edges}
        for i in range(len(self.groups)):
            for k in range(len(self.bands) + 1):
                axes.plot(
                    (i + 0.5) * COLUMN_PX, k * STEP_PX, "o", zorder=3,
                    ms=5 if (i, k) in ends else 3.4, mew=0.8, mec=on.ink
                    if (i, k) in ends else on.faint,
                    color=on.ink if (i, k) in ends else on.paper,
                )  # fmt: skip

    def _legend(self, axes: Axes, under: float) -> None:
        at = -LEFT_PX + 15
        widest = max((each.width for each in self.ribbons), default=0.0) * COLUMN_PX
        for effect in self.marks:
            axes.plot(
                [at, at + 26], [under, under], color=arcs.colour(effect, self.full),
                lw=abs(effect) / self.full * widest * arcs.POINT, solid_capstyle="butt",
            )  # fmt: skip
            axes.text(at + 32, under, number(effect), va="center")
            at += 84
        thin = any(each.width * COLUMN_PX < arcs.HAIR_PX for each in self.ribbons)
        words = f"{UNITS}; {arcs.hairs(self.full, widest)}" if thin else UNITS
        for i, note in enumerate([words, *self.notes]):
            axes.text(
                -LEFT_PX + 15, under - 20 - NOTE_PX * i, note, va="center",
                color=stills.theme().faint,
            )  # fmt: skip


def _lines(band: str) -> str:
    """A band's name, and below it its layers where they are told apart."""
    name, opened, its_layers = band.rpartition(" (")
    lines = [name, f"({its_layers}"] if opened else [its_layers]
    return "\n".join(stills.shortened(line, 18) for line in lines)


def _on_top(ribbon: Ribbon) -> tuple[bool, float]:
    return ribbon.standing != "other", abs(ribbon.effect)
