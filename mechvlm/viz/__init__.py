"""Results in, figures out; never a model."""

from mechvlm.viz.attention import attention, attention_from_last, attention_into
from mechvlm.viz.bars import bars
from mechvlm.viz.collapse import collapse
from mechvlm.viz.figure import Figure
from mechvlm.viz.heatmap import heatmap
from mechvlm.viz.lines import lines
from mechvlm.viz.overlay import overlay
from mechvlm.viz.palette import DARK, LIGHT

__all__ = [
    "DARK",
    "LIGHT",
    "Figure",
    "attention",
    "attention_from_last",
    "attention_into",
    "bars",
    "collapse",
    "heatmap",
    "lines",
    "overlay",
]
