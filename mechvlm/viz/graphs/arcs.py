"""Ways that rise: one shape of curve, and what a width says, for all graphs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from mechvlm.viz import stills
from mechvlm.viz.labels import number
from mechvlm.viz.palette import Scale

if TYPE_CHECKING:
    from matplotlib.path import Path as Curve

__all__ = [
    "HAIR_PX", "PER_INCH", "POINT", "colour", "hairs", "marks", "rising", "strength",
]  # fmt: skip

HAIR_PX = 0.8
"""Width of what would be thinner to scale, so that it can be seen."""
PER_INCH = 96.0
"""Pixels of the live view to an inch of the still."""
POINT = 72 / PER_INCH
"""Points to a pixel, for the widths of lines."""


def rising(points: Sequence[tuple[float, float]]) -> Curve:
    """A curve through points, which leaves and arrives at each of them vertically."""
    from matplotlib.path import Path

    way, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        way += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return Path(way, codes)


def strength(full: float) -> Scale:
    """Scale of colours for effects of at most this size, either sign."""
    return Scale(-full, full)


def shade(effect: float, full: float) -> float:
    """The value whose colour an effect takes: weak ones too stand out from the paper.

    Example:
        >>> shade(1.0, 1.0), round(shade(-0.1, 1.0), 2)
        (1.0, -0.46)
    """
    return math.copysign(0.4 * full + 0.6 * abs(effect), effect)


def colour(effect: float, full: float) -> tuple[float, ...]:
    """Colour of an effect in the still that is being drawn."""
    share = (shade(effect, full) + full) / (2 * full)
    return stills.colours(strength(full))(share)


def hairs(full: float, widest_px: float) -> str:
    """What is said of those that are drawn thicker than to scale.

    Args:
        full: Size of the strongest effect.
        widest_px: How wide it is drawn.

    Example:
        >>> hairs(1.0, 8.0)
        'below 0.1 all are equally thin'
    """
    return f"below {number(full * HAIR_PX / widest_px)} all are equally thin"


def marks(full: float) -> tuple[float, ...]:
    """Round sizes for a legend, the largest not above `full`, which is above 0.

    Example:
        >>> marks(0.269)
        (0.2, 0.1, 0.05)
        >>> marks(100.0)
        (100.0, 50.0, 20.0)
    """
    power = math.floor(math.log10(full) + 1e-9)
    steps = (5.0, 2.0, 1.0, 0.5, 0.2, 0.1)
    fit = [step for step in steps if step * 10.0**power <= full * (1 + 1e-9)]
    return tuple(float(f"{step * 10.0**power:.6g}") for step in fit[:3])
