"""The still picture of two results and their difference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechvlm.viz import stills
from mechvlm.viz.labels import Axis, axis, title, units
from mechvlm.viz.palette import Scale, scale_of
from mechvlm.viz.plots.heatmap import band, label_columns, label_rows, thinned
from mechvlm.viz.plots.lines import DASHES, WIDE, last_value, right_of, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["Pair", "common", "drawn"]

MINUS = "\N{MINUS SIGN}"
NARROW = 16  # columns of a map that stands beside its fellow
WIDEST = 8.2


@dataclass(frozen=True)
class Pair:
    """Two results of one shape.

    Attributes:
        left: The first.
        right: The second, its dimensions in the order of the first.
        difference: The first less the second.
        names: What the two are called.
        together: Whether they are lines of one plot rather than maps.
    """

    left: xr.DataArray
    right: xr.DataArray
    difference: xr.DataArray
    names: tuple[str, str]
    together: bool

    @cached_property
    def scale(self) -> Scale:
        """The one colour scale of both results."""
        each = [np.asarray(r.values, dtype=float) for r in (self.left, self.right)]
        return scale_of(xr.DataArray(np.stack(each)))

    @property
    def narrow(self) -> bool:
        """Whether the maps have room beside each other."""
        return self.left.shape[-1] <= NARROW

    @property
    def less(self) -> str:
        """What the difference is called."""
        return f"{self.names[0]} {MINUS} {self.names[1]}"

    @cached_property
    def both(self) -> xr.DataArray:
        """Lines of both results, each beside its fellow."""
        mine = (lined_up(self.left), lined_up(self.right))
        named = [
            f"{line} · {name}" if line else name
            for line in line_names(self.left)
            for name in self.names
        ]
        data = paired(mine, named, self.left)
        if all({"low", "high"} <= set(r.coords) for r in (self.left, self.right)):
            ends = {
                end: paired(
                    (
                        lined_up(self.left[end].broadcast_like(self.left)),
                        lined_up(self.right[end].broadcast_like(self.right)),
                    ),
                    named,
                    self.left,
                )
                for end in ("low", "high")
            }
            data = data.assign_coords(ends)
        return data

    @cached_property
    def apart(self) -> xr.DataArray:
        """Lines of the difference."""
        named = [line or self.less for line in line_names(self.left)]
        return paired((lined_up(self.difference),), named, self.left)


def lined_up(result: xr.DataArray) -> Float[np.ndarray, "line along"]:
    """Values as lines."""
    return np.atleast_2d(np.asarray(result.values, dtype=float))


def line_names(result: xr.DataArray) -> list[str]:
    """Names of a result's lines; "" for a lone one."""
    return [""] if result.ndim == 1 else list(axis(result, str(result.dims[0])).labels)


def paired(
    each: tuple[Float[np.ndarray, "line along"], ...],
    named: list[str],
    like: xr.DataArray,
) -> xr.DataArray:
    """Lines of several results, interleaved, over the last dimension of `like`."""
    along = str(like.dims[-1])
    places = {along: like[along].values} if along in like.coords else {}
    values = np.stack(each, axis=1).reshape(len(named), -1)
    coords = {"which": named, **places}
    return xr.DataArray(values, dims=("which", along), coords=coords, attrs=like.attrs)


def drawn(pair: Pair) -> Drawing:
    """The still picture of a comparison."""
    return lines_drawn(pair) if pair.together else maps_drawn(pair)


def heading(pair: Pair) -> xr.DataArray:
    """What is written above: what both have in common."""
    return xr.DataArray(0.0, attrs=common(pair))


def common(pair: Pair) -> dict[str, object]:
    """Attributes on which both agree, and what the comparison is called."""
    other = pair.right.attrs
    kept = {
        str(name): value
        for name, value in pair.left.attrs.items()
        if name in other and str(other[name]) == str(value)
    }
    first, second = title(pair.left), title(pair.right)
    what = f"{first}: " if first == second != "Value" else ""
    return kept | {"long_name": f"{what}{pair.names[0]} and {pair.names[1]}"}


