"""Words in coloured boxes, for still pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechvlm.viz import stills

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["EVEN", "boxed", "readable"]

EVEN = ("DejaVu Sans Mono", "DejaVu Sans")
"""A type of even width, and one for scripts that it lacks; matplotlib has both."""


def boxed(
    axes: Axes,
    text: str,
    box: tuple[float, float, float, float],
    ground: Sequence[float],
) -> None:
    """Write a word in the middle of a box, in an ink that reads well on its ground.

    Args:
        axes: Axes that count inches, downwards.
        text: What to write.
        box: Left, top, width and height.
        ground: Red, green and blue, 0 to 1.
    """
    from matplotlib.patches import FancyBboxPatch

    x, y, wide, high = box
    shape = "round,pad=0,rounding_size=0.04"
    axes.add_patch(FancyBboxPatch((x, y), wide, high, shape, fc=tuple(ground), lw=0))
    axes.text(
        x + wide / 2, y + high / 2, text, ha="center", va="center",
        color=readable(ground), fontsize=8, family=list(EVEN),
    )  # fmt: skip


def readable(ground: Sequence[float]) -> str:
    """The theme's ink or its paper, whichever stands out more from a ground."""
    on = stills.theme()
    dark, light = (on.paper, on.ink) if on.name == "dark" else (on.ink, on.paper)
    return dark if luminance(ground) > 0.19 else light


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of red, green and blue, as WCAG 2 defines it; 0 to 1."""
    r, g, b = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]
    )
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
