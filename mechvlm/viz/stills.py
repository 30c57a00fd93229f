"""Still pictures: matplotlib's object interface, one quiet style, no global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import xarray as xr

from mechvlm.viz.labels import Axis, subtitle, title, units
from mechvlm.viz.palette import LIGHT, Scale, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "DPI", "LABEL", "SERIES", "bar", "blank", "colours", "edges", "headed",
    "quiet_axes", "rendered", "series", "shortened", "theme", "width_of",
]  # fmt: skip

LABEL = 8.0
SERIES = len(LIGHT.series)
"""After so many colours of series the first comes again."""
DPI = 160
FAMILIES = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")


ON: ContextVar[Theme] = ContextVar("theme of the still being drawn", default=LIGHT)


def theme() -> Theme:
    """Colours of the still that is being drawn."""
    return ON.get()


def series(i: int) -> str:
    """Colour of the i-th line, bar or group; they begin again after the last one."""
    colours = theme().series
    return colours[i % len(colours)]


def styled() -> AbstractContextManager[None]:
    """Our settings while it lasts, with those of our fonts that this machine has.

    A dollar sign in a token starts no formula.
    """
    from matplotlib import font_manager, rc_context

    on, here = theme(), set(font_manager.get_font_names())
    settings = {
        "font.family": [name for name in FAMILIES if name in here],
        "font.size": LABEL,
        "text.color": on.ink,
        "axes.edgecolor": on.rule,
        "axes.labelcolor": on.faint,
        "axes.facecolor": on.paper,
        "axes.linewidth": 0.7,
        "xtick.color": on.rule,
        "ytick.color": on.rule,
        "xtick.labelcolor": on.faint,
        "ytick.labelcolor": on.faint,
        "svg.hashsalt": "mechvlm",
        "text.parse_math": False,
    }
    return rc_context(settings)  # type: ignore[arg-type]


def rendered(draw: Callable[[], Drawing], kind: str, on: Theme = LIGHT) -> bytes:
    """A drawing as the bytes of a picture; the same drawing gives the same bytes.

    Args:
        draw: Makes the drawing.
        kind: "png" or "svg".
        on: Colours of the paper and of what is drawn on it.

    Returns:
        The whole file.
    """
    out = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None}
    before = ON.set(on)
    try:
        with styled(), warnings.catch_warnings():
            # A script that no font here has shows as boxes; the live view reads well.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            draw().savefig(out, format=kind, dpi=DPI, metadata=metadata)
    finally:
        ON.reset(before)
    return out.getvalue()


def blank(width: float, height: float) -> Drawing:
    """An empty drawing of that many inches, outside pyplot's memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), dpi=DPI, facecolor=theme().paper)
    FigureCanvasAgg(drawing)
    return drawing


def shortened(text: str, most: int) -> str:
    """Text of at most `most` characters, its cut marked."""
    return text if len(text) <= most else text[: most - 1] + "…"


def width_of(texts: Iterable[str], size: float = LABEL) -> float:
    """Width of the widest text, inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    longest = sorted(set(texts), key=len)[-24:]
    font = FontProperties(size=size)
    points = (
        text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
        for text in longest
    )
    return max(points, default=0.0) / 72


def colours(scale: Scale) -> Colormap:
    """A scale as matplotlib's colour map; missing values are grey."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = scale.stops(theme())
    made = LinearSegmentedColormap.from_list("mechvlm", stops, N=512)
    return made.with_extremes(bad=theme().missing)


def edges(axis: Axis, width: float, cell: float) -> list[float]:
    """Borders of the columns of a map, in inches from its left.

    A written column is at most `cell` wide; long image blocks share what is left.

    Args:
        axis: The map's columns.
        width: Room for all of them.
        cell: Widest column.
    """
    silent = axis.quiet()
    n_silent = sum(silent)
    n_written = len(silent) - n_silent
    share = width * (0.66 if n_silent else 1.0)
    written = min(cell, share / n_written) if n_written else 0.0
    left = width - written * n_written
    narrow = min(cell, left / n_silent) if n_silent else 0.0
    borders = [0.0]
    for one in silent:
        borders.append(borders[-1] + (narrow if one else written))
    return borders


def headed(drawing: Drawing, result: xr.DataArray | xr.Dataset, left: float) -> None:
    """Write title and subtitle, `left` inches from the drawing's left edge."""
    width, height = drawing.get_size_inches()
    at = left / width
    drawing.text(
        at,
        1 - 0.16 / height,
        title(result),
        va="top",
        fontsize=11,
        weight="bold",
    )
    room = int((width - left) * 17)
    words = shortened(subtitle(result), room)
    drawing.text(
        at, 1 - 0.40 / height, words, va="top", fontsize=LABEL, color=theme().faint
    )


def bar(
    drawing: Drawing, scale: Scale, result: xr.DataArray, box: tuple[float, ...]
) -> None:
    """A colour bar with units; `box` is left, bottom, width, height in inches."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = drawing.get_size_inches()
    left, bottom, wide, high = box
    axes = drawing.add_axes(
        (left / width, bottom / height, wide / width, high / height)
    )
    made = drawing.colorbar(
        ScalarMappable(Normalize(scale.low, scale.high), colours(scale)), cax=axes
    )
    made.outline.set_visible(False)
    axes.tick_params(length=2, width=0.7, pad=2)
    axes.locator_params(nbins=max(1, min(5, int(high / 0.2))))
    axes.set_ylabel(units(result), color=theme().faint, labelpad=5)


def quiet_axes(axes: Axes) -> None:
    """Take away what says nothing: frame and long ticks."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=2, width=0.7, pad=3)
