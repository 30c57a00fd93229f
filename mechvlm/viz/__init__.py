"""Results in, figures out; never a model."""

from mechvlm.viz.attention import attention, attention_from_last, attention_into
from mechvlm.viz.bars import bars
from mechvlm.viz.collapse import collapse
from mechvlm.viz.curves import curves
from mechvlm.viz.figure import Figure
from mechvlm.viz.heatmap import heatmap
from mechvlm.viz.overlay import overlay

__all__ = [
    "Figure",
    "attention",
    "attention_from_last",
    "attention_into",
    "bars",
    "collapse",
    "curves",
    "heatmap",
    "overlay",
]