def maps_drawn(pair: Pair) -> Drawing:
    """Two maps on one scale, then the difference on its own."""
    down, across = (axis(pair.left, str(dim)) for dim in pair.left.dims)
    columns = np.array(stills.edges(across, 2.3 if pair.narrow else WIDEST, 0.3))
    row = min(0.24, max(0.07, 2.3 / len(down.labels)))
    wide, high = float(columns[-1]), row * len(down.labels)
    left = 0.62 + 0.062 * max(len(stills.shortened(t, 28)) for t in down.labels)
    longest = max((len(t) for t in across.tokens), default=2)
    below, above = 0.5 + 0.058 * min(longest, 20), 1.05 + 0.16 * bool(across.groups)
    if pair.narrow:
        width, total = left + 3 * wide + 2.45, above + high + below
        corners = [(left + i * (wide + 0.35), below) for i in range(2)]
        corners.append((left + 2 * wide + 1.45, below))
    else:
        width, total = left + wide + 1.05, above + 3 * high + 1.24 + below
        corners = [(left, below + i * (high + 0.62)) for i in (2, 1, 0)]
    drawing = stills.blank(max(width, 5.5), total)
    stills.headed(drawing, heading(pair), left)
    for i, ((x, y), each) in enumerate(
        zip(corners, (pair.left, pair.right, pair.difference), strict=True)
    ):
        width, total = drawing.get_size_inches()
        axes = drawing.add_axes((x / width, y / total, wide / width, high / total))
        scale = scale_of(each) if i == 2 else pair.scale
        mapped(axes, each, columns, row, scale)
        label_rows(axes, down, row)
        label_columns(axes, across, columns)
        stills.quiet_axes(axes)
        thin_out(axes, pair, i)
        banded = bool(across.groups) and (pair.narrow or i == 0)
        if banded:
            band(axes, across, columns, high)
        words = stills.shortened((*pair.names, pair.less)[i], 30 if pair.narrow else 80)
        axes.text(0, 1 + (0.3 if banded else 0.08) / high, words, fontsize=9,
                  transform=axes.transAxes, weight="bold", va="bottom")  # fmt: skip
        if i:
            tall = min(high, 1.8)
            box = (x + wide + 0.12, y + high - tall, 0.09, tall)
            stills.bar(drawing, scale, pair.left, box)
    return drawing


def thin_out(axes: Axes, pair: Pair, i: int) -> None:
    """Take away labels that a neighbour of the i-th panel already bears."""
    if pair.narrow and i:
        axes.set_ylabel("")
        axes.set_yticklabels([])
    if not pair.narrow and i < 2:
        axes.set_xlabel("")
        axes.set_xticklabels([])


def mapped(
    axes: Axes,
    result: xr.DataArray,
    columns: Float[np.ndarray, " border"],
    row: float,
    scale: Scale,
) -> None:
    """Colour the cells of one map."""
    borders, strongest = thinned(np.asarray(result.values, dtype=float), columns)
    axes.pcolormesh(
        borders, np.arange(result.shape[0] + 1) * row, np.ma.masked_invalid(strongest),
        cmap=stills.colours(scale), vmin=scale.low, vmax=scale.high, rasterized=True,
    )  # fmt: skip


def lines_drawn(pair: Pair) -> Drawing:
    """Lines of both, the second's dashed, and below them the difference."""
    along = axis(pair.both, str(pair.both.dims[1]))
    names = [str(name) for name in pair.both["which"].values]
    right = 0.4 + 0.07 * max(len(stills.shortened(name, 30)) for name in names)
    left, wide, above, high, low, gap = 0.8, WIDE, 0.95, 2.6, 1.5, 0.55
    width, total = left + wide + right, above + high + gap + low + 0.55
    drawing = stills.blank(width, total)
    stills.headed(drawing, heading(pair), left)
    for panel, (each, tall, y) in enumerate(
        ((pair.both, high, 0.55 + low + gap), (pair.apart, low, 0.55))
    ):
        axes = drawing.add_axes((left / width, y / total, wide / width, tall / total))
        plotted(axes, each, tall, pairs=panel == 0)
        ticks(axes, along)
        axes.set_ylabel(units(pair.left) if not panel else "", labelpad=6)
        words = " and ".join(pair.names) if not panel else pair.less
        axes.text(0, 1 + 0.06 / tall, stills.shortened(words, 80), fontsize=9,
                  transform=axes.transAxes, weight="bold", va="bottom")  # fmt: skip
    drawing.axes[1].set_xlabel(along.name)
    return drawing


def ticks(axes: Axes, along: Axis) -> None:
    """Name the places along a line, thinned out."""
    n = len(along.labels)
    step = -(-n // 16)
    axes.set_xticks(range(0, n, step), list(along.labels[::step]))
    axes.set_xlim(-0.3, n - 0.7)
    axes.grid(axis="y", color=stills.theme().rule, lw=0.7)
    axes.set_axisbelow(True)
    stills.quiet_axes(axes)


def plotted(axes: Axes, series: xr.DataArray, tall: float, *, pairs: bool) -> None:
    """Draw lines and name each at its right end."""
    values = np.asarray(series.values, dtype=float)
    axes.axhline(0, color=stills.theme().faint, lw=0.9, zorder=1)
    at, n = np.arange(values.shape[1]), values.shape[1]
    looks = [
        (stills.series(i), DASHES[0]) if not pairs
        else (stills.series(i // 2), DASHES[i % 2])
        for i in range(len(values))
    ]  # fmt: skip
    for line, (colour, dash) in zip(values, looks, strict=True):
        axes.plot(at, line, lw=1.7, marker="o", ms=3, color=colour, ls=dash)
    bottom, top = axes.get_ylim()
    ends = [last_value(line) for line in values]
    for name, end, place, (colour, _) in zip(
        series["which"].values,
        ends,
        spread(ends, 0.15 / tall * (top - bottom)),
        looks,
        strict=True,
    ):
        words = stills.shortened(str(name).replace("->", "→"), 30)
        axes.annotate(
            words, (n - 1, end), (right_of(n), place), va="center", color=colour,
            fontsize=8.5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkB": 3,
                        "relpos": (0, 0.5), "shrinkA": 1},
        )  # fmt: skip
    axes.set_ylim(bottom, top)
